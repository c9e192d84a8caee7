"""The checkpoints of Meta's code, and of everything fine-tuned with it.

Source:
    https://github.com/facebookresearch/segment-anything at dca509f.
"""

from keras_sam.converters.tables import torch_rows

# The name that every such file has; what stands before it is a wrapper's prefix.
SIGNATURE = "image_encoder.patch_embed.proj.weight"

_ENCODER = (
    ("image_encoder.pos_embed", "position_embedding/embeddings", "tensor"),
    ("image_encoder.patch_embed.proj", "patch_embedding", "conv"),
    ("image_encoder.blocks.{i}.norm1", "block_{i}/norm1", "norm"),
    ("image_encoder.blocks.{i}.attn.rel_pos_h", "block_{i}/attention/rel_pos_h", "tensor"),
    ("image_encoder.blocks.{i}.attn.rel_pos_w", "block_{i}/attention/rel_pos_w", "tensor"),
    ("image_encoder.blocks.{i}.attn.qkv", "block_{i}/attention/qkv", "dense"),
    ("image_encoder.blocks.{i}.attn.proj", "block_{i}/attention/projection", "dense"),
    ("image_encoder.blocks.{i}.norm2", "block_{i}/norm2", "norm"),
    ("image_encoder.blocks.{i}.mlp.lin1", "block_{i}/mlp/dense_0", "dense"),
    ("image_encoder.blocks.{i}.mlp.lin2", "block_{i}/mlp/dense_1", "dense"),
    ("image_encoder.neck.0", "neck_conv1", "conv_no_bias"),
    ("image_encoder.neck.1", "neck_norm1", "norm"),
    ("image_encoder.neck.2", "neck_conv2", "conv_no_bias"),
    ("image_encoder.neck.3", "neck_norm2", "norm"),
)

_PROMPTS = (
    (
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "prompt_encoder/positional_embedding/gaussian_matrix",
        "tensor",
    ),
    ("prompt_encoder.point_embeddings.0", "prompt_encoder/background_point_embed", "embedding"),
    ("prompt_encoder.point_embeddings.1", "prompt_encoder/foreground_point_embed", "embedding"),
    ("prompt_encoder.point_embeddings.2", "prompt_encoder/top_left_corner_embed", "embedding"),
    ("prompt_encoder.point_embeddings.3", "prompt_encoder/bottom_right_corner_embed", "embedding"),
    ("prompt_encoder.not_a_point_embed", "prompt_encoder/not_a_point_embed", "embedding"),
    ("prompt_encoder.no_mask_embed", "prompt_encoder/no_mask_embed", "embedding"),
    ("prompt_encoder.mask_downscaling.0", "prompt_encoder/mask_downscaler/conv1", "conv"),
    ("prompt_encoder.mask_downscaling.1", "prompt_encoder/mask_downscaler/norm1", "norm"),
    ("prompt_encoder.mask_downscaling.3", "prompt_encoder/mask_downscaler/conv2", "conv"),
    ("prompt_encoder.mask_downscaling.4", "prompt_encoder/mask_downscaler/norm2", "norm"),
    ("prompt_encoder.mask_downscaling.6", "prompt_encoder/mask_downscaler/conv3", "conv"),
)

_PROJECTIONS = (
    ("q_proj", "query_proj"),
    ("k_proj", "key_proj"),
    ("v_proj", "value_proj"),
    ("out_proj", "out_proj"),
)
_ATTENTIONS = (
    ("layers.{i}.self_attn", "layer_{i}/self_attention"),
    ("layers.{i}.cross_attn_token_to_image", "layer_{i}/cross_attention_token_to_image"),
    ("layers.{i}.cross_attn_image_to_token", "layer_{i}/cross_attention_image_to_token"),
    ("final_attn_token_to_image", "final_attention_token_to_image"),
)
# transformers has the same names for these.
TRANSFORMER_ATTENTION = tuple(
    (f"mask_decoder.transformer.{a}.{p}", f"mask_decoder/transformer/{b}/{q}", "dense")
    for a, b in _ATTENTIONS
    for p, q in _PROJECTIONS
)

_DECODER = (
    ("mask_decoder.iou_token", "mask_decoder/iou_token", "embedding"),
    ("mask_decoder.mask_tokens", "mask_decoder/mask_tokens", "embedding"),
    *TRANSFORMER_ATTENTION,
    *(
        (
            f"mask_decoder.transformer.layers.{{i}}.norm{n}",
            f"mask_decoder/transformer/layer_{{i}}/layer_norm{n}",
            "norm",
        )
        for n in (1, 2, 3, 4)
    ),
    (
        "mask_decoder.transformer.layers.{i}.mlp.lin1",
        "mask_decoder/transformer/layer_{i}/mlp/dense_0",
        "dense",
    ),
    (
        "mask_decoder.transformer.layers.{i}.mlp.lin2",
        "mask_decoder/transformer/layer_{i}/mlp/dense_1",
        "dense",
    ),
    (
        "mask_decoder.transformer.norm_final_attn",
        "mask_decoder/transformer/final_layer_norm",
        "norm",
    ),
    ("mask_decoder.output_upscaling.0", "mask_decoder/output_upscaling/conv1", "conv"),
    ("mask_decoder.output_upscaling.1", "mask_decoder/output_upscaling/norm1", "norm"),
    ("mask_decoder.output_upscaling.3", "mask_decoder/output_upscaling/conv2", "conv"),
    (
        "mask_decoder.output_hypernetworks_mlps.{k}.layers.{j}",
        "mask_decoder/hypernetwork_{k}/dense_{j}",
        "dense",
    ),
    (
        "mask_decoder.iou_prediction_head.layers.{j}",
        "mask_decoder/iou_prediction_head/dense_{j}",
        "dense",
    ),
)

ROWS = torch_rows(_ENCODER + _PROMPTS + _DECODER)
ENCODER_ROWS = torch_rows(_ENCODER)
