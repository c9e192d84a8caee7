"""The names in SAM 2's checkpoints: Meta's and transformers', for SAM 2 and SAM 2.1 alike.

Both are of a model for videos, whose memory of earlier frames no image needs: those weights are
known by name and left out. What is written from a model of ours lacks them, so that programs for
videos refuse it; transformers' `Sam2Model` takes it. Of SAM 2 and SAM 2.1 only the memories differ.

Source:
    https://github.com/facebookresearch/sam2, as PyPI sam2 1.1.0;
    https://github.com/huggingface/transformers at v5.23.0, models/sam2 and models/sam2_video.
"""

import numpy as np

from keras_sam.converters import keras_tables, sam, sam2_transformers, torch_tables
from keras_sam.converters.family import Family, Format, check_ranks, count_layers
from keras_sam.converters.tables import (
    Layout,
    Row,
    Tensor,
    keras_rows,
    to_foreign,
    torch_rows,
)

# Names that every such file has; anything before them is a wrapper's prefix.
_META_SIGNATURE = "image_encoder.trunk.patch_embed.proj.weight"
_TRANSFORMERS_SIGNATURE = "vision_encoder.backbone.patch_embed.projection.weight"
_DECODER_SIGNATURE = "obj_score_token.weight"
_OWN_SIGNATURE = "position_embedding/background"
_SAVED_SIGNATURE = "layers/hiera_block/norm1/vars/0"

# The weights of the memory, in Meta's files and in transformers'.
MEMORY = (
    r"memory_(attention|encoder)\..*",
    r"mask_downsample\..*",
    r"obj_ptr(_tpos)?_proj\..*",
    r"maskmem_tpos_enc",
    r"no_mem_pos_enc",
    r"no_obj_(ptr|embed_spatial)",
    r"object_pointer_proj\..*",
    r"temporal_positional_encoding_projection_layer\..*",
    r"memory_temporal_positional_encoding",
    r"no_memory_positional_encoding",
    r"no_object_pointer",
    r"occlusion_spatial_embedding_parameter",
)

_TRUNK, _BACKBONE = "image_encoder.trunk.", "vision_encoder.backbone."
# Our name, the kind of layer, Meta's name, transformers' name, the one that Keras saves.
_ENCODER = (
    (
        "patch_embedding",
        "conv",
        f"{_TRUNK}patch_embed.proj",
        f"{_BACKBONE}patch_embed.projection",
        "layers/conv2d",
    ),
    *(
        (
            f"block_{{i}}/{ours}",
            kind,
            f"{_TRUNK}blocks.{{i}}.{meta}",
            f"{_BACKBONE}blocks.{{i}}.{transformers}",
            f"layers/hiera_block{{_i}}/{saved}",
        )
        for ours, kind, meta, transformers, saved in (
            ("norm1", "norm", "norm1", "layer_norm1", "norm1"),
            ("attention/qkv", "dense", "attn.qkv", "attn.qkv", "attention/qkv"),
            ("attention/projection", "dense", "attn.proj", "attn.proj", "attention/projection"),
            ("shortcut", "dense", "proj", "proj", "shortcut"),
            ("norm2", "norm", "norm2", "layer_norm2", "norm2"),
            ("mlp/dense_0", "dense", "mlp.layers.0", "mlp.proj_in", "mlp/dense_layers/dense"),
            ("mlp/dense_1", "dense", "mlp.layers.1", "mlp.proj_out", "mlp/dense_layers/dense_1"),
        )
    ),
    # They count the maps from the coarsest, we from the finest.
    *(
        (
            f"neck/conv_{i}",
            "conv",
            f"image_encoder.neck.convs.{3 - i}.conv",
            f"vision_encoder.neck.convs.{3 - i}",
            f"layers/feature_pyramid/convs/conv2d{f'_{i}' if i else ''}",
        )
        for i in range(4)
    ),
    *(
        (
            f"neck/high_res_conv_{i}",
            "conv",
            f"sam_mask_decoder.conv_s{i}",
            f"mask_decoder.conv_s{i}",
            f"layers/feature_pyramid/high_res_convs/conv2d{f'_{i}' if i else ''}",
        )
        for i in range(2)
    ),
    (
        "neck/no_memory_embedding",
        "tensor",
        "no_mem_embed",
        "no_memory_embedding",
        "layers/feature_pyramid/vars/0",
    ),
)
_CHANNELS_FIRST = Layout(4, (0, 2, 3, 1))  # (1, C, h, w) to (1, h, w, C)
_POSITIONS = {"background": "pos_embed", "window": "pos_embed_window"}
_OBJECT_HEAD = "mask_decoder/object_score_head/dense_"
_OTHERS = ("prompt_encoder/", "mask_decoder/")


def _renamed(rows, *renames):
    """SAM's rows for prompt encoder and mask decoder, with parts of the foreign names replaced."""
    found = []
    for row in rows:
        if row.ours.startswith(_OTHERS):
            for sams, ours in renames:
                row = row._replace(foreign=row.foreign.replace(sams, ours))
            found.append(row)
    return tuple(found)


META_ROWS = (
    *torch_rows([(ours, kind, meta) for ours, kind, meta, _, _ in _ENCODER]),
    *(
        Row(_TRUNK + theirs, f"position_embedding/{ours}", _CHANNELS_FIRST)
        for ours, theirs in _POSITIONS.items()
    ),
    *_renamed(
        torch_tables.META_ROWS,
        ("prompt_encoder.", "sam_prompt_encoder."),
        ("mask_decoder.", "sam_mask_decoder."),
        (".mlp.lin1.", ".mlp.layers.0."),
        (".mlp.lin2.", ".mlp.layers.1."),
    ),
    *torch_rows(
        [
            (
                "mask_decoder/object_score_token",
                "embedding",
                f"sam_mask_decoder.{_DECODER_SIGNATURE[:-7]}",
            ),
            (f"{_OBJECT_HEAD}{{j}}", "dense", "sam_mask_decoder.pred_obj_score_head.layers.{j}"),
        ]
    ),
)
_SAVED_ROWS = (
    *keras_rows([(ours, kind, saved) for ours, kind, _, _, saved in _ENCODER]),
    *(
        Row(f"layers/windowed_position_embedding/vars/{i}", f"position_embedding/{ours}")
        for i, ours in enumerate(_POSITIONS)
    ),
    *_renamed(keras_tables.OWN_ROWS),
    *keras_rows(
        [
            # Keras numbers the tokens in the order in which the decoder makes them.
            ("mask_decoder/object_score_token", "tensor", "mask_decoder/vars/2"),
            (
                f"{_OBJECT_HEAD}{{j}}",
                "dense",
                "mask_decoder/object_score_head/dense_layers/dense{_j}",
            ),
        ]
    ),
)


def transformers_rows(iou_head_depth: int = 3) -> tuple[Row, ...]:
    """The rows for an IoU head with this many layers; points' embeddings have a name each."""
    heads = ("proj_in", "layers.0", "proj_out")
    return (
        *torch_rows([(ours, kind, theirs) for ours, kind, _, theirs, _ in _ENCODER]),
        *(
            Row(_BACKBONE + theirs, f"position_embedding/{ours}", _CHANNELS_FIRST)
            for ours, theirs in _POSITIONS.items()
        ),
        *_renamed(
            torch_tables.transformers_rows(iou_head_depth),
            (".mlp.lin1.", ".mlp.proj_in."),
            (".mlp.lin2.", ".mlp.proj_out."),
            (".out_proj.", ".o_proj."),
        ),
        *torch_rows(
            [
                (
                    "mask_decoder/object_score_token",
                    "embedding",
                    f"mask_decoder.{_DECODER_SIGNATURE[:-7]}",
                ),
                *(
                    (f"{_OBJECT_HEAD}{j}", "dense", f"mask_decoder.pred_obj_score_head.{name}")
                    for j, name in enumerate(heads)
                ),
            ]
        ),
    )


def _transformers_rows(tensors):
    inner = count_layers(tensors, r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\.weight")
    return transformers_rows(inner + 2)


# transformers has one tensor for what are four of ours.
_POINTS, _POINT = "prompt_encoder.point_embed.weight", "prompt_encoder.point_embed.{}.weight"


def split_points(tensors: dict) -> dict:
    """transformers' tensors, with a name for each of the four kinds of points."""
    if _POINTS not in tensors:
        return tensors
    table = Tensor.of(tensors[_POINTS])
    count, *channels = table.shape or (0,)
    rows = {
        _POINT.format(i): table.map(lambda values, i=i: values[i : i + 1], (1, *channels))
        for i in range(count)
    }
    return {**{k: x for k, x in tensors.items() if k != _POINTS}, **rows}


def to_transformers(arrays: dict) -> dict[str, Tensor]:
    """Our variables under the names and in the layout of transformers' `Sam2Model`."""
    depth = count_layers(arrays, r".*iou_prediction_head/dense_(\d+)/kernel")
    tensors = to_foreign(arrays, transformers_rows(depth))
    rows = [tensors.pop(_POINT.format(i)) for i in range(4)]
    shape = (4, *rows[0].shape[1:])
    tensors[_POINTS] = Tensor(
        shape, rows[0].dtype, lambda: np.concatenate([*map(np.asarray, rows)])
    )
    tensors[torch_tables.TIED_POSITIONAL] = tensors[torch_tables.POSITIONAL]
    return tensors


# What no shape tells of the released encoders: by channels and blocks of the stages, their heads,
# global blocks, and windows.
_RELEASED = {
    (96, (1, 2, 7, 2)): (1, (5, 7, 9), (8, 4, 14, 7)),
    (96, (1, 2, 11, 2)): (1, (7, 10, 13), (8, 4, 14, 7)),
    (112, (2, 3, 16, 3)): (2, (12, 16, 20), (8, 4, 14, 7)),
    (144, (2, 6, 36, 4)): (2, (23, 33, 43), (8, 4, 16, 8)),
}
_ENCODER_NEEDS = {
    "patch_embedding/kernel": 4,
    "position_embedding/background": 4,
    "position_embedding/window": 4,
    "block_0/mlp/dense_0/kernel": 2,
    "neck/conv_0/kernel": 4,
}


def infer_parts(shapes: dict, hints: dict | None = None) -> dict[str, dict]:
    """The parts of the SAM 2 that tensors of these shapes belong to; see `sam.infer_config`.

    No shape tells the encoder's heads, global blocks and windows: the file is of a released size,
    or has a config beside it. The frame, too, is in no shape: 1024 x 1024, unless a config says so.
    """
    hints = hints or {}
    is_whole = any(name.startswith(_OTHERS) for name in shapes)
    check_ranks(shapes, {**_ENCODER_NEEDS, **(sam.OTHER_NEEDS if is_whole else {})})
    encoder = _image_encoder(shapes, hints.get("image_encoder", {}))
    config = {"image_encoder": encoder}
    if is_whole:
        frame, stride = encoder["image_shape"][:2], 4 * encoder.get("patch_stride", 4)
        config["prompt_encoder"] = {
            **sam.prompt_encoder_config(shapes, frame, stride, hints),
            "not_a_point_after_boxes": True,
        }
        config["mask_decoder"] = sam.mask_decoder_config(shapes, hints)
    return {
        name: {"registered_name": _CLASSES[name][0], "config": arguments}
        for name, arguments in config.items()
    }


def _image_encoder(shapes, hints):
    kernel, _, channels, hidden = shapes["patch_embedding/kernel"]
    layers = count_layers(shapes, r"block_(\d+)/.*")
    # The first block of a stage has twice the channels, so that its input is projected, too.
    starts = [i for i in range(layers) if f"block_{i}/shortcut/kernel" in shapes]
    blocks = tuple(np.diff([0, *starts, layers]).tolist())
    config = {
        **hints,
        "hidden_size": hidden,
        "num_blocks": list(blocks),
        "image_shape": [*hints.get("image_shape", (1024, 1024))[:2], channels],
        "position_background_size": list(shapes["position_embedding/background"][1:3]),
        "patch_kernel_size": kernel,
        "mlp_ratio": shapes["block_0/mlp/dense_0/kernel"][1] / hidden,
        "num_output_channels": shapes["neck/conv_0/kernel"][-1],
    }
    unknown = ("num_heads", "global_attention_layer_indices", "window_sizes")
    if any(name not in hints for name in unknown):
        if (hidden, blocks) not in _RELEASED:
            raise ValueError(
                "No tensor tells the image encoder's heads, windows and global blocks, and no "
                f"released model has stages of {blocks} blocks from {hidden} channels. Put the "
                "config.json of the model beside the file, or load it into a model that you have "
                "built."
            )
        heads, global_layers, windows = _RELEASED[hidden, blocks]
        config["num_heads"] = heads
        config["global_attention_layer_indices"] = list(global_layers)
        config["window_sizes"] = list(windows)
    return config


_CLASSES = {
    "image_encoder": ("keras_sam>HieraBackbone",),
    "prompt_encoder": ("keras_sam>SAMPromptEncoder",),
    "mask_decoder": ("keras_sam>SAM2MaskDecoder",),
}

FAMILY = Family(
    name="SAM 2",
    task="keras_sam>SAM2ImageSegmenter",
    classes=_CLASSES,
    encoder_paths=r"(patch_embedding|position_embedding|block_\d+|neck)/",
    formats=(
        Format(
            "SAM 2",
            (_META_SIGNATURE, f"sam_mask_decoder.{_DECODER_SIGNATURE}"),
            lambda _: META_ROWS,
            ignore=MEMORY,
        ),
        Format(
            "transformers, SAM 2",
            (_TRANSFORMERS_SIGNATURE, f"mask_decoder.{_DECODER_SIGNATURE}"),
            _transformers_rows,
            ignore=MEMORY,
            prepare=split_points,
        ),
        Format("keras_sam, SAM 2", (_OWN_SIGNATURE,), lambda _: ()),
        Format("keras_sam, SAM 2 saved by Keras", (_SAVED_SIGNATURE,), lambda _: _SAVED_ROWS),
        Format(
            "SAM 2, mask decoder alone",
            (_DECODER_SIGNATURE,),
            lambda _: META_ROWS,
            add="sam_mask_decoder.",
        ),
        Format(
            "transformers, SAM 2's mask decoder alone",
            (_DECODER_SIGNATURE,),
            _transformers_rows,
            add="mask_decoder.",
        ),
    ),
    infer_parts=infer_parts,
    meta_rows=lambda _: META_ROWS,
    transformers=sam2_transformers.LAYOUT._replace(tensors=to_transformers),
)
