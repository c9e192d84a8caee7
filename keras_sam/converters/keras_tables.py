"""The paths in Keras weight files: of KerasHub, of KerasCV, and of our models saved by Keras.

They consist of attribute and class names in snake case, numbered per container. Our preset folders
do not use them: their tensors are named by the paths of the variables.

Source:
    https://github.com/keras-team/keras-hub at v0.32.0, keras_hub/src/models/sam; the same paths
    since release 0.17;
    https://github.com/keras-team/keras-cv at v0.9.0, keras_cv/src/models/segmentation.
"""

from keras_sam.converters.tables import keras_rows, with_prefixes

# A name that every such file has; anything before it is a wrapper's prefix. KerasCV's files have
# the same one as KerasHub's.
KERAS_HUB_SIGNATURE = "layers/vi_t_det_patching_and_embedding/projection/vars/0"
OWN_SIGNATURE = "layers/windowed_transformer_encoder/norm1/vars/0"

_BLOCK = "layers/windowed_transformer_encoder{_i}/"
_POSITIONS = "attention/add_decomposed_relative_pe/vars"
_PROMPT = "layers/sam_prompt_encoder/"
_HUB_MLP = "mlp_block/layers/dense{_j}"
_OWN_MLP = "dense_layers/dense{_j}"


def _same(name, kind):
    return name, kind, name, name


def _attention(name):
    return [_same(f"{name}/{part}_proj", "dense") for part in ("query", "key", "value", "out")]


# Our name, the kind of layer, KerasHub's name, and the one that Keras saves for our models.
_TABLE = (
    *with_prefixes(
        ("", "layers/", "layers/"),
        (
            "position_embedding/embeddings",
            "embedding",
            "add_positional_embedding",
            "position_embedding",
        ),
        ("patch_embedding", "conv", "vi_t_det_patching_and_embedding/projection", "conv2d"),
        ("neck_conv1", "conv_no_bias", "sequential/layers/conv2d", "conv2d_1"),
        ("neck_norm1", "norm", "sequential/layers/layer_normalization", "layer_normalization"),
        ("neck_conv2", "conv_no_bias", "sequential/layers/conv2d_1", "conv2d_2"),
        ("neck_norm2", "norm", "sequential/layers/layer_normalization_1", "layer_normalization_1"),
    ),
    *with_prefixes(
        ("block_{i}/", _BLOCK, _BLOCK),
        ("norm1", "norm", "layer_norm1", "norm1"),
        ("attention/rel_pos_h", "tensor", f"{_POSITIONS}/0", "attention/vars/0"),
        ("attention/rel_pos_w", "tensor", f"{_POSITIONS}/1", "attention/vars/1"),
        _same("attention/qkv", "dense"),
        _same("attention/projection", "dense"),
        ("norm2", "norm", "layer_norm2", "norm2"),
        ("mlp/dense_{j}", "dense", "mlp_block/dense_net/layers/dense{_j}", f"mlp/{_OWN_MLP}"),
    ),
    *with_prefixes(
        ("prompt_encoder/", _PROMPT, _PROMPT),
        (
            "positional_embedding/gaussian_matrix",
            "embedding",
            "positional_embedding_layer",
            "positional_embedding",
        ),
        # Numbered in the order in which our prompt encoder makes them.
        *(
            (name, "tensor", f"{name}/vars/0", f"vars/{n}")
            for n, name in enumerate(
                (
                    "not_a_point_embed",
                    "background_point_embed",
                    "foreground_point_embed",
                    "top_left_corner_embed",
                    "bottom_right_corner_embed",
                    "no_mask_embed",
                )
            )
        ),
    ),
    *with_prefixes(
        (
            "prompt_encoder/mask_downscaler/",
            f"{_PROMPT}mask_downscaler/layers/",
            f"{_PROMPT}mask_downscaler/",
        ),
        ("conv1", "conv", "conv2d", "conv1"),
        ("norm1", "norm", "layer_normalization", "norm1"),
        ("conv2", "conv", "conv2d_1", "conv2"),
        ("norm2", "norm", "layer_normalization_1", "norm2"),
        ("conv3", "conv", "conv2d_2", "conv3"),
    ),
    *with_prefixes(
        ("mask_decoder/",) * 3,
        ("iou_token", "tensor", "iou_token/vars/0", "vars/0"),
        ("mask_tokens", "tensor", "mask_tokens/vars/0", "vars/1"),
        *_attention("transformer/final_attention_token_to_image"),
        _same("transformer/final_layer_norm", "norm"),
        (
            "hypernetwork_{k}/dense_{j}",
            "dense",
            f"output_hypernetworks_mlps/mlp{{_k}}/{_HUB_MLP}",
            f"output_hypernetworks_mlps/mlp{{_k}}/{_OWN_MLP}",
        ),
        (
            "iou_prediction_head/dense_{j}",
            "dense",
            f"iou_prediction_head/{_HUB_MLP}",
            f"iou_prediction_head/{_OWN_MLP}",
        ),
    ),
    *with_prefixes(
        (
            "mask_decoder/output_upscaling/",
            "mask_decoder/output_upscaling/layers/",
            "mask_decoder/output_upscaling/",
        ),
        ("conv1", "conv", "conv2d_transpose", "conv1"),
        ("norm1", "norm", "layer_normalization", "norm1"),
        ("conv2", "conv", "conv2d_transpose_1", "conv2"),
    ),
    *with_prefixes(
        (
            "mask_decoder/transformer/layer_{i}/",
            "mask_decoder/transformer/layers/two_way_multi_head_attention{_i}/",
            "mask_decoder/transformer/blocks/two_way_multi_head_attention{_i}/",
        ),
        *_attention("self_attention"),
        *_attention("cross_attention_token_to_image"),
        *_attention("cross_attention_image_to_token"),
        *(_same(f"layer_norm{n}", "norm") for n in (1, 2, 3, 4)),
        ("mlp/dense_{j}", "dense", f"mlp_block/{_HUB_MLP}", f"mlp/{_OWN_MLP}"),
    ),
)

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


KERAS_HUB_ROWS = keras_rows([(ours, kind, hub) for ours, kind, hub, _ in _TABLE])
KERAS_CV_ROWS = keras_rows([(ours, kind, _keras_cv_name(hub)) for ours, kind, hub, _ in _TABLE])
OWN_ROWS = keras_rows([(ours, kind, own) for ours, kind, _, own in _TABLE])
