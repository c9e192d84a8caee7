"""SAM 2's image encoder as a Keras model: sizes it takes, presets, LoRA, other frames."""

import keras
import numpy as np
import pytest

import keras_sam
from tests.gradients import gradients_of
from tests.layers.parts import make
from tests.tiny import photograph, randomize


@pytest.fixture(scope="module")
def encoder():
    model = make("HieraBackbone")
    randomize(model, 3)
    return model


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"image_shape": (64, 80, 3)}, "multiples of 32: patches of 4 pixels in windows of 8"),
        ({"image_shape": (96, 96, 3), "window_sizes": (6, 2, 6, 3)}, None),  # lcm(6, 8) is 24
        ({"image_shape": (64, 64, 3), "window_sizes": (6, 2, 6, 3)}, "multiples of 96"),
        ({"image_shape": (0, 32, 3)}, "multiples of 32"),
        ({"window_sizes": (8, 4, 7, 7)}, "the first three even"),
        ({"window_sizes": (8, 4, 14)}, "`window_sizes` must have four values"),
        ({"num_blocks": (1, 2, 3)}, "`num_blocks` must have four values"),
        ({"num_heads": 3}, "`num_heads` must divide the channels of every stage"),
        ({"num_output_channels": 20}, "`num_output_channels` must be a multiple of 8"),
        ({"pixel_mean": (1.0, 2.0)}, "`pixel_mean` must have one value per image channel"),
    ],
)
def test_sizes(arguments, said):
    if said is None:
        assert make("HieraBackbone", **arguments).embedding_size == (6, 6)
        return
    with pytest.raises(ValueError, match=said):
        make("HieraBackbone", **arguments)


def test_a_preset_at_another_frame_and_with_other_channels(encoder, tmp_path):
    encoder.save_to_preset(tmp_path)
    images = photograph((64, 96))[None].astype("float32")
    wanted = encoder.predict(images, verbose=0)
    again = keras_sam.HieraBackbone.from_preset(tmp_path)
    for name, values in again.predict(images, verbose=0).items():
        np.testing.assert_allclose(values, wanted[name], rtol=1e-5, atol=1e-5)
    assert again.fingerprint() == encoder.fingerprint()
    larger = keras_sam.HieraBackbone.from_preset(tmp_path, image_shape=(128, 64))
    assert larger.embedding_size == (8, 4)
    grey = keras_sam.HieraBackbone.from_preset(tmp_path, num_channels=1)
    repeated = np.repeat(images[..., :1], 3, axis=-1)
    wanted = encoder.predict(repeated, verbose=0)["image_embeddings"]
    found = grey.predict(images[..., :1], verbose=0)["image_embeddings"]
    # The border of zeros is the mean colour, of which grey images have another one.
    assert np.abs(found - wanted)[:, 1:, 1:].max() < 0.2 * np.abs(wanted).max()


def test_lora(encoder):
    model = type(encoder).from_config(encoder.get_config())
    model.enable_lora(2)
    trained = {v.path.rsplit("/", 2)[1] for v in model.trainable_variables}
    assert trained == {"qkv", "projection"}
    assert len(model.trainable_variables) == 2 * 2 * 5


def test_drop_path_grows_with_depth():
    model = make("HieraBackbone", drop_path_rate=0.4)
    rates = [model.get_layer(f"block_{i}").drop_path.rate for i in range(5)]
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3, 0.4])


def test_gradients_reach_every_variable(encoder):
    if keras.backend.backend() == "openvino":
        pytest.skip("OpenVINO has no gradients")
    images = np.random.default_rng(0).uniform(0, 255, (1, 64, 96, 3)).astype("float32")
    others = [v.value for v in encoder.non_trainable_variables]

    def loss(variables):
        features, _ = encoder.stateless_call(variables, others, images, training=True)
        return sum(keras.ops.mean(keras.ops.square(x)) for x in features.values())

    values = [keras.ops.convert_to_numpy(v) for v in encoder.trainable_variables]
    found = gradients_of(loss, values)
    for variable, gradient in zip(encoder.trainable_variables, found, strict=True):
        assert np.abs(gradient).max() > 0, variable.path
