"""Dropout, attention dropout and drop-path: in training only, and as strong as was asked."""

import keras
import numpy as np
import pytest

import keras_sam
from keras_sam.layers.window_attention import DropPath
from tests.layers.parts import PARTS, call, make, numpy

# (part, argument): everywhere that something can be dropped
RATES = [
    ("MLP", "dropout_rate"),
    ("TwoWayMultiHeadAttention", "dropout_rate"),
    ("TwoWayTransformer", "dropout_rate"),
    ("SAMMaskDecoder", "dropout_rate"),
    ("WindowAttention", "attention_dropout_rate"),
    ("WindowedTransformerEncoder", "dropout_rate"),
    ("WindowedTransformerEncoder", "attention_dropout_rate"),
    ("WindowedTransformerEncoder", "drop_path_rate"),
    ("ViTDetBackbone", "dropout_rate"),
    ("ViTDetBackbone", "attention_dropout_rate"),
    ("ViTDetBackbone", "drop_path_rate"),
]


WHOLES = ("TwoWayTransformer", "SAMMaskDecoder", "ViTDetBackbone")  # hand it to their layers


@pytest.mark.parametrize(
    ("name", "argument"),
    [pytest.param(*row, marks=[pytest.mark.once] * (row[0] in WHOLES)) for row in RATES],
)
def test_rate_acts_in_training_and_only_there(name, argument):
    keras.utils.set_random_seed(3)
    part, plain = make(name, **{argument: 0.5}), make(name)
    copy_weights(plain, part)
    expected = call(plain, name)
    same = [np.abs(a - b).max() for a, b in zip(call(part, name), expected, strict=True)]
    assert max(same) < 1e-5  # without `training` it is inference
    off = call(part, name, training=False)
    assert all(np.abs(a - b).max() < 1e-5 for a, b in zip(off, expected, strict=True))
    # Two draws of drop-path may drop the same samples by chance; nine do not.
    first, *others = [call(part, name, training=True) for _ in range(9)]
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(first, expected, strict=True))
    assert any(
        np.abs(a - b).max() > 1e-3 for other in others for a, b in zip(first, other, strict=True)
    )


@pytest.mark.parametrize("name", sorted({name for name, _ in RATES}))
def test_without_rates_training_changes_nothing(name):
    part = make(name)
    for a, b in zip(call(part, name, training=True), call(part, name), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_drop_path_drops_whole_samples_and_keeps_the_expectation():
    keras.utils.set_random_seed(0)
    x = np.ones((2000, 2, 3), "float32")
    out = numpy(DropPath(0.25)(x, training=True))[0].reshape(2000, 6)
    assert np.ptp(out, axis=1).max() == 0  # a sample goes or stays as a whole
    assert set(np.unique(out)) == {0, np.float32(1 / 0.75)}
    assert out.mean() == pytest.approx(1, abs=4 * np.sqrt(0.25 / 0.75 / 2000))


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_drop_path_rate_must_leave_something(rate):
    with pytest.raises(ValueError, match=r"`rate` must lie in \[0, 1\). Received: rate="):
        DropPath(rate)


@pytest.mark.parametrize(
    ("layers", "rates"),
    [
        (5, [0, 0.1, 0.2, 0.3, 0.4]),  # linear over depth, as the paper trains
        (2, [0, 0.4]),  # first and last
        (1, [0]),  # the only block is the first
    ],
)
def test_drop_path_grows_linearly_over_depth(layers, rates):
    encoder = keras_sam.ViTDetBackbone(
        hidden_size=6,
        num_layers=layers,
        intermediate_dim=6,
        num_heads=1,
        global_attention_layer_indices=[],
        image_shape=(16, 16, 3),
        drop_path_rate=0.4,
    )
    actual = [encoder.get_layer(f"block_{i}").drop_path.rate for i in range(layers)]
    assert actual == pytest.approx(rates)


def test_attention_dropout_keeps_the_expectation():
    part, plain = make("WindowAttention", attention_dropout_rate=0.3), make("WindowAttention")
    copy_weights(plain, part)
    (expected,) = call(plain, "WindowAttention")
    mean = np.mean([call(part, "WindowAttention", training=True)[0] for _ in range(60)], axis=0)
    assert np.abs(mean - expected).mean() < 0.25 * np.abs(expected).mean()


def test_segmenter_drops_in_training(monkeypatch):
    decoder = make("SAMMaskDecoder", dropout_rate=0.5)
    backbone = keras_sam.SAMBackbone(make("ViTDetBackbone"), make("SAMPromptEncoder"), decoder)
    segmenter = keras_sam.SAMImageSegmenter(backbone)
    inputs = PARTS["SAMImageSegmenter"][1][0]
    masks = [numpy(segmenter(inputs, training=on)["masks"])[0] for on in (True, False, False)]
    assert np.abs(masks[0] - masks[1]).max() > 1e-3
    np.testing.assert_array_equal(masks[1], masks[2])


def copy_weights(source, target):
    """By name: the state of random generators is no weight, and only one of the two has it."""
    values = {v.path.removeprefix(f"{source.name}/"): v for v in source.weights}
    for variable in target.weights:
        variable.assign(values[variable.path.removeprefix(f"{target.name}/")])
