"""What other systems call images and prompts, for the errors about names that are not ours."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec, TypeVar

from keras_sam.prompts.nested import KEYS

# Decorated functions keep their signatures for type checkers.
P = ParamSpec("P")
R = TypeVar("R")

_OURS = {
    "images": "image img input_image input_images pixel_values inputs",
    "points": "point coords point_coords input_points input_point clicks",
    "labels": "label point_labels input_labels input_label",
    "boxes": "box bbox bboxes input_boxes input_box xyxy",
    "masks": "mask mask_input mask_inputs input_masks input_mask mask_prompt",
    "image_embeddings": "embedding embeddings image_embedding features",
    "original_sizes": "original_size image_size image_sizes",
    "segmenter": "model sam",
    "model_size": "segmenter model",
    "channel_order": "image_format",
    "mask_threshold": "threshold",
    "points_per_side": "points_per_crop",
    "x": "inputs data",
}


def unknown_names(name: str, unknown: Iterable[str], known: Sequence[str]) -> ValueError:
    """The error for keys of the dict `name` that mean nothing, with those that may be meant."""
    unknown = sorted(map(str, unknown))
    hints = meant_by(dict.fromkeys(unknown), known)
    return ValueError(
        f"`{name}` must have no keys but {tuple(known)}. Received also: {unknown}.{hints}"
    )


def is_other_name(name: str, known: Sequence[str]) -> bool:
    """Whether this is what another system calls one of `known`."""
    return any(str(name).lower() in _OURS.get(ours, "").split() for ours in known)


def meant_by(names: Any, known: Sequence[str]) -> str:
    """A sentence for each key of a dict that stands for one of ours; nothing for anything else."""
    keys = [*map(str, names)] if isinstance(names, dict) else []
    meant = {key: our_name(key, known) for key in keys}
    return "".join(f" Here {key!r} is {ours!r}." for key, ours in meant.items() if ours)


def our_name(name: str, known: Sequence[str]) -> str | None:
    """Which of our names is meant by one of another system, or by a misspelling."""
    for ours, theirs in _OURS.items():
        if ours in known and name.lower() in theirs.split():
            return ours
    return next(iter(difflib.get_close_matches(name.lower(), known, 1, 0.7)), None)


def refuses_unknown_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Has a function or method name the argument that is meant by an unknown keyword."""
    known = [name for name in inspect.signature(function).parameters if name != "self"]

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known:
                raise _unknown_argument(_called(function, args), name, known)
        return function(*args, **kwargs)

    return checked


def _called(function: Callable, args: Sequence[Any]) -> str:
    """What a function is called with: its name, or that of the class and the method."""
    if "." not in function.__qualname__ or not args:
        return function.__name__
    owner = type(args[0]).__name__
    return owner if function.__name__ == "__init__" else f"{owner}.{function.__name__}"


def _unknown_argument(called: str, name: str, known: Sequence[str]) -> TypeError:
    inside = next((argument for argument in ("x", "prompts") if argument in known), None)
    if ours := our_name(name, known):
        hint = f"; here it is `{ours}`."
    elif inside and (key := our_name(name, ("images", *KEYS))):
        hint = f"; here it is a key of the dict `{inside}`: `{{{key!r}: ...}}`."
    else:
        hint = f". It takes {', '.join(f'`{argument}`' for argument in known)}."
    return TypeError(f"`{called}` has no argument `{name}`{hint}")
