"""The weight files of KerasHub's `SAMBackbone` and of KerasCV's `SegmentAnythingModel`.

Their paths are attribute names and class names in snake case, numbered per container. Read are
KerasHub's from release 0.17 to 0.32, and KerasCV's of 0.9.

Source:
    https://github.com/keras-team/keras-hub at v0.32.0, keras_hub/src/models/sam;
    https://github.com/keras-team/keras-cv at v0.9.0, keras_cv/src/models/segmentation.
"""

from keras_sam.converters.tables import attention_rows, keras_rows

SIGNATURE = "layers/vi_t_det_patching_and_embedding/projection/vars/0"

_BLOCK = "layers/windowed_transformer_encoder{_i}"
_PROMPT = "layers/sam_prompt_encoder"
_LAYER = "mask_decoder/transformer/layers/two_way_multi_head_attention{_i}"

_ENCODER = (
    ("layers/add_positional_embedding", "position_embedding/embeddings", "embedding"),
    ("layers/vi_t_det_patching_and_embedding/projection", "patch_embedding", "conv"),
    (f"{_BLOCK}/layer_norm1", "block_{i}/norm1", "norm"),
    (
        f"{_BLOCK}/attention/add_decomposed_relative_pe/vars/0",
        "block_{i}/attention/rel_pos_h",
        "tensor",
    ),
    (
        f"{_BLOCK}/attention/add_decomposed_relative_pe/vars/1",
        "block_{i}/attention/rel_pos_w",
        "tensor",
    ),
    (f"{_BLOCK}/attention/qkv", "block_{i}/attention/qkv", "dense"),
    (f"{_BLOCK}/attention/projection", "block_{i}/attention/projection", "dense"),
    (f"{_BLOCK}/layer_norm2", "block_{i}/norm2", "norm"),
    (f"{_BLOCK}/mlp_block/dense_net/layers/dense{{_j}}", "block_{i}/mlp/dense_{j}", "dense"),
    ("layers/sequential/layers/conv2d", "neck_conv1", "conv_no_bias"),
    ("layers/sequential/layers/layer_normalization", "neck_norm1", "norm"),
    ("layers/sequential/layers/conv2d_1", "neck_conv2", "conv_no_bias"),
    ("layers/sequential/layers/layer_normalization_1", "neck_norm2", "norm"),
)

_PROMPTS = (
    (
        f"{_PROMPT}/positional_embedding_layer",
        "prompt_encoder/positional_embedding/gaussian_matrix",
        "embedding",
    ),
    *(
        (f"{_PROMPT}/{name}_embed", f"prompt_encoder/{name}_embed", "embedding")
        for name in (
            "background_point",
            "foreground_point",
            "top_left_corner",
            "bottom_right_corner",
            "not_a_point",
            "no_mask",
        )
    ),
    (f"{_PROMPT}/mask_downscaler/layers/conv2d", "prompt_encoder/mask_downscaler/conv1", "conv"),
    (
        f"{_PROMPT}/mask_downscaler/layers/layer_normalization",
        "prompt_encoder/mask_downscaler/norm1",
        "norm",
    ),
    (f"{_PROMPT}/mask_downscaler/layers/conv2d_1", "prompt_encoder/mask_downscaler/conv2", "conv"),
    (
        f"{_PROMPT}/mask_downscaler/layers/layer_normalization_1",
        "prompt_encoder/mask_downscaler/norm2",
        "norm",
    ),
    (f"{_PROMPT}/mask_downscaler/layers/conv2d_2", "prompt_encoder/mask_downscaler/conv3", "conv"),
)

_DECODER = (
    ("mask_decoder/iou_token", "mask_decoder/iou_token", "embedding"),
    ("mask_decoder/mask_tokens", "mask_decoder/mask_tokens", "embedding"),
    *attention_rows(_LAYER),
    (
        f"{_LAYER}/mlp_block/mlp_block/layers/dense{{_j}}",
        "mask_decoder/transformer/layer_{i}/mlp/dense_{j}",
        "dense",
    ),
    (
        "mask_decoder/output_upscaling/layers/conv2d_transpose",
        "mask_decoder/output_upscaling/conv1",
        "conv",
    ),
    (
        "mask_decoder/output_upscaling/layers/layer_normalization",
        "mask_decoder/output_upscaling/norm1",
        "norm",
    ),
    (
        "mask_decoder/output_upscaling/layers/conv2d_transpose_1",
        "mask_decoder/output_upscaling/conv2",
        "conv",
    ),
    (
        "mask_decoder/output_hypernetworks_mlps/mlp{_k}/mlp_block/layers/dense{_j}",
        "mask_decoder/hypernetwork_{k}/dense_{j}",
        "dense",
    ),
    (
        "mask_decoder/iou_prediction_head/mlp_block/layers/dense{_j}",
        "mask_decoder/iou_prediction_head/dense_{j}",
        "dense",
    ),
)

_TABLE = _ENCODER + _PROMPTS + _DECODER
ROWS = keras_rows(_TABLE)

# KerasCV's names are KerasHub's after these renames.
_KERAS_CV_RENAMES = (
    ("mask_decoder/", "layers/sam_mask_decoder/"),
    ("mlp_block/mlp_block/", "mlp_block/dense_net/"),
    ("mlp{_k}/mlp_block/", "mlp{_k}/dense_net/"),
    ("iou_prediction_head/mlp_block/", "iou_prediction_head/dense_net/"),
    ("add_decomposed_relative_pe", "add_decomposed_reative_pe"),
)


def _keras_cv_name(name):
    for old, new in _KERAS_CV_RENAMES:
        name = name.replace(old, new, 1)
    return name


KERAS_CV_ROWS = keras_rows(
    tuple((_keras_cv_name(foreign), ours, kind) for foreign, ours, kind in _TABLE)
)
