"""From a checkpoint's tensors, in any known format, to a model's parts and our variables."""

import re
from typing import NamedTuple

import numpy as np

from keras_sam.converters import mobile_sam, sam, sam2, sam_hq, torch_tables
from keras_sam.converters.family import PARTS, Family
from keras_sam.converters.tables import (
    Tensor,
    count_matches,
    is_average,
    several_models,
    to_foreign,
    to_ours,
)

# Where names fit several families, the first one counts: special ones come first.
FAMILIES = (sam2.FAMILY, sam_hq.FAMILY, mobile_sam.FAMILY, sam.FAMILY)
_FORMATS = tuple((family, known) for family in FAMILIES for known in family.formats)

# What other programs store in a Keras file besides the model's weights.
KERAS_EXTRAS = (r"(.*/)?seed_generator(_\d+)?/.*", r"(.*/)?optimizer/.*", r"(.*/)?metrics?/.*")


# Names by which other models are recognised, for the error message.
_OTHERS = (
    (r".*\b(hf_token|hq_token)\b.*", "SAM-HQ"),
    (r".*(image_encoder\.trunk\.|sam_mask_decoder\.|object_score_token).*", "SAM 2"),
    (r"patch_embedding_conv1/.*", "MobileSAM"),
    (r".*vision_encoder\.backbone\..*", "transformers' SAM 2"),
    (r".*memory_(attention|encoder)\..*", "SAM 2's memory for videos without its image model"),
    (r".*(detector\.|vision_backbone\.).*", "SAM 3"),
    (r".*final_output_upscaling_layers\..*", "EfficientSAM, which has another decoder"),
    (
        r"(model\.)+\d+\.(cv\d\.)?conv\.weight",
        "a YOLO model of ultralytics, as FastSAM is: a detector of masks without prompts, no SAM",
    ),
    (r".*adapter.*", "a SAM with adapters"),
    (
        r".*\.lora_[AB]\..*",
        "LoRA weights of peft that are not merged (`lora_A`, `lora_B`). Merge them where the model "
        "was trained, `model = model.merge_and_unload()`, and save the state dict of that",
    ),
    (
        r".*\.lora_[AB]",
        "LoRA weights of loralib (`lora_A`, `lora_B`). `model.eval()` merges them: save the state "
        'dict after it, and load that with `ignore=[r".*lora_[AB]"]`',
    ),
    (
        r".*(linear_[ab]_[qv]|\bw_[ab]_(linear_[qv]|\d+)).*",
        "LoRA weights around `qkv` that are not merged. Add their products to the rows of q and v, "
        "`w[:C] += b_q @ a_q` and `w[-C:] += b_v @ a_v` with `w` of shape (3 C, C), and save the "
        "result as `attn.qkv.weight`, with the other weights of the model",
    ),
    (r".*\b[lL]o[rR][aA].*", "LoRA weights that are not merged"),
    (r"(model\.)?(cls_token|blocks\.0\.attn\.qkv\.weight)", "a plain vision transformer"),
    (r".*embeddings\.cls_token", "a plain vision transformer of transformers"),
)


class Renamed(NamedTuple):
    """A checkpoint's tensors under our names."""

    family: Family
    arrays: dict[str, Tensor]
    statistics: dict[str, list[float]]  # `pixel_mean` and `pixel_std`, if the file has them


def convert(tensors: dict, hints: dict | None = None) -> tuple[Family, dict, dict[str, Tensor]]:
    """Turns a checkpoint's tensors into a model's parts and our variables.

    No values are read. Tensors that belong to no variable keep their own name in the
    result, so that they can be reported when it is assigned.

    Args:
        tensors: dict from the file's names to tensors or arrays.
        hints: optional dict of the parts' arguments from a config file. It is used where shapes
            do not decide; otherwise shapes win.

    Returns:
        Tuple of the model's `Family`; a dict of its parts, each a dict of `registered_name` and
        `config`, with `image_encoder` alone when the file has no other part; and a dict from our
        paths to tensors.

    Raises:
        ValueError: if these are not the tensors of a model that this package knows; the message
            says what they seem to be.

    Example:

    ```python
    from keras_sam import converters

    tensors = converters.read_checkpoint("sam_vit_b_01ec64.pth")
    family, parts, arrays = converters.convert(tensors)
    parts["image_encoder"]["config"]["num_heads"]  # 12 for ViT-B
    ```
    """
    family, arrays, statistics = rename(tensors)
    lacking = [part for part in PARTS if part not in set(map(part_of, arrays))]
    if lacking not in ([], ["prompt_encoder", "mask_decoder"], list(PARTS)):  # or an encoder alone
        held = " and ".join(f"`{part}`" for part in PARTS if part not in lacking)
        kept = ", ".join(f'"{part}/.*"' for part in lacking if part != "image_encoder")
        how = f"keep=[{kept}]" if "image_encoder" not in lacking else f"part={held.split('`')[1]!r}"
        raise ValueError(
            f"It holds {held} alone. Load the model that was trained, and then this file with "
            f"`segmenter.load_checkpoint(path, {how})`."
        )
    try:
        shapes = {name: array.shape for name, array in arrays.items()}
        parts = family.infer_parts(shapes, hints or {})
    except ValueError as error:
        raise ValueError(
            f"It is not a complete {family.name}. {error} {looks_like(tensors)}"
        ) from error
    parts["image_encoder"]["config"].update(statistics)
    return family, parts, arrays


def rename(tensors: dict) -> Renamed:
    """The first step of `convert`: our variables, but no arguments yet.

    Raises:
        ValueError: if the names belong to no known format.
    """
    family, known, prefixes = _recognise(tensors)
    if known is None:
        raise ValueError(_not_sam(tensors))
    prefix, *others = prefixes
    if others:
        several_models("The checkpoint", prefix[:-1], others[0][:-1])
        others = tuple(other for other in others if not prefix.startswith(other))
        tensors = {k: v for k, v in tensors.items() if not k.startswith(others)}
    tensors = _without_prefix(tensors, prefix, known.add)
    statistics = _pixel_statistics(tensors)
    arrays = to_ours(known.prepare(_one_positional(tensors)), known.rows(tensors))
    ignored = [re.compile(pattern) for pattern in (*KERAS_EXTRAS, *known.ignore)]
    arrays = {k: v for k, v in arrays.items() if not any(p.fullmatch(k) for p in ignored)}
    return Renamed(family, arrays, statistics)


def part_of(path: str) -> str | None:
    """The part of a model that a variable's path belongs to, or None."""
    if path.startswith(("prompt_encoder/", "mask_decoder/")):
        return path.split("/")[0]
    is_encoder = any(re.match(family.encoder_paths, path) for family in FAMILIES)
    return "image_encoder" if is_encoder else None


def family_of(parts: dict) -> Family | None:
    """The family of a `Preset`'s parts, by their classes; None if they are of other classes."""
    for family in FAMILIES:
        if all(part["registered_name"] in family.classes[name] for name, part in parts.items()):
            return family
    return None


def format_of(tensors: dict) -> str | None:
    """The name of a checkpoint's format, or None."""
    _, known, _ = _recognise(tensors)
    return known and known.name


def looks_like(tensors) -> str:
    """A sentence on which other model these names seem to belong to; empty if none is known."""
    for pattern, title in _OTHERS:
        if any(re.fullmatch(pattern, name) for name in tensors):
            return f"Its names look like {title}."
    return ""


def to_meta(arrays: dict, family: Family = sam.FAMILY) -> dict[str, Tensor]:
    """Our variables under the names and in the layout of the original code."""
    return to_foreign(arrays, family.meta_rows(arrays)) | family.meta_extras(arrays)


def _recognise(tensors):
    """The family and format that match most names, and their prefixes.

    The model's own prefix comes before those of averages.
    """
    best = (0, None, None, ())
    for family, known in _FORMATS:
        prefixes = next(filter(None, (_prefixes(tensors, s) for s in known.signatures)), None)
        if prefixes is None:
            continue
        prefix = prefixes[0]
        names = _without_prefix(tensors, prefix, known.add)
        rows = known.rows(names)
        matches = count_matches(names, rows) if rows else len(names)
        if matches > best[0]:
            best = (matches, family, known, prefixes)
    return best[1:]


def _prefixes(tensors, signature):
    """What precedes the signature, such as `module.` or nothing, one for each model in the file."""
    matches = (re.fullmatch(rf"((?:.*[./])?){re.escape(signature)}", name) for name in tensors)
    found = {match.group(1) for match in matches if match}
    return sorted(found, key=lambda prefix: (is_average(prefix), len(prefix)))


def _without_prefix(tensors, prefix, add):
    return {
        add + name[len(prefix) :] if name.startswith(prefix) else name: tensor
        for name, tensor in tensors.items()
    }


def _one_positional(tensors):
    """Keeps one of transformers' two names for the positional matrix, whose values must agree."""
    tied, first = torch_tables.TIED_POSITIONAL, torch_tables.POSITIONAL
    if tied not in tensors:
        return tensors
    tensors = dict(tensors)
    copy = tensors.pop(tied)
    if first not in tensors:
        tensors[first] = copy
    elif not np.array_equal(np.asarray(tensors[first]), np.asarray(copy)):
        raise ValueError(f"Its tensors {first!r} and {tied!r} differ, but are one tensor in a SAM.")
    return tensors


def _not_sam(tensors):
    names = sorted(tensors)
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    guess = looks_like(tensors) or "Its names look like no SAM that this package knows."
    wanted = ", ".join(f"{known.signatures[0]!r} ({known.name})" for _, known in _FORMATS)
    return f"{guess} It has none of these: {wanted}. Its tensors are: {shown or 'none'}."


def _pixel_statistics(tensors: dict) -> dict:
    """Takes `pixel_mean` and `pixel_std` out of a file's tensors, as lists of floats.

    Meta's own files lack these buffers, but code that makes them persistent saves them.
    """
    found = {}
    for name in ("pixel_mean", "pixel_std"):
        if name in tensors:
            found[name] = [float(v) for v in np.asarray(tensors.pop(name)).reshape(-1)]
    return found
