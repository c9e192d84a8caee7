"""The files that Keras writes of our models: `model.save` and `model.save_weights`.

Keras names layers by class and attribute and numbers variables. Preset folders do not have this
layout: their tensors are named by their variables' paths.
"""

from keras_sam.converters.tables import attention_rows, keras_rows

SIGNATURE = "layers/windowed_transformer_encoder/norm1/vars/0"

_BLOCK = "layers/windowed_transformer_encoder{_i}"
_PROMPT = "layers/sam_prompt_encoder"
_LAYER = "mask_decoder/transformer/blocks/two_way_multi_head_attention{_i}"
# In the order in which the prompt encoder makes them.
_EMBEDDINGS = (
    "not_a_point_embed",
    "background_point_embed",
    "foreground_point_embed",
    "top_left_corner_embed",
    "bottom_right_corner_embed",
    "no_mask_embed",
)

_ENCODER = (
    ("layers/position_embedding", "position_embedding/embeddings", "embedding"),
    ("layers/conv2d", "patch_embedding", "conv"),
    (f"{_BLOCK}/norm1", "block_{i}/norm1", "norm"),
    (f"{_BLOCK}/attention/vars/0", "block_{i}/attention/rel_pos_h", "tensor"),
    (f"{_BLOCK}/attention/vars/1", "block_{i}/attention/rel_pos_w", "tensor"),
    (f"{_BLOCK}/attention/qkv", "block_{i}/attention/qkv", "dense"),
    (f"{_BLOCK}/attention/projection", "block_{i}/attention/projection", "dense"),
    (f"{_BLOCK}/norm2", "block_{i}/norm2", "norm"),
    (f"{_BLOCK}/mlp/dense_layers/dense{{_j}}", "block_{i}/mlp/dense_{j}", "dense"),
    ("layers/conv2d_1", "neck_conv1", "conv_no_bias"),
    ("layers/layer_normalization", "neck_norm1", "norm"),
    ("layers/conv2d_2", "neck_conv2", "conv_no_bias"),
    ("layers/layer_normalization_1", "neck_norm2", "norm"),
)

_PROMPTS = (
    (
        f"{_PROMPT}/positional_embedding",
        "prompt_encoder/positional_embedding/gaussian_matrix",
        "embedding",
    ),
    *(
        (f"{_PROMPT}/vars/{n}", f"prompt_encoder/{name}", "tensor")
        for n, name in enumerate(_EMBEDDINGS)
    ),
    *(
        (f"{_PROMPT}/mask_downscaler/{part}", f"prompt_encoder/mask_downscaler/{part}", kind)
        for part, kind in (
            ("conv1", "conv"),
            ("norm1", "norm"),
            ("conv2", "conv"),
            ("norm2", "norm"),
            ("conv3", "conv"),
        )
    ),
)

_DECODER = (
    ("mask_decoder/vars/0", "mask_decoder/iou_token", "tensor"),
    ("mask_decoder/vars/1", "mask_decoder/mask_tokens", "tensor"),
    *attention_rows(_LAYER),
    (
        f"{_LAYER}/mlp/dense_layers/dense{{_j}}",
        "mask_decoder/transformer/layer_{i}/mlp/dense_{j}",
        "dense",
    ),
    ("mask_decoder/output_upscaling/conv1", "mask_decoder/output_upscaling/conv1", "conv"),
    ("mask_decoder/output_upscaling/norm1", "mask_decoder/output_upscaling/norm1", "norm"),
    ("mask_decoder/output_upscaling/conv2", "mask_decoder/output_upscaling/conv2", "conv"),
    (
        "mask_decoder/output_hypernetworks_mlps/mlp{_k}/dense_layers/dense{_j}",
        "mask_decoder/hypernetwork_{k}/dense_{j}",
        "dense",
    ),
    (
        "mask_decoder/iou_prediction_head/dense_layers/dense{_j}",
        "mask_decoder/iou_prediction_head/dense_{j}",
        "dense",
    ),
)

ROWS = keras_rows(_ENCODER + _PROMPTS + _DECODER)
