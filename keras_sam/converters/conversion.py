"""From a checkpoint's own names to a config and our variables, whoever wrote it."""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from keras_sam.converters import hugging_face, keras_cv, keras_hub, meta, own_keras
from keras_sam.converters.configuration import infer_config
from keras_sam.converters.tables import count_matches, to_foreign, to_ours
from keras_sam.converters.tensors import Tensor

# What other programs keep in a Keras file beside the model's weights.
KERAS_EXTRAS = (r"(.*/)?seed_generator(_\d+)?/.*", r"(.*/)?optimizer/.*", r"(.*/)?metrics?/.*")


class Format(NamedTuple):
    """A family of checkpoints.

    `signature` is a name that each such file has, perhaps after a wrapper's prefix;
    `add` is put before all names when `signature` is that of a part on its own.
    """

    name: str
    signature: str
    rows: Callable
    add: str = ""


FORMATS = (
    Format("Meta", meta.SIGNATURE, lambda arrays: meta.ROWS),
    Format("transformers", hugging_face.SIGNATURE, lambda arrays: _hugging_face_rows(arrays)),
    Format("KerasCV", keras_hub.SIGNATURE, lambda arrays: keras_cv.ROWS),
    Format("KerasHub", keras_hub.SIGNATURE, lambda arrays: keras_hub.ROWS),
    Format("keras_sam", "patch_embedding/kernel", lambda arrays: ()),
    Format("keras_sam, saved by Keras", own_keras.SIGNATURE, lambda arrays: own_keras.ROWS),
    Format(
        "Meta, image encoder alone",
        "patch_embed.proj.weight",
        lambda arrays: meta.ENCODER_ROWS,
        add="image_encoder.",
    ),
)

# Names that give other models away, for the error message.
_OTHERS = (
    (r".*\b(hf_token|hq_token)\b.*", "SAM-HQ"),
    (r".*patch_embed\.seq\..*", "MobileSAM (TinyViT)"),
    (r".*(image_encoder\.trunk\.|sam_mask_decoder\.|memory_attention\.).*", "SAM 2"),
    (r".*(vision_encoder\.backbone\.|memory_encoder\.).*", "transformers' SAM 2"),
    (r".*(detector\.|vision_backbone\.).*", "SAM 3"),
    (r".*adapter.*", "a SAM with adapters"),
    (r".*\b(lora_[aAbB]|linear_[ab]_[qv]).*", "LoRA weights that are not merged"),
    (r"(model\.)?(cls_token|blocks\.0\.attn\.qkv\.weight)", "a plain vision transformer"),
    (r".*embeddings\.cls_token", "a plain vision transformer of transformers"),
)


def convert(tensors: dict, hints: dict | None = None) -> tuple[dict, dict[str, Tensor]]:
    """Turns a checkpoint's tensors into a model's arguments and our variables.

    No values are read. Tensors that belong to no variable keep their own name in the
    result, so that whoever assigns it can report them.

    Args:
        tensors: dict from the file's names to tensors or arrays.
        hints: optional dict, see `infer_config`.

    Returns:
        Tuple of the config, see `infer_config`, and a dict from our paths to tensors.

    Raises:
        ValueError: if these are not the tensors of a SAM; the message says what they look
            like.

    Example:

    ```python
    from keras_sam import converters

    tensors = converters.read_checkpoint("sam_vit_b_01ec64.pth")
    config, arrays = converters.convert(tensors)
    config["image_encoder"]["num_heads"]  # of ViT-B: 12 for ViT-B
    ```
    """
    arrays, statistics = rename(tensors)
    try:
        config = infer_config({name: array.shape for name, array in arrays.items()}, hints)
    except ValueError as error:
        raise ValueError(f"It is not a complete SAM. {error} {looks_like(tensors)}") from error
    config["image_encoder"].update(statistics)
    return config, arrays


def rename(tensors: dict) -> tuple[dict[str, Tensor], dict]:
    """The first half of `convert`: our variables, and the pixel statistics in the file if any.

    Raises:
        ValueError: if these are the names of nothing that we know.
    """
    known, prefix = _recognise(tensors)
    if known is None:
        raise ValueError(_not_sam(tensors))
    tensors = _without_prefix(tensors, prefix, known.add)
    statistics = meta.pixel_statistics(tensors)
    arrays = to_ours(_one_positional(tensors), known.rows(tensors))
    extras = [re.compile(pattern) for pattern in KERAS_EXTRAS]
    arrays = {k: v for k, v in arrays.items() if not any(p.fullmatch(k) for p in extras)}
    return arrays, statistics


def format_of(tensors: dict) -> str | None:
    """The name of the family a checkpoint belongs to, or None."""
    known, _ = _recognise(tensors)
    return known and known.name


def looks_like(tensors) -> str:
    """A sentence about what a file with these names seems to be; empty when nothing fits."""
    for pattern, title in _OTHERS:
        if any(re.fullmatch(pattern, name) for name in tensors):
            return f"Its names look like {title}."
    return ""


def to_meta(arrays: dict) -> dict[str, Tensor]:
    """Our variables under the names and in the layout of Meta's code."""
    return to_foreign(arrays, meta.ROWS)


def to_hugging_face(arrays: dict) -> dict[str, Tensor]:
    """Our variables under the names and in the layout of transformers' `SamModel`."""
    depth = 1 + max(
        int(m.group(1))
        for m in (re.fullmatch(r".*iou_prediction_head/dense_(\d+)/kernel", n) for n in arrays)
        if m
    )
    tensors = to_foreign(arrays, hugging_face.rows(depth))
    tensors[hugging_face.TIED_POSITIONAL] = tensors[hugging_face.POSITIONAL]
    return tensors


def _recognise(tensors):
    """The format that knows most of the names, and the prefix that its names have here."""
    best = (0, None, "")
    for known in FORMATS:
        prefix = _prefix(tensors, known.signature)
        if prefix is None:
            continue
        names = _without_prefix(tensors, prefix, known.add)
        rows = known.rows(names)
        matches = count_matches(names, rows) if rows else len(names)
        if matches > best[0]:
            best = (matches, known, prefix)
    return best[1:]


def _prefix(tensors, signature):
    """What stands before the signature: `module.`, `backbone/`, nothing; None if it is absent."""
    endings = [
        n for n in tensors if n == signature or re.fullmatch(r".*[./]", _before(n, signature))
    ]
    if not endings:
        return None
    return _before(min(endings, key=len), signature)


def _before(name, signature):
    return name[: -len(signature)] if name.endswith(signature) else ""


def _without_prefix(tensors, prefix, add):
    return {
        add + name[len(prefix) :] if name.startswith(prefix) else name: tensor
        for name, tensor in tensors.items()
    }


def _hugging_face_rows(tensors):
    inner = [
        int(m.group(1))
        for m in (
            re.fullmatch(r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\.weight", name)
            for name in tensors
        )
        if m
    ]
    return hugging_face.rows(max(inner, default=-1) + 3)


def _one_positional(tensors):
    """Keeps one of the two names of transformers' positional matrix, which must be equal."""
    tied, first = hugging_face.TIED_POSITIONAL, hugging_face.POSITIONAL
    if tied not in tensors:
        return tensors
    tensors = dict(tensors)
    copy = tensors.pop(tied)
    if first not in tensors:
        tensors[first] = copy
    elif not np.array_equal(np.asarray(tensors[first]), np.asarray(copy)):
        raise ValueError(f"Its tensors {first!r} and {tied!r} differ, but are one in a SAM.")
    return tensors


def _not_sam(tensors):
    names = sorted(tensors)
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    guess = looks_like(tensors) or "Its names look like no SAM that this package knows."
    wanted = ", ".join(f"{known.signature!r} ({known.name})" for known in FORMATS)
    return f"{guess} None of these is there: {wanted}. Its tensors are: {shown or 'none'}."
