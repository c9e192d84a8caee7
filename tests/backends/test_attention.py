"""Every way to attend over a grid gives the numbers and gradients of the plain formula."""

import contextlib
import functools

import keras
import numpy as np
import pytest

from keras_sam import backends
from keras_sam.backends import generic
from tests.gradients import gradients_of

# Windows, and a grid of more tokens than are ever attended over at once; neither is square.
GRIDS = {"windows": (2, 3, (5, 7), 6), "the whole image": (1, 2, (33, 32), 4)}
FORMS = ("attend", "attend_by_rows", "attend_fused", "attend_flash")


@pytest.fixture(params=GRIDS)
def case(request):
    windows, heads, grid, channels = GRIDS[request.param]
    rng = np.random.default_rng(5)
    tokens = (windows, heads, grid[0] * grid[1], channels)
    tables = [(2 * size - 1, channels) for size in grid]
    return [rng.normal(0, 1, s).astype("float32") for s in (*[tokens] * 3, *tables)], grid


@pytest.fixture(params=FORMS)
def form(request):
    if request.param in ("attend_fused", "attend_flash") and keras.backend.backend() != "torch":
        pytest.skip("the fused forms are torch's")
    if request.param == "attend_fused":
        # The bias of three rows of queries at a time, which is no whole part of them.
        return functools.partial(generic.attend_fused, bias_at_once=3 * 2 * 32 * 33 * 32)
    if request.param == "attend_flash":
        from keras_sam.backends import torch

        return torch.attend_flash
    return getattr(backends if request.param == "attend" else generic, request.param)


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
    rel_pos_bias = None
    if rel_pos_h is not None:
        rel_pos_bias = backends.decomposed_rel_pos(query, rel_pos_h, rel_pos_w, grid)
    return form(query, key, value, rel_pos_bias, grid)


def test_every_form_is_the_formula(form, case):
    arrays, grid = case
    found = keras.ops.convert_to_numpy(attended(form, arrays, grid))
    np.testing.assert_allclose(found, formula(*arrays, grid), atol=3e-6)


def test_attention_without_gradients(case):
    """Which torch computes by another library."""
    arrays, grid = case
    with without_gradients():
        found = keras.ops.convert_to_numpy(attended(backends.attend, arrays, grid))
        np.testing.assert_allclose(found, formula(*arrays, grid), atol=3e-6)
        arrays = [*arrays[:3], None, None]
        found = keras.ops.convert_to_numpy(attended(backends.attend, arrays, grid))
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

    def plainly(query, key, value, rel_pos_bias, grid):
        return keras.ops.matmul(generic.attention_map(query, key, rel_pos_bias, grid), value)

    found, expected = (
        gradients_of(lambda x, f=f: keras.ops.sum(keras.ops.square(attended(f, x, grid))), arrays)
        for f in (form, plainly)
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
