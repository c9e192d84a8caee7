"""Segment Anything's checkpoints: Meta's, transformers', KerasHub's, KerasCV's and our own."""

import re
from collections.abc import Sequence

from keras_sam.converters import keras_tables, torch_tables
from keras_sam.converters.family import (
    Family,
    Format,
    TransformersLayout,
    check_ranks,
    count_layers,
)
from keras_sam.converters.sam_transformers import (
    preprocessor_config,
    transformers_config,
    transformers_hints,
)
from keras_sam.converters.tables import Tensor, to_foreign

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
OTHER_NEEDS = {
    "prompt_encoder/no_mask_embed": 2,
    "prompt_encoder/mask_downscaler/conv2/kernel": 4,
    "mask_decoder/mask_tokens": 2,
    "mask_decoder/transformer/final_attention_token_to_image/query_proj/kernel": 2,
    "mask_decoder/transformer/layer_0/mlp/dense_0/kernel": 2,
    "mask_decoder/iou_prediction_head/dense_0/kernel": 2,
}


def meta_rows(_) -> tuple:
    """The table of Meta's names."""
    return torch_tables.META_ROWS


def infer_parts(shapes: dict, hints: dict | None = None) -> dict[str, dict]:
    """`infer_config`, with the classes of the parts."""
    config = infer_config(shapes, hints)
    return {
        name: {"registered_name": _CLASSES[name][0], "config": arguments}
        for name, arguments in config.items()
    }


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
        needs |= OTHER_NEEDS
    ranks = {name: 2 for name in shapes if re.fullmatch(r"block_\d+/attention/rel_pos_[hw]", name)}
    if "position_embedding/embeddings" in shapes:
        ranks["position_embedding/embeddings"] = 4
    check_ranks(shapes, {**needs, **ranks})
    encoder = image_encoder_config(shapes, hints.get("image_encoder", {}))
    config = {"image_encoder": encoder}
    if whole:
        config["prompt_encoder"] = prompt_encoder_config(
            shapes, encoder["image_shape"][:2], encoder["patch_size"], hints
        )
        config["mask_decoder"] = mask_decoder_config(shapes, hints)
    return config


def infer_others(shapes: dict, frame: Sequence[int], stride: int, hints: dict) -> dict[str, dict]:
    """The parts besides the image encoder, as `infer_parts` gives them; none if the file has none.

    Args:
        shapes: see `infer_config`.
        frame: the image encoder's frame `(H, W)`.
        stride: int. How many of its pixels a cell of the embedding has.
        hints: see `infer_config`.

    Raises:
        ValueError: see `infer_config`.
    """
    if not any(name.startswith(("prompt_encoder/", "mask_decoder/")) for name in shapes):
        return {}
    check_ranks(shapes, OTHER_NEEDS)
    configs = {
        "prompt_encoder": prompt_encoder_config(shapes, frame, stride, hints),
        "mask_decoder": mask_decoder_config(shapes, hints),
    }
    return {
        name: {"registered_name": _CLASSES[name][0], "config": config}
        for name, config in configs.items()
    }


def image_encoder_config(shapes: dict, hints: dict) -> dict:
    """The arguments of the `ViTDetBackbone` with these shapes."""
    patch, _, channels, hidden = shapes["patch_embedding/kernel"]
    layers = count_layers(shapes, r"block_(\d+)/.*")
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
                f"heads, and no released model has {layers} blocks of {hidden} channels. Make the "
                "model first, with `from_preset(folder, load_weights=False)` of a preset of its "
                "sizes or of the parts, and call `segmenter.load_checkpoint(path)`."
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


def prompt_encoder_config(shapes: dict, frame: Sequence[int], stride: int, hints: dict) -> dict:
    """The arguments of the `SAMPromptEncoder` with these shapes, for a frame `(H, W)`.

    `stride` is how many of its pixels a cell of the embedding has.
    """
    h, w = frame
    return {
        **hints.get("prompt_encoder", {}),
        "hidden_size": shapes["prompt_encoder/no_mask_embed"][-1],
        "image_embedding_size": [h // stride, w // stride],
        "input_image_size": [h, w],
        "mask_in_channels": shapes["prompt_encoder/mask_downscaler/conv2/kernel"][-1],
    }


def mask_decoder_config(shapes: dict, hints: dict) -> dict:
    """The arguments of the `SAMMaskDecoder` with these shapes."""
    masks, hidden = shapes["mask_decoder/mask_tokens"]
    attention = "mask_decoder/transformer/final_attention_token_to_image/query_proj/kernel"
    return {
        "num_heads": 8,
        **hints.get("mask_decoder", {}),
        "hidden_size": hidden,
        "num_layers": count_layers(shapes, r"mask_decoder/transformer/layer_(\d+)/.*"),
        "intermediate_dim": shapes["mask_decoder/transformer/layer_0/mlp/dense_0/kernel"][1],
        "embedding_dim": hidden,
        "num_multimask_outputs": masks - 1,
        "iou_head_depth": count_layers(shapes, r"mask_decoder/iou_prediction_head/dense_(\d+)/.*"),
        "iou_head_hidden_dim": shapes["mask_decoder/iou_prediction_head/dense_0/kernel"][1],
        "attention_downsample_rate": hidden // shapes[attention][1],
    }


def to_transformers(arrays: dict) -> dict[str, Tensor]:
    """Our variables under the names and in the layout of transformers' `SamModel`."""
    depth = count_layers(arrays, r".*iou_prediction_head/dense_(\d+)/kernel")
    tensors = to_foreign(arrays, torch_tables.transformers_rows(depth))
    tensors[torch_tables.TIED_POSITIONAL] = tensors[torch_tables.POSITIONAL]
    return tensors


_DECODER, _PROMPTS = torch_tables.DECODER_SIGNATURE, torch_tables.PROMPTS_SIGNATURE
_WITHOUT_ENCODER = (f"mask_decoder.{_DECODER}", f"prompt_encoder.{_PROMPTS}")


def _transformers_rows(tensors):
    inner = count_layers(tensors, r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\.weight")
    return torch_tables.transformers_rows(inner + 2)


_FORMATS = (
    Format("Meta", (torch_tables.META_SIGNATURE, *_WITHOUT_ENCODER), meta_rows),
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
    Format("Meta, mask decoder alone", (_DECODER,), meta_rows, add="mask_decoder."),
    Format("Meta, prompt encoder alone", (_PROMPTS,), meta_rows, add="prompt_encoder."),
    Format(
        "transformers, mask decoder alone", (_DECODER,), _transformers_rows, add="mask_decoder."
    ),
    Format(
        "transformers, prompt encoder alone", (_PROMPTS,), _transformers_rows, add="prompt_encoder."
    ),
)

_CLASSES = {
    "image_encoder": ("keras_sam>ViTDetBackbone",),
    "prompt_encoder": ("keras_sam>SAMPromptEncoder",),
    "mask_decoder": ("keras_sam>SAMMaskDecoder",),
}

FAMILY = Family(
    name="SAM",
    task=None,
    classes=_CLASSES,
    encoder_paths=r"(patch_embedding|position_embedding|block_\d+|neck_(conv|norm)\d)/",
    formats=_FORMATS,
    infer_parts=infer_parts,
    meta_rows=meta_rows,
    transformers=TransformersLayout(
        model_types=("sam", "sam_vision_model"),
        hints=transformers_hints,
        config=transformers_config,
        preprocessor_config=preprocessor_config,
        tensors=to_transformers,
    ),
)
