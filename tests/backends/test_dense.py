"""Dense layers, activations and norms are their formulas, compiled or not, with gradients too."""

import math

import keras
import numpy as np
import pytest

from keras_sam import backends
from keras_sam.layers.dense import Dense, LayerNormalization
from keras_sam.models.programs import Program
from tests.closeness import relative_difference
from tests.gradients import gradients_of


@pytest.fixture(params=["float32", "mixed_bfloat16"])
def stack(request):
    """A dense layer with GELU, a norm and a dense layer, and what they make of an array."""
    rng = np.random.default_rng(3)
    layers = [
        Dense(24, activation="gelu", dtype=request.param),
        LayerNormalization(epsilon=1e-6, dtype=request.param),
        Dense(8, dtype=request.param),
    ]
    inputs = keras.Input((3, 5, 16))
    model = keras.Model(inputs, keras.ops.cast(keras.Sequential(layers)(inputs), "float32"))
    model.set_weights([rng.normal(0, 0.5, w.shape).astype("float32") for w in model.weights])
    return model, rng.normal(0, 2, (2, 3, 5, 16)).astype("float32")


def reference(model, x):
    """In float64, with the error function of the standard library."""
    kernel, bias, gamma, beta, last_kernel, last_bias = (
        keras.ops.convert_to_numpy(w).astype("float64") for w in model.weights
    )
    x = x @ kernel + bias
    x = x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return (x * gamma + beta) @ last_kernel + last_bias


def test_a_program_computes_products_activations_and_norms(stack):
    model, x = stack
    bound = 2e-6 if model.layers[1].layers[0].compute_dtype == "float32" else 2e-2
    expected = reference(model, x)
    for found in (
        Program(model)(x),
        keras.ops.convert_to_numpy(model(x, training=False)),
        keras.ops.convert_to_numpy(model(x, training=True)).astype("float32"),
    ):
        assert relative_difference(found, expected) < bound


def test_gradients_are_the_same_in_either_mode(stack):
    """Also of what is computed by other words when no gradients are expected."""
    model, x = stack
    inference, training = (
        gradients_of(lambda y, t=t: keras.ops.sum(model(y[0], training=t) ** 2), [x])[0]
        for t in (False, True)
    )
    bound = 1e-5 if model.layers[1].layers[0].compute_dtype == "float32" else 3e-2
    assert relative_difference(inference, training) < bound


def test_gelu_far_from_zero_is_finite_and_exact():
    x = np.array([-1e30, -60.0, -3.0, -0.0, 0.0, 3.0, 60.0, 1e30], "float32")
    found = keras.ops.convert_to_numpy(
        backends.activate(keras.ops.convert_to_tensor(x), keras.activations.gelu)
    )
    expected = x.astype("float64") * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=1e-6)


def test_whole_numbers_are_computed_as_floats():
    layer = Dense(3)
    ones = np.ones((2, 4), "int32")
    found = keras.ops.convert_to_numpy(layer(ones))
    expected = keras.ops.convert_to_numpy(layer(ones.astype("float32")))
    np.testing.assert_array_equal(found, expected)
    assert np.abs(found).max() > 0


def test_a_norm_returns_its_compute_dtype():
    """Of wider numbers too, as a transformer of the user's own may return them."""
    norm = LayerNormalization(dtype="mixed_bfloat16")
    out = norm(keras.ops.convert_to_tensor(np.ones((2, 4), "float32")))
    assert keras.backend.standardize_dtype(out.dtype) == "bfloat16"


@pytest.mark.parametrize("activation", ["gelu", "relu", None])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 6, 5),  # of the product: torch adds as it multiplies
        (2, 1, 6, 5),  # of several images
        (2, 3, 6, 5),  # of prompts that share them
    ],
)
def test_a_sum_after_a_product_is_the_formula(shape, activation):
    rng = np.random.default_rng(2)
    x, kernel, bias, other = (
        rng.standard_normal(size).astype("float32")
        for size in (shape, (5, 8), (8,), (shape[0], 1, 6, 8))
    )
    function = keras.activations.get(activation) if activation else None
    tensors = map(keras.ops.convert_to_tensor, (x, kernel, bias, other))
    actual = keras.ops.convert_to_numpy(_without_gradients(*tensors, function))
    expected = x.astype("float64") @ kernel + bias + other
    if function is not None:
        expected = keras.ops.convert_to_numpy(function(expected.astype("float32")))
    np.testing.assert_allclose(actual, expected, atol=2e-6)


def _without_gradients(*args):
    if backends.NAME != "torch":
        return backends.dense_add(*args)
    import torch

    with torch.no_grad():
        return backends.dense_add(*args)
