"""Every argument does something: a model with another value gives something else."""

import keras
import numpy as np
import pytest

import keras_sam
from tests.layers.parts import FRAME, GRID, PARTS, call, make
from tests.layers.test_regularization import copy_weights
from tests.tiny import randomize

# (part, argument, value): the weights stay the same, so only the argument can make a difference
EFFECTS = [
    ("MLP", "activation", "gelu"),
    ("TwoWayMultiHeadAttention", "activation", "gelu"),
    ("TwoWayMultiHeadAttention", "layer_norm_epsilon", 0.5),
    ("TwoWayTransformer", "activation", "gelu"),
    ("TwoWayTransformer", "layer_norm_epsilon", 0.5),
    ("TwoWayTransformer", "skip_first_layer_pos_embedding", False),
    ("MaskDownscaler", "activation", "relu"),
    ("MaskDownscaler", "layer_norm_epsilon", 0.5),
    ("SAMPromptEncoder", "activation", "relu"),
    ("SAMPromptEncoder", "layer_norm_epsilon", 0.5),
    ("SAMPromptEncoder", "input_image_size", (64, 96)),
    ("MaskUpscaler", "activation", "relu"),
    ("MaskUpscaler", "layer_norm_epsilon", 0.5),
    ("SAMMaskDecoder", "activation", "relu"),
    ("SAMMaskDecoder", "layer_norm_epsilon", 0.5),
    ("SAMMaskDecoder", "transformer_activation", "gelu"),
    ("SAMMaskDecoder", "transformer_layer_norm_epsilon", 0.5),
    ("SAMMaskDecoder", "skip_first_layer_pos_embedding", False),
    ("MaskUpscaler", "activates_output", False),
    ("MaskRefinement", "activation", "relu"),
    ("MaskRefinement", "layer_norm_epsilon", 0.5),
    ("SAMHQMaskDecoder", "activation", "relu"),
    ("SAMHQMaskDecoder", "layer_norm_epsilon", 0.5),
    ("SAMHQMaskDecoder", "hq_token_only", True),
    ("SAM2MaskDecoder", "activation", "relu"),
    ("SAM2MaskDecoder", "layer_norm_epsilon", 0.5),
    ("WindowedTransformerEncoder", "activation", "relu"),
    ("WindowedTransformerEncoder", "layer_norm_epsilon", 0.5),
    ("ConvNorm", "activation", "gelu"),
    ("ConvNorm", "batch_norm_epsilon", 0.5),
    ("InvertedBottleneck", "activation", "relu"),
    ("InvertedBottleneck", "batch_norm_epsilon", 0.5),
    ("InvertedBottleneck", "shortcut", False),
    ("OffsetBiasAttention", "layer_norm_epsilon", 0.5),
    ("TinyViTBlock", "activation", "relu"),
    ("TinyViTBlock", "batch_norm_epsilon", 0.5),
    ("TinyViTBlock", "layer_norm_epsilon", 0.5),
    ("TinyViTBackbone", "activation", "relu"),
    ("TinyViTBackbone", "batch_norm_epsilon", 0.5),
    ("TinyViTBackbone", "layer_norm_epsilon", 0.5),
    ("TinyViTBackbone", "pixel_mean", (0.0, 0.0, 0.0)),
    ("TinyViTBackbone", "pixel_std", (100.0, 100.0, 100.0)),
    ("HieraBlock", "activation", "relu"),
    ("HieraBlock", "layer_norm_epsilon", 0.5),
    ("HieraBackbone", "activation", "relu"),
    ("HieraBackbone", "layer_norm_epsilon", 0.5),
    ("HieraBackbone", "global_attention_layer_indices", [0]),
    ("HieraBackbone", "pixel_mean", (0.0, 0.0, 0.0)),
    ("HieraBackbone", "pixel_std", (100.0, 100.0, 100.0)),
    ("ViTDetBackbone", "activation", "relu"),
    ("ViTDetBackbone", "layer_norm_epsilon", 0.5),
    ("ViTDetBackbone", "global_attention_layer_indices", [0, 1]),
    ("ViTDetBackbone", "pixel_mean", (0.0, 0.0, 0.0)),
    ("ViTDetBackbone", "pixel_std", (100.0, 100.0, 100.0)),
]


# They hand each argument to their layers, in Python: that it acts there is in the rows of these.
WHOLES = (
    "SAMPromptEncoder",
    "SAMMaskDecoder",
    "SAMHQMaskDecoder",
    "SAM2MaskDecoder",
    "TinyViTBackbone",
    "HieraBackbone",
    "ViTDetBackbone",
)


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [pytest.param(*row, marks=[pytest.mark.once] * (row[0] in WHOLES)) for row in EFFECTS],
)
def test_argument_changes_the_outputs_and_survives_the_config(name, argument, value):
    plain, other = make(name), make(name, **{argument: value})
    randomize(plain, 2)
    if (name, argument) != ("ViTDetBackbone", "global_attention_layer_indices"):
        copy_weights(plain, other)
    else:  # the tables have another size
        randomize(other, 2)
    before, after = call(plain, name), call(other, name)
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(before, after, strict=True))
    copy = type(other).from_config(other.get_config())
    ours, theirs = getattr(copy, argument), getattr(other, argument)
    assert ours == theirs or list(ours) == list(theirs)


# (part, argument, value, path of a variable, its shape)
SHAPES = [
    ("MLP", "num_layers", 1, "dense_0/kernel", (4, 5)),
    ("TwoWayTransformer", "num_layers", 3, "layer_2/layer_norm4/beta", (8,)),
    ("TwoWayTransformer", "num_heads", 4, "layer_0/self_attention/query_proj/kernel", (8, 8)),
    ("TwoWayTransformer", "intermediate_dim", 9, "layer_1/mlp/dense_0/kernel", (8, 9)),
    (
        "TwoWayTransformer",
        "attention_downsample_rate",
        4,
        "final_attention_token_to_image/query_proj/kernel",
        (8, 2),
    ),
    ("SAMPromptEncoder", "hidden_size", 10, "no_mask_embed", (1, 10)),
    ("SAMPromptEncoder", "mask_in_channels", 8, "mask_downscaler/conv1/kernel", (2, 2, 1, 2)),
    ("SAMMaskDecoder", "num_multimask_outputs", 5, "mask_tokens", (6, 8)),
    ("SAMMaskDecoder", "num_multimask_outputs", 0, "mask_tokens", (1, 8)),
    ("SAMMaskDecoder", "iou_head_depth", 2, "iou_prediction_head/dense_1/kernel", (7, 4)),
    ("SAMMaskDecoder", "iou_head_hidden_dim", 5, "iou_prediction_head/dense_0/kernel", (8, 5)),
    ("SAMMaskDecoder", "num_layers", 1, "transformer/layer_0/layer_norm1/gamma", (8,)),
    ("SAMMaskDecoder", "intermediate_dim", 9, "transformer/layer_0/mlp/dense_1/kernel", (9, 8)),
    (
        "SAMMaskDecoder",
        "attention_downsample_rate",
        1,
        "transformer/layer_0/cross_attention_token_to_image/out_proj/kernel",
        (8, 8),
    ),
    ("MaskUpscaler", "input_dim", 12, "conv1/kernel", (2, 2, 4, 12)),
    ("MaskUpscaler", "inner_dim", 6, "conv2/kernel", (2, 2, 2, 6)),
    ("WindowAttention", "window_size", 3, "rel_pos_w", (5, 4)),
    ("WindowAttention", "window_size", 0, "rel_pos_w", (2 * GRID[1] - 1, 4)),
    ("ViTDetBackbone", "patch_size", 8, "position_embedding/embeddings", (1, 6, 10, 12)),
    ("ViTDetBackbone", "num_output_channels", 10, "neck_conv2/kernel", (3, 3, 10, 10)),
    ("ViTDetBackbone", "window_size", 3, "block_0/attention/rel_pos_h", (5, 4)),
    ("ViTDetBackbone", "num_layers", 4, "block_3/norm2/gamma", (12,)),
    ("TinyViTBackbone", "num_output_channels", 10, "neck_conv2/kernel", (3, 3, 10, 10)),
    ("HieraBackbone", "num_blocks", [1, 1, 2, 2], "block_5/norm2/gamma", (64,)),
    (
        "HieraBackbone",
        "position_background_size",
        (3, 5),
        "position_embedding/background",
        (1, 3, 5, 8),
    ),
    ("HieraBackbone", "window_sizes", [4, 4, 14, 7], "position_embedding/window", (1, 4, 4, 8)),
    ("HieraBackbone", "patch_kernel_size", 5, "patch_embedding/kernel", (5, 5, 3, 8)),
    ("HieraBackbone", "mlp_ratio", 2.0, "block_0/mlp/dense_0/kernel", (8, 16)),
    ("HieraBackbone", "num_output_channels", 24, "neck/conv_0/kernel", (1, 1, 8, 24)),
]


@pytest.mark.once
@pytest.mark.parametrize(("name", "argument", "value", "path", "shape"), SHAPES)
def test_argument_sets_the_shape_of(name, argument, value, path, shape):
    part = make(name, **{argument: value})
    shapes = {v.path.removeprefix(f"{part.name}/"): tuple(v.shape) for v in part.weights}
    assert shapes[path] == shape


@pytest.mark.parametrize(
    ("argument", "gone"),
    [
        ("use_bias", "block_0/attention/qkv/bias"),
        ("use_abs_pos", "position_embedding/embeddings"),
        ("use_rel_pos", "block_1/attention/rel_pos_h"),
    ],
)
def test_what_the_encoder_can_do_without(argument, gone):
    whole, part = make("ViTDetBackbone"), make("ViTDetBackbone", **{argument: False})
    paths = {v.path for v in whole.weights} - {v.path for v in part.weights}
    assert gone in paths
    assert all(p.rsplit("/", 1)[1] in gone or "rel_pos" in p for p in paths)
    (embedding,) = call(part, "ViTDetBackbone")
    assert np.isfinite(embedding).all()


def test_window_padding_without_bias_is_zero():
    # 3 x 5 cells in windows of 2: a padded row and column of tokens, whose only value is the bias.
    layer = make("WindowAttention", use_bias=False)
    randomize(layer, 3)
    (out,) = call(layer, "WindowAttention")
    assert out.shape == (2, *GRID, 12)
    assert np.isfinite(out).all()


def test_numbers_of_masks_and_scores_follow_num_multimask_outputs():
    masks, scores = sorted(
        call(make("SAMMaskDecoder", num_multimask_outputs=5), "SAMMaskDecoder"), key=np.ndim
    )[::-1]
    assert masks.shape == (2, 6, 12, 20)
    assert scores.shape == (2, 6)


# (part, arguments, what the message says)
REFUSED = [
    ("MLP", {"num_layers": 0}, "`num_layers` must be at least 1. Received: num_layers=0"),
    ("MultiHeadAttentionWithDownsampling", {"downsample_rate": 3}, "`downsample_rate` must divide"),
    ("TwoWayTransformer", {"num_heads": 3}, "`num_heads` must divide `hidden_size`"),
    ("SAMPromptEncoder", {"hidden_size": 9}, "`hidden_size` must be even"),
    ("SAMPromptEncoder", {"mask_in_channels": 6}, "`mask_in_channels` must be a multiple of 4"),
    ("SAMMaskDecoder", {"hidden_size": 12}, "`hidden_size` must be a multiple of 8"),
    ("SAMMaskDecoder", {"embedding_dim": 256}, "`embedding_dim` must equal `hidden_size`"),
    ("ViTDetBackbone", {"image_shape": (48, 81, 3)}, "`image_shape` must be"),
    ("ViTDetBackbone", {"image_shape": (None, None, 3)}, "`image_shape` must be"),
    ("ViTDetBackbone", {"pixel_mean": (1.0, 2.0)}, "`pixel_mean` must have one value per"),
    ("ViTDetBackbone", {"num_heads": 5}, "`num_heads` must divide the input channels"),
]


@pytest.mark.once
@pytest.mark.parametrize(("name", "arguments", "message"), REFUSED)
def test_impossible_argument_is_refused(name, arguments, message):
    if name == "MLP":
        arguments = {"hidden_dim": 4, "output_dim": 4, **arguments}
        with pytest.raises(ValueError, match=message):
            keras_sam.MLP(**arguments)
    elif name == "MultiHeadAttentionWithDownsampling":
        with pytest.raises(ValueError, match=message):
            keras_sam.MultiHeadAttentionWithDownsampling(2, 4, **arguments)
    else:
        with pytest.raises(ValueError, match=message):
            make(name, **arguments)


@pytest.mark.parametrize(
    ("shape", "mean"),
    [
        ((48, 80, 1), [114.495]),  # grey: the average of the three colours' means
        ((48, 80, 3), [123.675, 116.28, 103.53]),  # RGB: the means of SAM's training
        ((80, 48, 5), [114.495] * 5),  # five bands, standing upright
    ],
)
def test_encoder_of_any_shape_and_number_of_channels(shape, mean):
    encoder = make("ViTDetBackbone", image_shape=shape)
    assert encoder.pixel_mean == pytest.approx(mean)
    mean_colour = np.broadcast_to(np.float32(mean), (1, *shape))
    embedding = keras.ops.convert_to_numpy(encoder(mean_colour))
    assert embedding.shape == (1, shape[0] // 16, shape[1] // 16, 8)
    assert encoder.embedding_size == embedding.shape[1:3]
    patches = encoder.get_layer("patch_embedding")
    assert patches.kernel.shape[2] == shape[2]
    # The mean colour is what padding has to be: after normalisation it is zero.
    first = keras.Model(encoder.input, patches.output)
    bias = keras.ops.convert_to_numpy(patches.bias)
    out = keras.ops.convert_to_numpy(first(mean_colour))
    np.testing.assert_allclose(out, np.broadcast_to(bias, out.shape), atol=1e-4)


def test_frames_of_the_parts_must_fit():
    encoder, decoder = make("ViTDetBackbone"), make("SAMMaskDecoder")
    for arguments, message in (
        ({"image_embedding_size": GRID[::-1]}, "`prompt_encoder` must expect"),
        ({"input_image_size": FRAME[::-1]}, "`prompt_encoder.input_image_size` must be"),
    ):
        with pytest.raises(ValueError, match=message):
            keras_sam.SAMBackbone(encoder, make("SAMPromptEncoder", **arguments), decoder)
    wide = make("SAMMaskDecoder", hidden_size=16)
    with pytest.raises(ValueError, match="`mask_decoder.hidden_size` must equal"):
        keras_sam.SAMBackbone(encoder, make("SAMPromptEncoder"), wide)


WITH_WINDOWS = (
    "WindowedTransformerEncoder",
    "OffsetBiasAttention",
    "TinyViTBlock",
    "WindowedPositionEmbedding",
    "HieraAttention",
    "HieraBlock",
)


@pytest.mark.once
def test_table_of_arguments_is_complete():
    """Each argument of each part is in one of this folder's tables, or says why it is not."""
    tested = {(name, argument) for name, argument, *_ in (*EFFECTS, *SHAPES)}
    elsewhere = {
        # test_regularization.py, test_initialization.py, test_transformer.py
        "dropout_rate attention_dropout_rate drop_path_rate initializer_range scale transformer",
        # test_what_the_encoder_can_do_without
        "use_bias use_abs_pos use_rel_pos",
        # tests/models/test_tiny_vit.py, test_hiera_backbone.py, test_sam_hq.py
        "hidden_sizes depths window_sizes merge_strides expansion_ratio local_conv_size",
        "patch_stride early_features batch_norm_momentum gamma_initializer depthwise strides",
        "kernel_size filters early_dim",
        # tests/parity/test_sam2.py
        "dynamic_multimask_via_stability dynamic_multimask_stability_delta",
        "dynamic_multimask_stability_thresh not_a_point_after_boxes",
        # sizes without which there is no part, and parts of wholes
        "hidden_dim output_dim key_dim num_heads hidden_size embedding_dim downsample_rate rate",
        "image_shape image_embedding_size num_positional_features seed intermediate_dim",
        "image_encoder prompt_encoder mask_decoder backbone preprocessor mask_threshold",
        "background_size pools_queries generator_settings",
        # Keras's
        "name trainable dtype autocast activity_regularizer",
    }
    elsewhere = {word for line in elsewhere for word in line.split()}
    # What a decoder has from its base class is tested there.
    tested |= {
        (n, a)
        for n in ("SAMHQMaskDecoder", "SAM2MaskDecoder")
        for p, a in tested
        if p == "SAMMaskDecoder"
    }
    missing = {
        (name, argument)
        for name in PARTS
        for argument in make(name).get_config()
        if (name, argument) not in tested and argument not in elsewhere
    }
    # Passed down to parts that are in the tables themselves.
    passed_down = {
        ("MaskDownscaler", "mask_in_channels"),
        ("TwoWayMultiHeadAttention", "skip_first_layer_pos_embedding"),
        ("TwoWayMultiHeadAttention", "attention_downsample_rate"),
        *((name, "window_size") for name in WITH_WINDOWS),
        ("TinyViTBackbone", "mlp_ratio"),
    }
    assert missing == passed_down
