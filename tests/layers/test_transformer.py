"""A mask decoder with a transformer of the user's own."""

import keras
import numpy as np
import pytest

import keras_sam
from tests.layers.parts import GRID, PARTS, call, make
from tests.tiny import randomize


@keras.saving.register_keras_serializable(package="tests")
class Mixer(keras.layers.Layer):
    """The smallest transformer: tokens and image get one dense layer each."""

    def __init__(self, hidden_size, **kwargs):
        super().__init__(**kwargs)
        self.hidden_size = hidden_size
        self.dense = keras.layers.Dense(hidden_size, dtype=self.dtype_policy, name="dense")

    def build(self, image_shape, positions_shape, tokens_shape):
        self.dense.build((None, self.hidden_size))

    def call(self, image, positions, tokens, point_mask=None):
        image = image + positions
        lead = keras.ops.shape(image)[:2]
        image = keras.ops.reshape(image, (*lead, GRID[0] * GRID[1], self.hidden_size))
        image = image + keras.ops.mean(tokens, axis=2, keepdims=True)
        return self.dense(tokens), self.dense(image)

    def get_config(self):
        return {**super().get_config(), "hidden_size": self.hidden_size}


def test_own_transformer_takes_the_place_of_ours():
    mixer = Mixer(8, name="mixer")
    decoder = make("SAMMaskDecoder", transformer=mixer)
    assert decoder.transformer is mixer
    assert not any("self_attention" in v.path for v in decoder.weights)
    assert "mask_decoder/mixer/dense/kernel" in {v.path for v in decoder.weights}
    before = call(decoder, "SAMMaskDecoder")
    mixer.dense.kernel.assign(mixer.dense.kernel * 2)
    after = call(decoder, "SAMMaskDecoder")
    assert any(np.abs(a - b).max() > 1e-4 for a, b in zip(before, after, strict=True))


def test_own_transformer_travels_with_the_config_and_the_file(tmp_path):
    decoder = make("SAMMaskDecoder", transformer=Mixer(8, name="mixer"))
    backbone = keras_sam.SAMBackbone(make("ViTDetBackbone"), make("SAMPromptEncoder"), decoder)
    segmenter = keras_sam.SAMImageSegmenter(backbone)
    randomize(segmenter, 4)
    segmenter.save(tmp_path / "mixer.keras")
    loaded = keras.saving.load_model(tmp_path / "mixer.keras")
    assert isinstance(loaded.mask_decoder.transformer, Mixer)
    inputs = PARTS["SAMImageSegmenter"][1][0]
    for name, expected in segmenter(inputs).items():
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(loaded(inputs)[name]), keras.ops.convert_to_numpy(expected)
        )


def test_our_transformer_given_by_hand_is_the_built_in_one():
    # The same variables under the same paths: checkpoints load into it.
    given = keras_sam.TwoWayTransformer(
        hidden_size=8, num_heads=2, intermediate_dim=12, name="transformer"
    )
    ours, default = make("SAMMaskDecoder", transformer=given), make("SAMMaskDecoder")
    assert [v.path for v in ours.weights] == [v.path for v in default.weights]
    randomize(default, 5)
    ours.set_weights(default.get_weights())
    for a, b in zip(call(ours, "SAMMaskDecoder"), call(default, "SAMMaskDecoder"), strict=True):
        np.testing.assert_array_equal(a, b)


def test_decoder_is_complete_once_it_is_built():
    given = keras_sam.TwoWayTransformer(hidden_size=8, num_heads=2, intermediate_dim=12)
    decoder = keras_sam.SAMMaskDecoder(
        hidden_size=8, intermediate_dim=12, num_heads=2, transformer=given
    )
    decoder.build()
    assert given.built
    count = decoder.count_params()
    call(decoder, "SAMMaskDecoder")
    assert decoder.count_params() == count


@pytest.mark.parametrize("key_dim", [1, 3])
def test_heads_narrower_than_the_rate_keep_one_channel(key_dim):
    # KerasHub's documentation makes a decoder of 8 channels with 8 heads, and halves them.
    layer = keras_sam.MultiHeadAttentionWithDownsampling(4, key_dim, downsample_rate=key_dim + 1)
    x = np.random.default_rng(0).standard_normal((1, 5, 4 * key_dim)).astype("float32")
    out = keras.ops.convert_to_numpy(layer(query=x, value=x, key=x))
    assert out.shape == x.shape
    assert tuple(layer.query_proj.kernel.shape) == (4 * key_dim, 4)
    assert np.ptp(out, axis=1).max() > 0  # tokens differ: attention does see them
