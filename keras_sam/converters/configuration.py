"""Reads the size of a model off the shapes of its tensors."""

import re

# What shapes cannot tell when a file has no tables of relative positions:
# (hidden_size, num_layers) of the released encoders, their heads and global blocks.
_RELEASED = {
    (768, 12): (12, (2, 5, 8, 11)),
    (1024, 24): (16, (5, 11, 17, 23)),
    (1280, 32): (16, (7, 15, 23, 31)),
}
# The tensors that tell the sizes, and their ranks.
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


def infer_config(shapes: dict, hints: dict | None = None) -> dict:
    """The constructor arguments of the model that tensors of these shapes belong to.

    Sizes come from shapes. Heads of the image encoder come from the width of its tables
    of relative positions, and which blocks see the whole image from those tables' lengths.
    A file without such tables has to be of a released size, or have a config beside it.
    The mask decoder's heads are in no shape: 8, as in all released models.

    Args:
        shapes: dict from our variable paths to shapes.
        hints: optional dict of parts, like the result, with what a config file says. It
            fills in what shapes cannot tell; shapes have the last word elsewhere.

    Returns:
        Dict with `image_encoder`, `prompt_encoder` and `mask_decoder`, each a dict of the
        constructor's arguments. Only `image_encoder` when the file has no other part.

    Raises:
        ValueError: if tensors that tell the sizes are missing or have impossible shapes.
    """
    hints = hints or {}
    needs = dict(_ENCODER_NEEDS)
    whole = any(name.startswith(("prompt_encoder/", "mask_decoder/")) for name in shapes)
    if whole:
        needs |= _OTHER_NEEDS
    missing = sorted(name for name in needs if name not in shapes)
    if missing:
        raise ValueError(f"Missing are tensors that tell the model's size: {', '.join(missing)}.")
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
    """The window's side, 0 when no block has one, and the blocks that see the whole image.

    When there are two sizes, blocks with tables of the grid's size are global, else those with
    the largest: the tables of global blocks may be of another size than the grid's, Meta's code
    interpolates them as it runs, we when they are loaded.
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


def _count(shapes, pattern):
    numbers = [int(m.group(1)) for m in (re.fullmatch(pattern, name) for name in shapes) if m]
    # A file with fewer names than this number would have is refused later, name by name.
    return min(max(numbers, default=-1) + 1, len(shapes))
