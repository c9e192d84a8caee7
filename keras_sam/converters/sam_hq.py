"""The names in SAM-HQ's checkpoints: the released ones, and transformers'.

All of SAM's, and those of the mask decoder's additions.

Source:
    PyPI segment-anything-hq 0.3, modeling/mask_decoder_hq.py;
    https://github.com/huggingface/transformers at v5.23.0, models/sam_hq.
"""

from keras_sam.converters import torch_tables
from keras_sam.converters.tables import Row, torch_rows, with_prefixes

# Names that every such file has, and no SAM; and the same of a mask decoder's file.
META_SIGNATURE = "mask_decoder.hf_token.weight"
TRANSFORMERS_SIGNATURE = "mask_decoder.hq_token.weight"
DECODER_SIGNATURE = "hf_token.weight"
TRANSFORMERS_DECODER_SIGNATURE = "hq_token.weight"

MASK_DECODER_CLASS = "keras_sam>SAMHQMaskDecoder"
TASK_CLASS = "keras_sam>SAMHQImageSegmenter"

_MLP = "mask_decoder/hq_mlp/dense_{j}"
# Our name, the kind of layer, the released name, transformers' name.
_TABLE = with_prefixes(
    ("mask_decoder/", "mask_decoder.", "mask_decoder."),
    ("hq_token", "embedding", "hf_token", "hq_token"),
    ("early_upscaling/conv1", "conv", "compress_vit_feat.0", "compress_vit_conv1"),
    ("early_upscaling/norm1", "norm", "compress_vit_feat.1", "compress_vit_norm"),
    ("early_upscaling/conv2", "conv", "compress_vit_feat.3", "compress_vit_conv2"),
    ("embedding_upscaling/conv1", "conv", "embedding_encoder.0", "encoder_conv1"),
    ("embedding_upscaling/norm1", "norm", "embedding_encoder.1", "encoder_norm"),
    ("embedding_upscaling/conv2", "conv", "embedding_encoder.3", "encoder_conv2"),
    ("mask_refinement/conv1", "conv", "embedding_maskfeature.0", "mask_conv1"),
    ("mask_refinement/norm1", "norm", "embedding_maskfeature.1", "mask_norm"),
    ("mask_refinement/conv2", "conv", "embedding_maskfeature.3", "mask_conv2"),
)
_META_ADDITIONS = torch_rows(
    [
        *((ours, kind, meta) for ours, kind, meta, _ in _TABLE),
        (_MLP, "dense", "mask_decoder.hf_mlp.layers.{j}"),
    ]
)
_TRANSFORMERS_ADDITIONS = torch_rows(
    [
        *((ours, kind, transformers) for ours, kind, _, transformers in _TABLE),
        (_MLP.format(j=0), "dense", "mask_decoder.hq_mask_mlp.proj_in"),
        (_MLP.format(j=1), "dense", "mask_decoder.hq_mask_mlp.layers.0"),
        (_MLP.format(j=2), "dense", "mask_decoder.hq_mask_mlp.proj_out"),
    ]
)
META_ROWS = torch_tables.META_ROWS + _META_ADDITIONS


def transformers_rows(iou_head_depth: int = 3) -> tuple[Row, ...]:
    """`torch_tables.transformers_rows`, and those of the additions."""
    return torch_tables.transformers_rows(iou_head_depth) + _TRANSFORMERS_ADDITIONS


# The tensor that tells a SAM-HQ of ours, and the width of its early features; and its rank.
NEEDS = {"mask_decoder/early_upscaling/conv1/kernel": 4}


def add_to_config(config: dict, shapes: dict) -> dict:
    """The config of a SAM with what makes it a SAM-HQ.

    Args:
        config: dict from parts to the arguments of SAM's classes.
        shapes: dict from our variable paths to shapes.

    Returns:
        The same, with `early_features` for the image encoder and `early_dim` for the mask decoder.
    """
    (kernel,) = NEEDS
    return {
        **config,
        "image_encoder": {**config["image_encoder"], "early_features": True},
        "mask_decoder": {**config["mask_decoder"], "early_dim": shapes[kernel][-1]},
    }
