"""What is to be known of a model of the family, to read and to write its checkpoints."""

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")


class Format(NamedTuple):
    """One layout of a family's checkpoints.

    Every such file has one of the tensors in `signatures`, perhaps after a wrapper's prefix.
    `rows(tensors)` is the table of its names. `add` is put before all names of a file that holds
    only a part of the model. Names that match a pattern in `ignore` belong to no image model.
    `prepare(tensors)` gives tensors of these names where a file joins what are several of ours.
    """

    name: str
    signatures: tuple[str, ...]
    rows: Callable[[Iterable[str]], tuple]
    add: str = ""
    ignore: tuple[str, ...] = ()
    prepare: Callable[[dict], dict] = dict


class TransformersLayout(NamedTuple):
    """How transformers stores a family: in which model types, and what is beside the tensors."""

    model_types: tuple[str, ...]
    # From its `config.json` to hints for `infer_parts`.
    hints: Callable[[dict], dict]
    # From our parts' configs to its `config.json` and `preprocessor_config.json`.
    config: Callable[[dict], dict]
    preprocessor_config: Callable[[dict], dict]
    # From our arrays to its tensors.
    tensors: Callable[[dict], dict]


class Family(NamedTuple):
    """Models that share the classes of their parts.

    `task` and `classes` are the names under which the classes of the task and of its parts are
    registered with Keras; an image encoder may be of several. `encoder_paths` is a regular
    expression for the beginning of the image encoder's variables. `infer_parts(shapes, hints)`
    gives the parts of the model that tensors of these shapes belong to, each with `registered_name`
    and `config`. `meta_rows(arrays)` is the table of the names in the original code, and
    `meta_extras(arrays)` gives tensors that this code asks for besides.
    """

    name: str
    task: str | None  # None for `SAMImageSegmenter`
    classes: dict[str, tuple[str, ...]]
    encoder_paths: str
    formats: tuple[Format, ...]
    infer_parts: Callable[[dict, dict], dict[str, dict[str, Any]]]
    meta_rows: Callable[[Iterable[str]], tuple]
    transformers: TransformersLayout | None = None
    meta_extras: Callable[[dict], dict] = lambda arrays: {}


def count_layers(names: Iterable[str], pattern: str) -> int:
    """How many layers of one kind there are, by the numbers in their names."""
    names = list(names)
    numbers = [int(m.group(1)) for m in (re.fullmatch(pattern, name) for name in names) if m]
    # The number is limited, lest a damaged name ask for millions. Missing names are reported later.
    return min(max(numbers, default=-1) + 1, len(names))


def check_ranks(shapes: dict, needs: dict[str, int]) -> None:
    """Raises a ValueError unless there are tensors of these names and ranks, and none is empty."""
    missing = sorted(name for name in needs if name not in shapes)
    if missing:
        raise ValueError(
            f"Tensors that the model's size is inferred from are missing: {', '.join(missing)}."
        )
    for name in sorted(needs):
        if len(shapes[name]) != needs[name] or 0 in shapes[name]:
            raise ValueError(
                f"`{name}` must have {needs[name]} axes, none of them empty. "
                f"Received: shape={tuple(shapes[name])}."
            )
