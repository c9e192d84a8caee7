"""The checkpoints of transformers' `SamModel`.

Source:
    https://github.com/huggingface/transformers at v5.23.0, models/sam.
"""

from keras_sam.converters.meta import TRANSFORMER_ATTENTION
from keras_sam.converters.tables import torch_rows

SIGNATURE = "vision_encoder.patch_embed.projection.weight"
POSITIONAL = "shared_image_embedding.positional_embedding"
# The same matrix under its second name; files may have either or both.
TIED_POSITIONAL = "prompt_encoder.shared_embedding.positional_embedding"

_ENCODER = (
    ("vision_encoder.pos_embed", "position_embedding/embeddings", "tensor"),
    ("vision_encoder.patch_embed.projection", "patch_embedding", "conv"),
    ("vision_encoder.layers.{i}.layer_norm1", "block_{i}/norm1", "norm"),
    ("vision_encoder.layers.{i}.attn.rel_pos_h", "block_{i}/attention/rel_pos_h", "tensor"),
    ("vision_encoder.layers.{i}.attn.rel_pos_w", "block_{i}/attention/rel_pos_w", "tensor"),
    ("vision_encoder.layers.{i}.attn.qkv", "block_{i}/attention/qkv", "dense"),
    ("vision_encoder.layers.{i}.attn.proj", "block_{i}/attention/projection", "dense"),
    ("vision_encoder.layers.{i}.layer_norm2", "block_{i}/norm2", "norm"),
    ("vision_encoder.layers.{i}.mlp.lin1", "block_{i}/mlp/dense_0", "dense"),
    ("vision_encoder.layers.{i}.mlp.lin2", "block_{i}/mlp/dense_1", "dense"),
    ("vision_encoder.neck.conv1", "neck_conv1", "conv_no_bias"),
    ("vision_encoder.neck.layer_norm1", "neck_norm1", "norm"),
    ("vision_encoder.neck.conv2", "neck_conv2", "conv_no_bias"),
    ("vision_encoder.neck.layer_norm2", "neck_norm2", "norm"),
)

_PROMPTS = (
    (POSITIONAL, "prompt_encoder/positional_embedding/gaussian_matrix", "tensor"),
    ("prompt_encoder.point_embed.0", "prompt_encoder/background_point_embed", "embedding"),
    ("prompt_encoder.point_embed.1", "prompt_encoder/foreground_point_embed", "embedding"),
    ("prompt_encoder.point_embed.2", "prompt_encoder/top_left_corner_embed", "embedding"),
    ("prompt_encoder.point_embed.3", "prompt_encoder/bottom_right_corner_embed", "embedding"),
    ("prompt_encoder.not_a_point_embed", "prompt_encoder/not_a_point_embed", "embedding"),
    ("prompt_encoder.no_mask_embed", "prompt_encoder/no_mask_embed", "embedding"),
    ("prompt_encoder.mask_embed.conv1", "prompt_encoder/mask_downscaler/conv1", "conv"),
    ("prompt_encoder.mask_embed.layer_norm1", "prompt_encoder/mask_downscaler/norm1", "norm"),
    ("prompt_encoder.mask_embed.conv2", "prompt_encoder/mask_downscaler/conv2", "conv"),
    ("prompt_encoder.mask_embed.layer_norm2", "prompt_encoder/mask_downscaler/norm2", "norm"),
    ("prompt_encoder.mask_embed.conv3", "prompt_encoder/mask_downscaler/conv3", "conv"),
)


def _decoder(heads):
    layer = "mask_decoder.transformer.layers.{i}", "mask_decoder/transformer/layer_{i}"
    return (
        ("mask_decoder.iou_token", "mask_decoder/iou_token", "embedding"),
        ("mask_decoder.mask_tokens", "mask_decoder/mask_tokens", "embedding"),
        *TRANSFORMER_ATTENTION,
        *((f"{layer[0]}.layer_norm{n}", f"{layer[1]}/layer_norm{n}", "norm") for n in (1, 2, 3, 4)),
        (f"{layer[0]}.mlp.lin1", f"{layer[1]}/mlp/dense_0", "dense"),
        (f"{layer[0]}.mlp.lin2", f"{layer[1]}/mlp/dense_1", "dense"),
        (
            "mask_decoder.transformer.layer_norm_final_attn",
            "mask_decoder/transformer/final_layer_norm",
            "norm",
        ),
        ("mask_decoder.upscale_conv1", "mask_decoder/output_upscaling/conv1", "conv"),
        ("mask_decoder.upscale_layer_norm", "mask_decoder/output_upscaling/norm1", "norm"),
        ("mask_decoder.upscale_conv2", "mask_decoder/output_upscaling/conv2", "conv"),
        *heads,
    )


def _head(foreign, ours, depth):
    """An MLP whose first and last layers have names and whose inner ones are numbered."""
    return (
        (f"{foreign}.proj_in", f"{ours}/dense_0", "dense"),
        *((f"{foreign}.layers.{j}", f"{ours}/dense_{j + 1}", "dense") for j in range(depth - 2)),
        (f"{foreign}.proj_out", f"{ours}/dense_{depth - 1}", "dense"),
    )


def rows(iou_head_depth: int = 3) -> tuple:
    """The rename table, for a quality head of this many layers."""
    heads = (
        *_head(
            "mask_decoder.output_hypernetworks_mlps.{k}", "mask_decoder/hypernetwork_{k}", depth=3
        ),
        *_head(
            "mask_decoder.iou_prediction_head", "mask_decoder/iou_prediction_head", iou_head_depth
        ),
    )
    return torch_rows(_ENCODER + _PROMPTS + _decoder(heads))
