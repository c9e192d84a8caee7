"""The names in SAM 2's checkpoints: Meta's and transformers', for SAM 2 and SAM 2.1 alike.

Both hold a model for videos too, whose memory no image needs: those weights are known by name and
left out. Files that are written from a model of ours lack them, so that programs for videos refuse
them, and those for images, transformers' `Sam2Model` among them, take them.

Source:
    https://github.com/facebookresearch/sam2, as the package sam2 1.1.0;
    https://github.com/huggingface/transformers at v5.23.0, models/sam2 and models/sam2_video.
"""

import re

import numpy as np

from keras_sam.converters import torch_tables
from keras_sam.converters.tables import Layout, Row, Tensor, to_foreign, torch_rows, with_prefixes

# Names that every such file has; anything before them is a wrapper's prefix.
META_SIGNATURE = "image_encoder.trunk.patch_embed.proj.weight"
TRANSFORMERS_SIGNATURE = "vision_encoder.backbone.patch_embed.projection.weight"

# The weights of the video model's memory, in Meta's files and in transformers'.
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

_TABLE_OF_POSITIONS = Layout(4, (0, 2, 3, 1))  # (1, C, h, w) to (1, h, w, C)

# Our name, the kind of layer, Meta's name, transformers' name.
_ENCODER = (
    (
        "patch_embedding",
        "conv",
        "image_encoder.trunk.patch_embed.proj",
        "vision_encoder.backbone.patch_embed.projection",
    ),
    *with_prefixes(
        ("block_{i}/", "image_encoder.trunk.blocks.{i}.", "vision_encoder.backbone.blocks.{i}."),
        ("norm1", "norm", "norm1", "layer_norm1"),
        ("attention/qkv", "dense", "attn.qkv", "attn.qkv"),
        ("attention/projection", "dense", "attn.proj", "attn.proj"),
        ("shortcut", "dense", "proj", "proj"),
        ("norm2", "norm", "norm2", "layer_norm2"),
        ("mlp/dense_0", "dense", "mlp.layers.0", "mlp.proj_in"),
        ("mlp/dense_1", "dense", "mlp.layers.1", "mlp.proj_out"),
    ),
    # They count the maps from the coarsest, we from the finest.
    *(
        (
            f"neck/conv_{i}",
            "conv",
            f"image_encoder.neck.convs.{3 - i}.conv",
            f"vision_encoder.neck.convs.{3 - i}",
        )
        for i in range(4)
    ),
    *(
        (
            f"neck/high_res_conv_{i}",
            "conv",
            f"sam_mask_decoder.conv_s{i}",
            f"mask_decoder.conv_s{i}",
        )
        for i in range(2)
    ),
    ("neck/no_memory_embedding", "tensor", "no_mem_embed", "no_memory_embedding"),
)
_POSITIONS = (
    (
        "position_embedding/background",
        "image_encoder.trunk.pos_embed",
        "vision_encoder.backbone.pos_embed",
    ),
    (
        "position_embedding/window",
        "image_encoder.trunk.pos_embed_window",
        "vision_encoder.backbone.pos_embed_window",
    ),
)

META_ROWS = (
    *torch_rows([(ours, kind, meta) for ours, kind, meta, _ in _ENCODER]),
    *(Row(meta, ours, _TABLE_OF_POSITIONS) for ours, meta, _ in _POSITIONS),
)
