"""Attention between few tokens and many: every order of products gives the same numbers."""

import keras
import numpy as np
import pytest

import keras_sam
from keras_sam.layers.attention_orders import FEW_KEYS, FEW_QUERIES, PROJECT_ALL
from tests.closeness import assert_different, assert_same
from tests.gradients import gradients_of
from tests.tiny import randomize

to_numpy = keras.ops.convert_to_numpy

HEADS, INNER, CHANNELS = 2, 8, 16
IMAGE, TOKENS = 35, 3  # tokens of all heads are fewer than inner channels

# Prompts of the query and of the keys; tokens of the query and of the keys; the cheapest order.
ORDERS = {
    "tokens look at the image": ((3, 3), (TOKENS, IMAGE), FEW_QUERIES),
    "tokens look at an image of all prompts": ((3, 1), (TOKENS, IMAGE), PROJECT_ALL),
    "the image looks at tokens": ((3, 3), (IMAGE, TOKENS), FEW_KEYS),
    "an image of all prompts looks at tokens": ((1, 3), (IMAGE, TOKENS), FEW_KEYS),
    "one prompt": ((1, 1), (TOKENS, IMAGE), FEW_QUERIES),
    "tokens look at tokens": ((3, 3), (TOKENS, TOKENS), PROJECT_ALL),
    "as many tokens as channels of a head": ((3, 3), (INNER // HEADS, IMAGE), PROJECT_ALL),
    "the image looks at as many": ((3, 3), (IMAGE, INNER // HEADS), PROJECT_ALL),
    "without an axis for prompts": ((None, None), (TOKENS, IMAGE), FEW_QUERIES),
    "without it, the other way round": ((None, None), (IMAGE, TOKENS), FEW_KEYS),
}


@pytest.fixture
def layer():
    layer = keras_sam.MultiHeadAttentionWithDownsampling(HEADS, CHANNELS // HEADS, 2)
    layer.build((None, None, CHANNELS))
    randomize(layer, 3)
    return layer


def inputs(prompts, tokens):
    rng = np.random.default_rng(1)

    def draw(p, n):
        shape = (2, n, CHANNELS) if p is None else (2, p, n, CHANNELS)
        return rng.standard_normal(shape).astype("float32")

    query, key, value = draw(prompts[0], tokens[0]), *(draw(prompts[1], tokens[1]) for _ in "kv")
    lead = key.shape[:-1]
    mask = rng.random(lead) < 0.7
    mask[..., 0] = True
    bias_shape = (*query.shape[:-2], HEADS, tokens[0], tokens[1])
    return query, value, key, mask, rng.standard_normal(bias_shape).astype("float32")


def by_the_book(layer, query, value, key, mask=None, bias=None):
    """The paper's formula in float64, head by head."""
    w = {v.path.split("/", 1)[-1]: to_numpy(v).astype("float64")
         for v in layer.weights}  # fmt: skip
    q, k, v = (
        x @ w[f"{name}_proj/kernel"] + w[f"{name}_proj/bias"]
        for name, x in (("query", query), ("key", key), ("value", value))
    )
    c = INNER // HEADS
    outs, maps = [], []
    for head in range(HEADS):
        own = slice(head * c, (head + 1) * c)
        logits = q[..., own] @ np.swapaxes(k[..., own], -1, -2) / np.sqrt(c)
        if bias is not None:
            logits = logits + bias[..., head, :, :]
        if mask is not None:
            logits = np.where(mask[..., None, :], logits, -np.inf)
        logits = np.exp(logits - logits.max(axis=-1, keepdims=True))
        maps.append(logits / logits.sum(axis=-1, keepdims=True))
        outs.append(maps[-1] @ v[..., own])
    out = np.concatenate(outs, axis=-1) @ w["out_proj/kernel"] + w["out_proj/bias"]
    return out.astype("float32"), np.stack(maps, axis=-3).astype("float32")


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("case", ORDERS)
def test_every_order_is_the_papers_formula(layer, case, masked):
    prompts, tokens, order = ORDERS[case]
    query, value, key, mask, _ = inputs(prompts, tokens)
    assert layer._order(query, key, None, {}) == order
    mask = mask if masked else None
    out, attention = layer(query, value, key, key_mask=mask, return_attention=True)
    expected, expected_map = by_the_book(layer, query, value, key, mask)
    assert_same(to_numpy(out), expected)
    assert_same(to_numpy(attention), expected_map)


@pytest.mark.parametrize("case", ORDERS)
def test_a_bias_counts_in_every_order(layer, case):
    prompts, tokens, _ = ORDERS[case]
    query, value, key, _, bias = inputs(prompts, tokens)
    out = layer(query, value, key, attention_bias=bias)
    assert_same(to_numpy(out), by_the_book(layer, query, value, key, bias=bias)[0])


SHARED = {
    # The axis P of the query and of the keys; their tokens; what is projected beforehand.
    "an image that tokens look at": ((3, 1), (TOKENS, IMAGE), ("value", "key")),
    "for one prompt": ((1, 1), (TOKENS, IMAGE), ("value", "key")),
    "an image that looks at tokens": ((1, 3), (IMAGE, TOKENS), ("query",)),
    "at those of one prompt": ((1, 1), (IMAGE, TOKENS), ("query",)),
    "at many tokens": ((1, 3), (IMAGE, INNER // HEADS), ("query",)),
}


@pytest.mark.parametrize("is_quantized", [False, True])
@pytest.mark.parametrize("case", SHARED)
def test_what_is_projected_beforehand_gives_the_same(layer, case, is_quantized):
    prompts, tokens, names = SHARED[case]
    query, value, key, mask, _ = inputs(prompts, tokens)
    if is_quantized:
        layer.value_proj.quantize("int8")
        layer.query_proj.quantize("int8")
    expected = to_numpy(layer(query, value, key, key_mask=mask))
    given = {"query": query, "value": value, "key": key}
    projected = layer.project(**{name: given[name] for name in names})
    assert set(projected) == set(names)
    # Nothing is projected again: what came of it is all that counts.
    given |= {name: 0 * given[name] for name in names}
    out = to_numpy(layer(**given, key_mask=mask, projected=projected))
    assert_same(out, expected)


@pytest.mark.parametrize("case", ORDERS)
def test_gradients_are_those_of_the_textbook_form(layer, case, monkeypatch):
    prompts, tokens, _ = ORDERS[case]
    query, value, key, mask, _ = inputs(prompts, tokens)
    found = gradients(layer, query, value, key, mask)
    monkeypatch.setattr(layer, "_order", lambda *_: PROJECT_ALL)
    expected = gradients(layer, query, value, key, mask)
    scale = max(np.abs(g).max() for g in expected.values())
    for name, gradient in expected.items():
        np.testing.assert_allclose(found[name], gradient, atol=1e-5 * scale, err_msg=name)


def gradients(layer, query, value, key, mask):
    """Of a sum of squares, by every weight and by the three inputs."""
    arrays = {"query": query, "value": value, "key": key}
    weights = {v.path: to_numpy(v) for v in layer.trainable_variables}
    names = [*arrays, *weights]
    values = [*arrays.values(), *weights.values()]

    def loss(values):
        given = dict(zip(names, values, strict=True))
        state = [(v, given[v.path]) for v in layer.trainable_variables]
        with keras.StatelessScope(state_mapping=state):
            out = layer(*(given[name] for name in arrays), key_mask=mask)
        return keras.ops.sum(keras.ops.square(out))

    return dict(zip(names, gradients_of(loss, values), strict=True))


def test_integer_kernels_and_lora_are_obeyed(layer):
    prompts, tokens, _ = ORDERS["tokens look at the image"]
    query, value, key, _, _ = inputs(prompts, tokens)
    before = to_numpy(layer(query, value, key))
    layer.key_proj.enable_lora(2)
    layer.key_proj.lora_kernel_b.assign(layer.key_proj.lora_kernel_b + 0.3)
    tuned = to_numpy(layer(query, value, key))
    assert_same(tuned, by_the_book_with_lora(layer, query, value, key))
    layer.query_proj.quantize("int8")
    assert layer._order(query, key, None, {}) == PROJECT_ALL
    after = to_numpy(layer(query, value, key))
    assert_different(after, before)
    assert_same(after, tuned, 0.1)


def by_the_book_with_lora(layer, query, value, key):
    merged = to_numpy(layer.key_proj.kernel)
    twin = keras_sam.MultiHeadAttentionWithDownsampling(HEADS, CHANNELS // HEADS, 2)
    twin.build((None, None, CHANNELS))
    for mine, theirs in (("query_proj",) * 2, ("value_proj",) * 2, ("out_proj",) * 2):
        getattr(twin, mine).set_weights(getattr(layer, theirs).get_weights())
    twin.key_proj.set_weights([merged, layer.key_proj.bias])
    return by_the_book(twin, query, value, key)[0]
