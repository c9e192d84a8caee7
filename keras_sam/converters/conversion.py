"""From a checkpoint's tensors, in any known format, to a config and our variables."""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from keras_sam.converters import keras_tables, torch_tables
from keras_sam.converters.tables import (
    Tensor,
    count_matches,
    is_average,
    several_models,
    to_foreign,
    to_ours,
)

# What other programs store in a Keras file besides the model's weights.
KERAS_EXTRAS = (r"(.*/)?seed_generator(_\d+)?/.*", r"(.*/)?optimizer/.*", r"(.*/)?metrics?/.*")


class Format(NamedTuple):
    """A family of checkpoints.

    Every such file has one of the tensors in `signatures`, perhaps after a wrapper's prefix.
    `add` is put before all names of a file that holds only a part of the model.
    """

    name: str
    signatures: tuple[str, ...]
    rows: Callable
    add: str = ""


_DECODER, _PROMPTS = torch_tables.DECODER_SIGNATURE, torch_tables.PROMPTS_SIGNATURE
_WITHOUT_ENCODER = (f"mask_decoder.{_DECODER}", f"prompt_encoder.{_PROMPTS}")


def _meta_rows(_):
    return torch_tables.META_ROWS


def _transformers_rows(tensors):
    inner = _count(tensors, r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\.weight")
    return torch_tables.transformers_rows(inner + 2)


FORMATS = (
    Format("Meta", (torch_tables.META_SIGNATURE, *_WITHOUT_ENCODER), _meta_rows),
    Format(
        "transformers",
        (torch_tables.TRANSFORMERS_SIGNATURE, *_WITHOUT_ENCODER),
        _transformers_rows,
    ),
    Format("KerasCV", (keras_tables.KERAS_HUB_SIGNATURE,), lambda _: keras_tables.KERAS_CV_ROWS),
    Format("KerasHub", (keras_tables.KERAS_HUB_SIGNATURE,), lambda _: keras_tables.KERAS_HUB_ROWS),
    Format("keras_sam", ("patch_embedding/kernel",), lambda _: ()),
    Format(
        "keras_sam, saved by Keras", (keras_tables.OWN_SIGNATURE,), lambda _: keras_tables.OWN_ROWS
    ),
    Format(
        "Meta, image encoder alone",
        (torch_tables.ENCODER_SIGNATURE,),
        lambda _: torch_tables.ENCODER_ROWS,
        add="image_encoder.",
    ),
    Format("Meta, mask decoder alone", (_DECODER,), _meta_rows, add="mask_decoder."),
    Format("Meta, prompt encoder alone", (_PROMPTS,), _meta_rows, add="prompt_encoder."),
    Format(
        "transformers, mask decoder alone", (_DECODER,), _transformers_rows, add="mask_decoder."
    ),
    Format(
        "transformers, prompt encoder alone", (_PROMPTS,), _transformers_rows, add="prompt_encoder."
    ),
)

# Names by which other models are recognised, for the error message.
_OTHERS = (
    (r".*\b(hf_token|hq_token)\b.*", "SAM-HQ"),
    (r".*patch_embed\.seq\..*", "MobileSAM (TinyViT)"),
    (r".*(image_encoder\.trunk\.|sam_mask_decoder\.|memory_attention\.).*", "SAM 2"),
    (r".*(vision_encoder\.backbone\.|memory_encoder\.).*", "transformers' SAM 2"),
    (r".*(detector\.|vision_backbone\.).*", "SAM 3"),
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

# Shapes alone do not determine the heads if a file has no tables of relative positions. So here are
# (hidden_size, num_layers) of the released encoders, with their heads and global blocks.
_RELEASED = {
    (768, 12): (12, (2, 5, 8, 11)),
    (1024, 24): (16, (5, 11, 17, 23)),
    (1280, 32): (16, (7, 15, 23, 31)),
}
# The tensors that sizes are inferred from, and their ranks.
_ENCODER_NEEDS = {
    "patch_embedding/kernel": 4,
    "block_0/mlp/dense_0/kernel": 2,
    "neck_conv1/kernel": 4,
}
_OTHER_NEEDS = {
    "prompt_encoder/no_mask_embed": 2,
    "prompt_encoder/mask_downscaler/conv2/kernel": 4,
    "mask_decoder/mask_tokens": 2,
    "mask_decoder/transformer/final_attention_token_to_image/query_proj/kernel": 2,
    "mask_decoder/transformer/layer_0/mlp/dense_0/kernel": 2,
    "mask_decoder/iou_prediction_head/dense_0/kernel": 2,
}


def convert(tensors: dict, hints: dict | None = None) -> tuple[dict, dict[str, Tensor]]:
    """Turns a checkpoint's tensors into a model's arguments and our variables.

    No values are read. Tensors that belong to no variable keep their own name in the
    result, so that they can be reported when it is assigned.

    Args:
        tensors: dict from the file's names to tensors or arrays.
        hints: optional dict, see `infer_config`.

    Returns:
        Tuple of the config, see `infer_config`, and a dict from our paths to tensors.

    Raises:
        ValueError: if these are not the tensors of a SAM; the message says what they seem to
            be.

    Example:

    ```python
    from keras_sam import converters

    tensors = converters.read_checkpoint("sam_vit_b_01ec64.pth")
    config, arrays = converters.convert(tensors)
    config["image_encoder"]["num_heads"]  # of ViT-B: 12 for ViT-B
    ```
    """
    arrays, statistics = rename(tensors)
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
        config = infer_config({name: array.shape for name, array in arrays.items()}, hints)
    except ValueError as error:
        raise ValueError(f"It is not a complete SAM. {error} {looks_like(tensors)}") from error
    config["image_encoder"].update(statistics)
    return config, arrays


def rename(tensors: dict) -> tuple[dict[str, Tensor], dict]:
    """The first step of `convert`: our variables, and the file's pixel statistics if it has any.

    Raises:
        ValueError: if the names belong to no known format.
    """
    known, prefixes = _recognise(tensors)
    if known is None:
        raise ValueError(_not_sam(tensors))
    prefix, *others = prefixes
    if others:
        several_models("The checkpoint", prefix[:-1], others[0][:-1])
        others = tuple(other for other in others if not prefix.startswith(other))
        tensors = {k: v for k, v in tensors.items() if not k.startswith(others)}
    tensors = _without_prefix(tensors, prefix, known.add)
    statistics = _pixel_statistics(tensors)
    arrays = to_ours(_one_positional(tensors), known.rows(tensors))
    extras = [re.compile(pattern) for pattern in KERAS_EXTRAS]
    arrays = {k: v for k, v in arrays.items() if not any(p.fullmatch(k) for p in extras)}
    return arrays, statistics


# The parts of a SAM, and what the paths of their variables start with.
PARTS = {
    "image_encoder": r"(patch_embedding|position_embedding|block_\d+|neck_(conv|norm)\d)/",
    "prompt_encoder": "prompt_encoder/",
    "mask_decoder": "mask_decoder/",
}


def part_of(path: str) -> str | None:
    """The part of a SAM that a variable's path belongs to, or None."""
    return next((part for part, start in PARTS.items() if re.match(start, path)), None)


def format_of(tensors: dict) -> str | None:
    """The name of a checkpoint's format, or None."""
    known, _ = _recognise(tensors)
    return known and known.name


def looks_like(tensors) -> str:
    """A sentence on which other model these names seem to belong to; empty if none is known."""
    for pattern, title in _OTHERS:
        if any(re.fullmatch(pattern, name) for name in tensors):
            return f"Its names look like {title}."
    return ""


def to_meta(arrays: dict) -> dict[str, Tensor]:
    """Our variables under the names and in the layout of Meta's code."""
    return to_foreign(arrays, torch_tables.META_ROWS)


def to_hugging_face(arrays: dict) -> dict[str, Tensor]:
    """Our variables under the names and in the layout of transformers' `SamModel`."""
    depth = _count(arrays, r".*iou_prediction_head/dense_(\d+)/kernel")
    tensors = to_foreign(arrays, torch_tables.transformers_rows(depth))
    tensors[torch_tables.TIED_POSITIONAL] = tensors[torch_tables.POSITIONAL]
    return tensors


def _recognise(tensors):
    """The format that matches most names, and their prefixes, the model's own before averages."""
    best = (0, None, ())
    for known in FORMATS:
        prefixes = next(filter(None, (_prefixes(tensors, s) for s in known.signatures)), None)
        if prefixes is None:
            continue
        prefix = prefixes[0]
        names = _without_prefix(tensors, prefix, known.add)
        rows = known.rows(names)
        matches = count_matches(names, rows) if rows else len(names)
        if matches > best[0]:
            best = (matches, known, prefixes)
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
    wanted = ", ".join(f"{known.signatures[0]!r} ({known.name})" for known in FORMATS)
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


def infer_config(shapes: dict, hints: dict | None = None) -> dict:
    """The constructor arguments of the model that tensors of these shapes belong to.

    Sizes come from shapes. The image encoder's heads follow from the width of its tables of
    relative positions, and its global blocks from the length of these tables. A file without
    such tables must be of a released size, or have a config beside it. No shape depends on the
    mask decoder's heads: they are 8, as in all released models.

    Args:
        shapes: dict from our variable paths to shapes.
        hints: optional dict of parts, like the result, from a config file. It is used where
            shapes do not decide; otherwise shapes win.

    Returns:
        Dict with `image_encoder`, `prompt_encoder` and `mask_decoder`, each a dict of the
        constructor's arguments. Only `image_encoder` when the file has no other part.

    Raises:
        ValueError: if tensors that sizes are inferred from are missing or have impossible
            shapes.
    """
    hints = hints or {}
    needs = dict(_ENCODER_NEEDS)
    whole = any(name.startswith(("prompt_encoder/", "mask_decoder/")) for name in shapes)
    if whole:
        needs |= _OTHER_NEEDS
    missing = sorted(name for name in needs if name not in shapes)
    if missing:
        raise ValueError(
            f"Tensors that the model's size is inferred from are missing: {', '.join(missing)}."
        )
    ranks = {**needs, "position_embedding/embeddings": 4}
    ranks |= {name: 2 for name in shapes if re.fullmatch(r"block_\d+/attention/rel_pos_[hw]", name)}
    for name in sorted(ranks.keys() & shapes.keys()):
        if len(shapes[name]) != ranks[name] or 0 in shapes[name]:
            raise ValueError(
                f"`{name}` must have {ranks[name]} axes, none of them empty. "
                f"Received: shape={tuple(shapes[name])}."
            )
    encoder = _image_encoder(shapes, hints.get("image_encoder", {}))
    config = {"image_encoder": encoder}
    if whole:
        config["prompt_encoder"] = _prompt_encoder(shapes, encoder, hints)
        config["mask_decoder"] = _mask_decoder(shapes, hints)
    return config


def _image_encoder(shapes, hints):
    patch, _, channels, hidden = shapes["patch_embedding/kernel"]
    layers = _count(shapes, r"block_(\d+)/.*")
    grid = shapes.get("position_embedding/embeddings", (0, 0, 0, 0))[1:3]
    use_abs_pos = "position_embedding/embeddings" in shapes
    tables = [_table_sizes(shapes, i) for i in range(layers)]
    use_rel_pos = None not in tables and layers > 0
    if not use_abs_pos:
        grid = _grid_without_positions(tables, hints, patch)
    config = {
        **hints,
        "hidden_size": hidden,
        "num_layers": layers,
        "intermediate_dim": shapes["block_0/mlp/dense_0/kernel"][1],
        "image_shape": [grid[0] * patch, grid[1] * patch, channels],
        "patch_size": patch,
        "num_output_channels": shapes["neck_conv1/kernel"][-1],
        "use_bias": "block_0/attention/qkv/bias" in shapes,
        "use_abs_pos": use_abs_pos,
        "use_rel_pos": use_rel_pos,
    }
    if use_rel_pos:
        width = shapes["block_0/attention/rel_pos_h"][1]
        window, global_layers = _windows(tables, tuple(grid))
        config["num_heads"] = hidden // width
        config["global_attention_layer_indices"] = global_layers
        if window or "window_size" not in config:
            config["window_size"] = window or 14
    elif "num_heads" not in hints:
        if (hidden, layers) not in _RELEASED:
            raise ValueError(
                "The file has no tables of relative positions, which would tell the number of "
                f"heads, and no released model has {layers} blocks of {hidden} channels. Put a "
                "config.json with the number of heads beside it, or load it into a model that "
                "you have built."
            )
        heads, global_layers = _RELEASED[hidden, layers]
        config["num_heads"] = heads
        config["global_attention_layer_indices"] = list(global_layers)
    return config


def _table_sizes(shapes, i):
    """Cells `(h, w)` that block i's tables of relative positions were made for, or None."""
    rows = [shapes.get(f"block_{i}/attention/rel_pos_{axis}") for axis in "hw"]
    if None in rows:
        return None
    return tuple((r[0] + 1) // 2 for r in rows)


def _grid_without_positions(tables, hints, patch):
    if tables and None not in tables:
        return max(tables)
    size = hints.get("image_shape", (1024, 1024))
    return size[0] // patch, size[1] // patch


def _windows(tables, grid):
    """The window's side, 0 if no block has windows, and the blocks that see the whole image.

    If the tables have two sizes, blocks with tables of the grid's size are global; if neither is
    the grid's, those with the larger tables are. That happens because global blocks may have
    tables for another image size: Meta's code interpolates them at run time, we do so on loading.
    """
    sizes = sorted(set(tables))
    if sizes[0] == grid:  # a window may be larger than a small image
        sizes.reverse()
    if len(sizes) > 2 or (len(sizes) == 2 and sizes[0][0] != sizes[0][1]):
        raise ValueError(
            f"Its tables of relative positions have the sizes {sizes}: one for windows, which "
            "are square, and one for the whole image were expected."
        )
    if len(sizes) == 2:
        window, whole = sizes
        return window[0], [i for i, size in enumerate(tables) if size == whole]
    (size,) = sizes
    if size == grid or size[0] != size[1] or size[0] > max(grid):
        return 0, list(range(len(tables)))
    return size[0], []


def _prompt_encoder(shapes, encoder, hints):
    h, w, _ = encoder["image_shape"]
    patch = encoder["patch_size"]
    return {
        **hints.get("prompt_encoder", {}),
        "hidden_size": shapes["prompt_encoder/no_mask_embed"][-1],
        "image_embedding_size": [h // patch, w // patch],
        "input_image_size": [h, w],
        "mask_in_channels": shapes["prompt_encoder/mask_downscaler/conv2/kernel"][-1],
    }


def _mask_decoder(shapes, hints):
    masks, hidden = shapes["mask_decoder/mask_tokens"]
    attention = "mask_decoder/transformer/final_attention_token_to_image/query_proj/kernel"
    return {
        "num_heads": 8,
        **hints.get("mask_decoder", {}),
        "hidden_size": hidden,
        "num_layers": _count(shapes, r"mask_decoder/transformer/layer_(\d+)/.*"),
        "intermediate_dim": shapes["mask_decoder/transformer/layer_0/mlp/dense_0/kernel"][1],
        "embedding_dim": hidden,
        "num_multimask_outputs": masks - 1,
        "iou_head_depth": _count(shapes, r"mask_decoder/iou_prediction_head/dense_(\d+)/.*"),
        "iou_head_hidden_dim": shapes["mask_decoder/iou_prediction_head/dense_0/kernel"][1],
        "attention_downsample_rate": hidden // shapes[attention][1],
    }


def _count(names, pattern):
    """How many layers of one kind there are, by the numbers in their names."""
    numbers = [int(m.group(1)) for m in (re.fullmatch(pattern, name) for name in names) if m]
    # The number is limited, lest a damaged name ask for millions. Missing names are reported later.
    return min(max(numbers, default=-1) + 1, len(names))
