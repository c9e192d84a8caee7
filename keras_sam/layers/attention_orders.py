"""Attention in cheaper orders of products, where either queries or keys are few.

A click has some 7 tokens, the image 4096. The textbook form projects both,
`softmax((q W_q) (k W_k)') (v W_v) W_o` per head. Matrix products may be taken in any order: those
here multiply the few tokens of all heads with the kernels, and the image with the results. That
takes half of what projecting the image takes, and no head of the image is moved in memory.

All functions are pure. Shapes: `D` heads of `c` channels each, `C` channels outside, `Tq` queries,
`Tk` keys; the axis `P` is there in all tensors or in none, and broadcasts.
"""

from typing import Any

from keras import ops

from keras_sam import backends
from keras_sam.layers.arguments import Shape, Tensor

# Far below every logit, yet finite: exp() of it is exactly 0, so a masked key has no influence.
_MASKED_LOGIT = -1e9

PROJECT_ALL, FEW_QUERIES, FEW_KEYS = "project_all", "few_queries", "few_keys"


def cheapest_order(
    query_shape: Shape,
    key_shape: Shape,
    channels_per_head: int,
    has_bias: bool = False,
    key_is_projected: bool = False,
) -> str:
    """The order that multiplies least, one of the three above: the same on every backend.

    A cheaper order pays while tokens are fewer than the channels `c` of one head. An image that
    several prompts share is projected once for all of them, which is cheaper still.
    Shapes are `(B, [P,] T, C)`; `has_bias`: whether something is added to the logits.
    """
    queries, keys = query_shape[-2], key_shape[-2]
    if None in (queries, keys):
        return PROJECT_ALL
    key_is_shared = key_is_projected or is_shared(key_shape, query_shape)
    if queries < min(channels_per_head, keys) and not key_is_shared:
        return FEW_QUERIES
    if keys < min(channels_per_head, queries) and not has_bias:
        return FEW_KEYS
    return PROJECT_ALL


def is_shared(shape: Shape, other_shape: Shape) -> bool:
    """Whether all prompts of an image share the first tensor, and each has its own second."""
    return len(shape) == 4 and shape[1] == 1 and other_shape[1] != 1


def attend_from_few_queries(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_weights: tuple[Tensor, Tensor],
    value_weights: tuple[Tensor, Tensor],
    key_mask: Tensor | None = None,
    attention_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of few tokens to an image, which is not projected.

    Per head, `q (k W_k + b_k)' = (q W_k') k' + q b_k'` and, since each row of the attention map
    `A` sums to 1, `A (v W_v + b_v) = (A v) W_v + b_v`.

    The query `(B, [P,] D, Tq, c)` is projected, key and value `(B, [P,] Tk, C)` are not; their
    weights are by head. Returns the heads' outputs, shaped as the query, and the attention map.
    """
    heads = query.shape[-3]
    query = scaled(query)
    kernel, bias = key_weights
    products = ops.matmul(query, transposed(kernel))  # (B, [P,] D, Tq, C)
    logits = backends.matmul_transposed(merge_axes(products, -3), key)
    # The bias shifts all logits of a query alike: softmax ignores it, its gradient must exist.
    logits = split_axis(logits, -2, heads) + ops.sum(query * bias, axis=-1, keepdims=True)
    attention = masked_softmax(logits, key_mask, attention_bias)  # (B, [P,] D, Tq, Tk)
    kernel, bias = value_weights
    seen = split_axis(
        backends.matmul(merge_axes(attention, -3), value), -2, heads
    )  # (B, [P,] D, Tq, C)
    return ops.matmul(seen, kernel) + bias, attention


def attend_to_few_keys(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_weights: tuple[Tensor, Tensor] | None,
    out_weights: tuple[Tensor, Tensor],
    key_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of an image to few tokens, the output's projection included.

    Per head, `(q W_q + b_q) k' = q (k W_q')' + b_q k'`, and the sum over heads of `A v W_o` is one
    product of all heads' maps with `v W_o`.

    The query is `(B, [P,] Tq, C)`, or `(B, [P,] Tq, D * c)` and projected once for all prompts if
    `query_weights` is None; key and value `(B, [P,] D, Tk, c)` are projected; `out_weights` are a
    kernel `(D * c, C)` and a bias. Returns the output `(B, [P,] Tq, C)` and the attention map.
    """
    heads = key.shape[-3]
    key = scaled(key)
    if query_weights is None:
        # Each head's keys at its own channels, zeros elsewhere: (B, P, D, Tk, D, c).
        place = ops.reshape(ops.eye(heads, dtype=key.dtype), (heads, 1, -1, 1))
        products = merge_axes(ops.expand_dims(key, -2) * place, -2)
        logits = backends.matmul_transposed(merge_axes(products, -3), query)
        logits = split_axis(logits, -2, heads)
    else:
        kernel, bias = query_weights
        products = ops.matmul(key, transposed(kernel))  # (B, [P,] D, Tk, C)
        logits = backends.matmul_transposed(merge_axes(products, -3), query)
        logits = split_axis(logits, -2, heads) + ops.sum(key * bias, axis=-1, keepdims=True)
    # (B, [P,] D, Tk, Tq): the sums over keys run along the many queries.
    mask = None if key_mask is None else transposed(key_mask)
    attention = masked_softmax(logits, mask, axis=-2)
    kernel, bias = (ops.cast(x, value.dtype) for x in out_weights)
    # Each head's attention sums to 1, so an equal part of the bias in every product arrives
    # whole: added to few tokens instead of the many queries.
    products = ops.matmul(value, split_axis(kernel, 0, heads)) + bias / heads
    out = backends.matmul(transposed(merge_axes(attention, -3)), merge_axes(products, -3))
    return out, transposed(attention)  # (B, [P,] Tq, C), (B, [P,] D, Tq, Tk)


def weights_by_head(kernel: Tensor, bias: Tensor, heads: int, dtype: Any) -> tuple[Tensor, Tensor]:
    """A projection's kernel `(C, D * c)` and bias `(D * c,)` as `(D, C, c)` and `(D, 1, c)`."""
    kernel = split_axis(ops.cast(kernel, dtype), 1, heads)  # (C, D, c)
    bias = ops.reshape(ops.cast(bias, dtype), (heads, 1, -1))
    return ops.transpose(kernel, (1, 0, 2)), bias


def scaled(x: Tensor) -> Tensor:
    """Queries, or keys, divided by the square root of their channels."""
    return x * x.shape[-1] ** -0.5


def transposed(x: Tensor) -> Tensor:
    """The last two axes exchanged."""
    return ops.swapaxes(x, -1, -2)


def masked_softmax(
    logits: Tensor,
    key_mask: Tensor | None = None,
    attention_bias: Tensor | None = None,
    axis: int = -1,
) -> Tensor:
    """Softmax over the keys, along `axis`, without those that are masked."""
    if attention_bias is not None:
        logits = logits + ops.cast(attention_bias, logits.dtype)
    if key_mask is not None:
        logits = ops.where(key_mask, logits, ops.cast(_MASKED_LOGIT, logits.dtype))
    return backends.softmax_float32(logits, axis)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """`(..., T, D * c)` to `(..., D, T, c)`."""
    return ops.swapaxes(split_axis(x, -1, heads), -2, -3)


def join_heads(x: Tensor) -> Tensor:
    """`(..., D, T, c)` to `(..., T, D * c)`."""
    return merge_axes(ops.swapaxes(x, -2, -3), -2)


def split_axis(x: Tensor, axis: int, parts: int) -> Tensor:
    """Splits an axis into two, the first of size `parts`."""
    axis %= len(x.shape)
    shape = ops.shape(x)
    return ops.reshape(x, (*shape[:axis], parts, x.shape[axis] // parts, *shape[axis + 1 :]))


def merge_axes(x: Tensor, axis: int) -> Tensor:
    """Merges an axis and the next, the inverse of `split_axis`."""
    axis %= len(x.shape)
    shape = ops.shape(x)
    return ops.reshape(x, (*shape[:axis], x.shape[axis] * x.shape[axis + 1], *shape[axis + 2 :]))
