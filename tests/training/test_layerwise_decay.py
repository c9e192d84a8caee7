"""Smaller steps for earlier blocks, whatever the optimizer."""

import keras
import numpy as np
import pytest

from keras_sam.training import LayerwiseDecay
from tests.training.steps import small_segmenter, values

# The layers' names are the image encoder's.
SCALES = {
    "patch_embedding/kernel": 0.5**3,
    "position_embedding/bias": 0.5**3,
    "block_0/kernel": 0.5**2,
    "block_1/bias": 0.5,
    "neck_conv1/kernel": 1.0,
}
OPTIMIZERS = [
    lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    lambda: keras.optimizers.AdamW(0.01, weight_decay=0.5),
    lambda: keras.optimizers.Adam(0.01, global_clipnorm=0.1, gradient_accumulation_steps=2),
]


def steps(optimizer, count=2):
    keras.utils.set_random_seed(1)
    names = dict.fromkeys(path.split("/")[0] for path in SCALES)
    inputs = outputs = keras.Input((3,))
    for name in names:
        outputs = keras.layers.Dense(3, name=name)(outputs)
    model = keras.Model(inputs, outputs)
    model.compile(optimizer=optimizer, loss="mse")
    before = values(model)
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    for _ in range(count):
        model.train_on_batch(x, x**2)
    return model, {path: after - before[path] for path, after in values(model).items()}


@pytest.mark.parametrize("make", OPTIMIZERS, ids=["SGD", "AdamW", "Adam that accumulates"])
def test_steps_are_scaled_by_depth(make):
    count = 2 if make().gradient_accumulation_steps else 1
    _, plain = steps(make(), count)
    model, decayed = steps(LayerwiseDecay(make(), decay=0.5), count)
    for path, scale in SCALES.items():
        assert np.abs(plain[path]).max() > 0
        np.testing.assert_allclose(decayed[path], scale * plain[path], rtol=1e-3, atol=1e-6)
    assert int(model.optimizer.iterations) == 1


def test_a_segmenters_variables_are_told_apart():
    segmenter = small_segmenter(num_layers=3)
    variables = segmenter.trainable_variables
    powers = LayerwiseDecay(keras.optimizers.SGD(), decay=0.5).multipliers(variables)
    found = {v.path.split("/")[0]: np.log(m) / np.log(0.5) for v, m in zip(variables, powers)}
    assert {name: round(power) for name, power in found.items()} == {
        "patch_embedding": 4,
        "position_embedding": 4,
        "block_0": 3,
        "block_1": 2,
        "block_2": 1,
        "neck_conv1": 0,
        "neck_norm1": 0,
        "neck_conv2": 0,
        "neck_norm2": 0,
        "prompt_encoder": 0,
        "mask_decoder": 0,
    }


def test_it_is_saved_and_loaded_with_its_state(tmp_path):
    model, _ = steps(LayerwiseDecay(keras.optimizers.Adam(0.01), decay=0.5), 1)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(again.optimizer, LayerwiseDecay)
    assert again.optimizer.decay == 0.5
    pairs = zip(model.optimizer.variables, again.optimizer.variables, strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b))


def test_its_learning_rate_is_the_optimizers():
    inner = keras.optimizers.SGD(0.1)
    optimizer = LayerwiseDecay(inner)
    optimizer.learning_rate = 0.02
    assert float(inner.learning_rate) == float(optimizer.learning_rate) == np.float32(0.02)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: LayerwiseDecay(keras.optimizers.SGD(), decay=0.0), "decay=0.0"),
        (lambda: LayerwiseDecay(keras.optimizers.SGD(), decay=1.5), "decay=1.5"),
        (lambda: LayerwiseDecay(keras.optimizers.SGD(use_ema=True)), "use_ema=True"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
