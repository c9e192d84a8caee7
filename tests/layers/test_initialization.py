"""Initial values are those of the released code, so that training from scratch starts right."""

import re

import keras
import numpy as np
import pytest

import keras_sam
from keras_sam.layers.initialization import build_part, released_initializer, skip_init

# Fan-ins that are no accident of the layer's own sizes: a swapped axis gives another bound.
HIDDEN, OUTPUT, PATCH = 32, 16, 8
TOKENS = r"_embed$|/iou_token$|/mask_tokens$"


@pytest.fixture(scope="module")
def weights():
    """Initial values of a whole model by path, without the image encoder's repeated blocks."""
    return initial_values()


def initial_values(**settings):
    keras.utils.set_random_seed(11)
    encoder = keras_sam.ViTDetBackbone(
        hidden_size=HIDDEN,
        num_layers=1,
        intermediate_dim=48,
        num_heads=2,
        global_attention_layer_indices=[0],
        image_shape=(32, 40, 3),
        patch_size=PATCH,
        num_output_channels=OUTPUT,
        **settings,
    )
    prompts = keras_sam.SAMPromptEncoder(
        hidden_size=OUTPUT,
        image_embedding_size=(4, 5),
        input_image_size=(32, 40),
        mask_in_channels=12,
        **settings,
    )
    decoder = keras_sam.SAMMaskDecoder(
        hidden_size=OUTPUT, intermediate_dim=24, num_heads=2, iou_head_hidden_dim=20, **settings
    )
    backbone = keras_sam.SAMBackbone(encoder, prompts, decoder)
    return {v.path: keras.ops.convert_to_numpy(v) for v in backbone.weights}


# path: how many inputs one output sums over
FAN_IN = {
    "patch_embedding": 3 * PATCH**2,
    "block_0/attention/qkv": HIDDEN,
    "block_0/attention/projection": HIDDEN,
    "block_0/mlp/dense_0": HIDDEN,
    "block_0/mlp/dense_1": 48,
    "neck_conv1": HIDDEN,
    "neck_conv2": 9 * OUTPUT,
    "prompt_encoder/mask_downscaler/conv1": 4,
    "prompt_encoder/mask_downscaler/conv2": 4 * 3,
    "prompt_encoder/mask_downscaler/conv3": 12,
    "mask_decoder/transformer/layer_0/self_attention/query_proj": OUTPUT,
    "mask_decoder/transformer/layer_1/cross_attention_token_to_image/value_proj": OUTPUT,
    "mask_decoder/transformer/layer_1/cross_attention_image_to_token/out_proj": OUTPUT // 2,
    "mask_decoder/transformer/layer_0/mlp/dense_1": 24,
    "mask_decoder/transformer/final_attention_token_to_image/key_proj": OUTPUT,
    # Transposed convolutions: the released code counts their output channels.
    "mask_decoder/output_upscaling/conv1": 4 * OUTPUT // 4,
    "mask_decoder/output_upscaling/conv2": 4 * OUTPUT // 8,
    "mask_decoder/hypernetwork_2/dense_2": OUTPUT,
    "mask_decoder/iou_prediction_head/dense_1": 20,
}


@pytest.mark.parametrize(("path", "fan_in"), FAN_IN.items())
def test_linear_layers_and_convolutions_start_uniform(weights, path, fan_in):
    limit = 1 / np.sqrt(fan_in)
    values = weights[f"{path}/kernel"].ravel()
    if f"{path}/bias" in weights:  # biases too, where Keras would start at zero
        assert np.ptp(weights[f"{path}/bias"]) > 0
        values = np.concatenate([values, weights[f"{path}/bias"].ravel()])
    assert np.abs(values).max() <= limit * (1 + 1e-6)
    error = 4 / np.sqrt(len(values))  # four standard errors of a mean of so many
    assert np.abs(values.mean()) <= error * limit / np.sqrt(3)
    assert values.std() == pytest.approx(limit / np.sqrt(3), rel=error)


def test_every_kernel_and_bias_starts_so(weights):
    # Whatever the table above leaves out: no kernel or bias starts constant or Gaussian.
    for path, values in weights.items():
        if path.endswith(("/kernel", "/bias")) and values.size > 20:
            spread = np.abs(values).max() / values.std()
            assert spread < np.sqrt(3) * 1.35, path  # a Gaussian of 20 values is beyond 1.9


def test_released_code_starts_so_too(weights):
    torch = pytest.importorskip("torch", reason="the released code runs on torch")
    torch.manual_seed(0)
    for path, fan_in in FAN_IN.items():
        shape = weights[f"{path}/kernel"].shape
        if "output_upscaling" in path:
            part = torch.nn.ConvTranspose2d(shape[3], shape[2], 2, 2)
        elif len(shape) == 4:
            part = torch.nn.Conv2d(shape[2], shape[3], shape[:2])
        else:
            part = torch.nn.Linear(*shape)
        drawn = max(part.weight.detach().abs().max(), part.bias.detach().abs().max()).item()
        assert 0.7 / np.sqrt(fan_in) < drawn <= (1 + 1e-6) / np.sqrt(fan_in), path


def test_tokens_and_frequencies_start_standard_normal(weights):
    drawn = [v for p, v in weights.items() if re.search(TOKENS + r"|gaussian_matrix$", p)]
    assert len(drawn) == 9
    drawn = np.concatenate([v.ravel() for v in drawn])
    assert drawn.mean() == pytest.approx(0, abs=4 / np.sqrt(len(drawn)))
    assert drawn.std() == pytest.approx(1, rel=4 / np.sqrt(2 * len(drawn)))


def test_no_two_tokens_start_equal(weights):
    # One Keras initializer that is used twice draws the same values twice.
    rows = [v for p, v in weights.items() if re.search(TOKENS, p)]
    rows = np.concatenate(rows)
    assert len(rows) == 6 + 1 + 4
    assert len(np.unique(rows[:, 0])) == len(rows)


def test_no_two_kernels_start_equal(weights):
    flat = [v.ravel()[:4] for p, v in weights.items() if p.endswith("kernel")]
    assert len(np.unique(np.array(flat)[:, 0])) == len(flat)


def test_position_tables_start_at_zero(weights):
    tables = [p for p in weights if re.search(r"rel_pos|position_embedding/", p)]
    assert len(tables) == 3
    assert not any(weights[p].any() for p in tables)


def test_norms_start_as_the_identity(weights):
    assert all((v == 1).all() for p, v in weights.items() if p.endswith("gamma"))
    assert not any(v.any() for p, v in weights.items() if p.endswith("beta"))


def test_initializer_range_replaces_all_of_it():
    drawn = initial_values(initializer_range=0.02)
    kernels = np.concatenate([v.ravel() for p, v in drawn.items() if p.endswith("/kernel")])
    # A normal distribution of deviation 0.02, cut at two deviations and drawn again.
    assert np.abs(kernels).max() <= 0.04 * (1 + 1e-6)
    assert kernels.std() == pytest.approx(0.02 * 0.8796, rel=0.03)
    assert not any(v.any() for p, v in drawn.items() if p.endswith("/bias"))
    tokens = [v.ravel() for p, v in drawn.items() if re.search(TOKENS, p)]
    assert np.concatenate(tokens).std() == pytest.approx(0.02, rel=0.25)
    # The frequencies are no weights to be learnt: `scale` alone sets them.
    assert drawn["prompt_encoder/positional_embedding/gaussian_matrix"].std() > 0.5


def test_scale_is_the_deviation_of_the_frequencies():
    keras.utils.set_random_seed(3)
    layer = keras_sam.RandomFrequencyPositionalEmbeddings(400, scale=5.0)
    layer.build()
    matrix = keras.ops.convert_to_numpy(layer.gaussian_matrix)
    assert matrix.std() == pytest.approx(5.0, rel=0.15)


def test_build_part_leaves_a_layer_without_bias_alone():
    layer = build_part(keras.layers.Dense(3, use_bias=False), (None, 4))
    assert len(layer.weights) == 1
    assert layer.kernel_initializer.get_config()["maxval"] == 0.5


def test_released_initializer_is_serialisable():
    initializer = released_initializer(16)
    copy = keras.initializers.deserialize(keras.initializers.serialize(initializer))
    assert copy.get_config()["minval"] == -0.25


def test_a_part_without_values_has_shapes_and_would_start_anew_as_released():
    with skip_init():
        layer = build_part(keras.layers.Dense(3), (None, 4))
    assert [tuple(v.shape) for v in layer.weights] == [(4, 3), (3,)]
    for initializer in (layer.kernel_initializer, layer.bias_initializer):
        assert initializer.get_config()["maxval"] == 0.5
