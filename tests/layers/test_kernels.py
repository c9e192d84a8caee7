"""Every way to attend over a grid gives the numbers and gradients of the plain formula."""

import contextlib
import math

import keras
import numpy as np
import pytest

from keras_sam.layers import kernels
from keras_sam.layers.dense import Dense, LayerNormalization
from keras_sam.models.programs import Program
from tests.closeness import relative_difference
from tests.gradients import gradients_of

# Windows, and a grid of more tokens than are ever attended over at once; neither is square.
GRIDS = {"windows": (2, 3, (5, 7), 6), "the whole image": (1, 2, (33, 32), 4)}
FORMS = ("attend", "_attend_by_rows", "_attend_fused", "_attend_flash")


@pytest.fixture(params=GRIDS)
def case(request):
    windows, heads, grid, channels = GRIDS[request.param]
    rng = np.random.default_rng(5)
    tokens = (windows, heads, grid[0] * grid[1], channels)
    tables = [(2 * size - 1, channels) for size in grid]
    return [rng.normal(0, 1, s).astype("float32") for s in (*[tokens] * 3, *tables)], grid


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    if request.param in ("_attend_fused", "_attend_flash") and keras.backend.backend() != "torch":
        pytest.skip("the fused forms are torch's")
    if request.param == "_attend_fused":
        # The bias of three rows of queries at a time, which is no whole part of them.
        monkeypatch.setattr(kernels, "_BIAS_AT_ONCE", {"torch": 3 * 2 * 32 * 33 * 32})
    return getattr(kernels, request.param)


def formula(query, key, value, rel_pos_h, rel_pos_w, grid):
    """In float64: `softmax(q k / sqrt(c) + q (R_h[dy] + R_w[dx])) v`."""
    table = np.zeros((1, 1, query.shape[-1]))
    if rel_pos_h is not None:
        y, x = (axis.ravel() for axis in np.indices(grid))
        table = rel_pos_h.astype("float64")[y[:, None] - y + grid[0] - 1]
        table = table + rel_pos_w[x[:, None] - x + grid[1] - 1]
    logits = np.einsum("ndqc,ndkc->ndqk", query.astype("float64"), key) / query.shape[-1] ** 0.5
    logits = logits + np.einsum("ndqc,qkc->ndqk", query, table)
    attention = np.exp(logits - logits.max(-1, keepdims=True))
    return attention / attention.sum(-1, keepdims=True) @ value


def attended(form, arrays, grid):
    query, key, value, rel_pos_h, rel_pos_w = (
        None if x is None else keras.ops.convert_to_tensor(x) for x in arrays
    )
    terms = None
    if rel_pos_h is not None:
        terms = kernels.relative_terms(query, rel_pos_h, rel_pos_w, grid)
    return form(query, key, value, terms, grid)


def test_every_form_is_the_formula(form, case):
    arrays, grid = case
    found = keras.ops.convert_to_numpy(attended(form, arrays, grid))
    np.testing.assert_allclose(found, formula(*arrays, grid), atol=3e-6)


def test_attention_without_gradients(case):
    """Which torch computes by another library."""
    arrays, grid = case
    with without_gradients():
        found = keras.ops.convert_to_numpy(attended(kernels.attend, arrays, grid))
        np.testing.assert_allclose(found, formula(*arrays, grid), atol=3e-6)
        arrays = [*arrays[:3], None, None]
        found = keras.ops.convert_to_numpy(attended(kernels.attend, arrays, grid))
    np.testing.assert_allclose(found, formula(*arrays, grid), atol=3e-6)


def without_gradients():
    if keras.backend.backend() != "torch":
        return contextlib.nullcontext()
    import torch

    return torch.no_grad()


def test_without_relative_positions(form, case):
    arrays, grid = case
    arrays = [*arrays[:3], None, None]
    found = keras.ops.convert_to_numpy(attended(form, arrays, grid))
    np.testing.assert_allclose(found, formula(*arrays, grid), atol=3e-6)


def test_gradients_are_those_of_the_whole_map(form, case):
    arrays, grid = case

    def plainly(query, key, value, terms, grid):
        return keras.ops.matmul(kernels.attention_map(query, key, terms, grid), value)

    found, expected = (
        gradients_of(lambda x, f=f: keras.ops.sum(keras.ops.square(attended(f, x, grid))), arrays)
        for f in (form, plainly)
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


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
        kernels.activate(keras.ops.convert_to_tensor(x), keras.activations.gelu)
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


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="what only torch can be asked")
class TestWhereOneDNNIsNotUsed:
    def parts(self):
        import torch

        rng = np.random.default_rng(1)
        return [torch.tensor(rng.normal(size=s).astype("float32")) for s in ((4, 6), (6, 5), (5,))]

    def test_autocast_decides_the_dtype(self):
        import torch

        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert kernels.linear(*self.parts()).dtype == torch.bfloat16

    def test_a_traced_program_can_be_saved(self):
        import torch

        x, kernel, bias = self.parts()
        with torch.no_grad():
            traced = torch.jit.trace(lambda x: kernels.linear(x, kernel, bias), (x,))
        assert "mkldnn" not in str(traced.graph)
        np.testing.assert_allclose(traced(x), x @ kernel + bias, rtol=1e-5, atol=1e-6)

    def test_dtypes_may_be_mixed(self):
        import torch

        x, kernel, _ = self.parts()
        kernel = kernel.bfloat16()
        with torch.no_grad():
            found = kernels.matmul(x, kernel)
        np.testing.assert_allclose(found, x @ kernel.float(), rtol=1e-5, atol=1e-6)
