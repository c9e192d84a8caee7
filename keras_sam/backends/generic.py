"""Every function of a backend in its textbook form, by `keras.ops`: right on all of them.

A backend's own module replaces what it can do faster, with the same arguments.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import ops

Tensor: TypeAlias = Any  # of the running backend
Activation: TypeAlias = Callable[[Tensor], Tensor]
RelPosBias: TypeAlias = tuple[Tensor, Tensor] | None  # what `decomposed_rel_pos` returned
Grid: TypeAlias = tuple[int, int]  # cells (h, w)

# Prompt sets of an image that are decoded at once. Each carries its own copy of the image tokens
# and there are several at a time: larger chunks are no faster, and take more memory.
PROMPT_CHUNK = 4
# Whether there are gradients.
CAN_TRAIN = True
# How many batches Keras reads for their shapes alone before it trains.
READS_SIGNATURES = 0
# Whether a batch to train on must have masks, even if none is given.
NEEDS_MASKS = False
# Whether a compiled program computes only once what depends on nothing but weights.
FOLDS_CONSTANTS = False

# From so many tokens on, the logits of all queries at once fall out of every cache (those of a
# global block of ViT-B at 1024 x 1024 have 805 MB), so that queries are taken one row of the grid
# at a time. Windows (14 x 14) stay below it.
ROWS_FROM_TOKENS = 1024

# As many columns are transposed at once when they are copied.
_COLUMNS_AT_ONCE = 128


def dense(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor,
    activation: Activation | None = None,
    training: bool | None = None,
) -> Tensor:
    """`activation(x @ kernel + bias)`, in the dtype of `x`. In `training`, gradients are wanted."""
    kernel, bias = ops.cast(kernel, x.dtype), ops.cast(bias, x.dtype)
    out = ops.add(ops.matmul(x, kernel), bias)
    return activate(out, activation, training)


def dense_add(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor,
    other: Tensor,
    activation: Activation | None = None,
    training: bool | None = None,
) -> Tensor:
    """`activation(x @ kernel + bias + other)`, where `other` broadcasts to the product."""
    return activate(dense(x, kernel, bias, None, training) + other, activation, training)


def activate(x: Tensor, activation: Activation | None, training: bool | None = None) -> Tensor:
    """`activation(x)`, or `x` if there is none."""
    return x if activation is None else activation(x)


def layer_norm(
    x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float, training: bool | None = None
) -> Tensor:
    """Normalises the last axis."""
    return ops.layer_normalization(x, gamma, beta, -1, epsilon)


def convolve(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None = None,
    strides: int = 1,
    activation: Activation | None = None,
    training: bool | None = None,
) -> Tensor:
    """`activation(convolution + bias)` of `(B, h, w, channels)` by `(k, k, channels, filters)`.

    `k` is odd, and `k // 2` zeros are put around the map on each side. Keras's own padding does so
    where strides are 1; where they are larger, it would put more at the end.
    """
    padding = "same" if strides == 1 else "valid"
    x = x if strides == 1 else pad_map(x, kernel.shape[0] // 2)
    out = ops.conv(x, ops.cast(kernel, x.dtype), strides=strides, padding=padding)
    return activate(add_bias(out, bias), activation, training)


def convolve_depthwise(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None = None,
    strides: int = 1,
    activation: Activation | None = None,
    training: bool | None = None,
    edges: tuple[bool, bool] = (True, True),
) -> Tensor:
    """`convolve`, each channel by itself: the kernel is `(k, k, channels, 1)`.

    Zeros are put above and below the map where `edges` says so, and on both sides always.
    """
    is_whole = strides == 1 and edges == (True, True)
    x = x if is_whole else pad_map(x, kernel.shape[0] // 2, edges)
    padding = "same" if is_whole else "valid"
    out = ops.depthwise_conv(x, ops.cast(kernel, x.dtype), strides=strides, padding=padding)
    return activate(add_bias(out, bias), activation, training)


def pad_map(x: Tensor, width: int, edges: tuple[bool, bool] = (True, True)) -> Tensor:
    """Zeros around a map `(B, h, w, channels)`, see `convolve_depthwise`."""
    top, bottom = (width * edge for edge in edges)
    return ops.pad(x, [(0, 0), (top, bottom), (width, width), (0, 0)])


def add_bias(x: Tensor, bias: Tensor | None) -> Tensor:
    """`x + bias` in the dtype of `x`, or `x` if there is none."""
    return x if bias is None else x + ops.cast(bias, x.dtype)


def in_strips(
    function: Callable[[Tensor, tuple[bool, bool]], Tensor],
    x: Tensor,
    strides: int,
    numbers_per_row: int,
) -> Tensor:
    """`function(x, (True, True))`, which may be computed some rows of the map at a time.

    Row `i` of the output depends on the rows `strides * i - 1` to `strides * i + 1` of `x`. The
    function gets rows, and whether the first and the last of them are the map's own.
    `numbers_per_row` is how many numbers it makes at once for a row.
    """
    return function(x, (True, True))


def by_strips(
    function: Callable[[Tensor, tuple[bool, bool]], Tensor], x: Tensor, strides: int, rows: int
) -> Tensor:
    """`in_strips` of at most `rows` rows of the output at a time."""
    height = x.shape[1]
    out_height = -(-height // strides)
    outs = []
    for top in range(0, out_height, rows):
        bottom = min(top + rows, out_height)
        first, last = strides * top - 1, strides * (bottom - 1) + 2
        strip = x[:, max(first, 0) : min(last, height)]
        outs.append(function(strip, (first < 0, last > height)))
    return outs[0] if len(outs) == 1 else ops.concatenate(outs, axis=1)


def matmul(x: Tensor, y: Tensor) -> Tensor:
    """`x @ y` of the last two axes."""
    return ops.matmul(x, y)


def matmul_transposed(x: Tensor, y: Tensor) -> Tensor:
    """`x @ y.T` of the last two axes."""
    return ops.matmul(x, ops.swapaxes(y, -1, -2))


def softmax_float32(logits: Tensor, axis: int = -1) -> Tensor:
    """Softmax in float32, back in the dtype of `logits`."""
    return ops.cast(ops.softmax(ops.cast(logits, "float32"), axis=axis), logits.dtype)


def split_windows_and_heads(qkv: Tensor, window_grid: Grid, heads: int) -> list[Tensor]:
    """`(B, h, w, 3 D c)` to query, key and value, each `(N, D, window cells, c)`.

    Images and their rows of windows share an axis, and each of the three is transposed by itself:
    LiteRT's transposes have six axes at most.
    """
    window_h, window_w = window_grid
    width = qkv.shape[3] // 3
    shape = (-1, window_h, qkv.shape[2] // window_w, window_w, heads, width // heads)
    parts = []
    for i in range(3):
        part = ops.reshape(qkv[..., i * width : (i + 1) * width], shape)
        part = ops.transpose(part, (0, 2, 4, 1, 3, 5))
        parts.append(ops.reshape(part, (-1, heads, window_h * window_w, width // heads)))
    return parts


def decomposed_rel_pos(
    query: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    """The two parts of the relative-position bias, which uses the unscaled query.

    From the query `(N, D, h * w, c)` and tables `(2 h - 1, c)` and `(2 w - 1, c)` to
    `(N, D, h, w, h)`, by key row, and `(N, D, h, w, w)`, by key column.
    """
    h, w = grid
    heads, channels = query.shape[1], query.shape[3]
    query = ops.reshape(query, (-1, heads, h, w, channels))
    rows = _gather_relative_positions(ops.cast(rel_pos_h, query.dtype), h)
    columns = _gather_relative_positions(ops.cast(rel_pos_w, query.dtype), w)
    return (
        ops.einsum("ndhwc,hkc->ndhwk", query, rows),
        ops.einsum("ndhwc,wkc->ndhwk", query, columns),
    )


def _gather_relative_positions(table: Tensor, size: int) -> Tensor:
    """Rows of a table `(2 size - 1, c)` by query and key: `(size, size, c)`.

    Row `q - k + size - 1` belongs to query `q` and key `k`.
    """
    index = ops.arange(size)
    index = ops.expand_dims(index, 1) - ops.expand_dims(index, 0) + (size - 1)
    return ops.take(table, index, axis=0)


def attention_map(
    query: Tensor,
    key: Tensor,
    rel_pos_bias: RelPosBias,
    grid: Grid,
    softmax: Activation = softmax_float32,
) -> Tensor:
    """The map of `attend`, `(N, D, h * w, h * w)`: for small grids, dropout or inspection."""
    h, w = grid
    heads, channels = query.shape[1], query.shape[3]
    logits = ops.matmul(query * channels**-0.5, ops.transpose(key, (0, 1, 3, 2)))
    if rel_pos_bias is not None:
        by_row, by_column = rel_pos_bias
        logits = ops.reshape(logits, (-1, heads, h, w, h, w))
        logits = logits + ops.expand_dims(by_row, -1) + ops.expand_dims(by_column, -2)
        logits = ops.reshape(logits, (-1, heads, h * w, h * w))
    return softmax(logits)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rel_pos_bias: RelPosBias,
    grid: Grid,
    training: bool | None = None,
    softmax: Activation = softmax_float32,
) -> Tensor:
    """Attention over a grid of tokens: `attention_map(query, key, ...) @ value`.

    Query, key, value and result are `(N, D, h * w, c)`; `softmax` is over the last axis.
    """
    if math.prod(grid) >= ROWS_FROM_TOKENS:
        return attend_by_rows(query, key, value, rel_pos_bias, grid, softmax=softmax)
    return ops.matmul(attention_map(query, key, rel_pos_bias, grid, softmax), value)


def attend_with_bias(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, training: bool | None = None
) -> Tensor:
    """Attention with a bias `(D, tokens, tokens)` of the logits that all windows share.

    Query, key, value and result are `(N, D, tokens, c)`.
    """
    logits = ops.matmul(query * query.shape[3] ** -0.5, ops.transpose(key, (0, 1, 3, 2)))
    return ops.matmul(softmax_float32(logits + ops.cast(bias, logits.dtype)), value)


def attend_by_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rel_pos_bias: RelPosBias,
    grid: Grid,
    rows: int = 1,
    softmax: Activation = softmax_float32,
) -> Tensor:
    """`attend`, holding the logits of `rows` rows of queries at a time, a divisor of all."""
    h, w = grid
    heads, channels = query.shape[1], query.shape[3]
    keys = ops.transpose(key * channels**-0.5, (0, 1, 3, 2))  # (N, D, c, h * w)
    parts, queries = h // rows, rows * w

    def by_parts(x):  # (N, D, h, w, k) -> (parts, N, D, queries, k)
        x = ops.reshape(x, (-1, heads, parts, queries, x.shape[-1]))
        return ops.transpose(x, (2, 0, 1, 3, 4))

    def one_part(part):
        logits = ops.matmul(part[0], keys)  # (N, D, queries, h * w)
        if rel_pos_bias is not None:
            logits = ops.reshape(logits, (-1, heads, queries, h, w))
            logits = logits + ops.expand_dims(part[1], -1) + ops.expand_dims(part[2], -2)
            logits = ops.reshape(logits, (-1, heads, queries, h * w))
        return ops.matmul(softmax(logits), value)  # (N, D, queries, c)

    inputs = tuple(map(by_parts, (query, *(rel_pos_bias or ()))))
    out = ops.map(one_part, inputs)  # (parts, N, D, queries, c)
    return ops.reshape(ops.transpose(out, (1, 2, 0, 3, 4)), (-1, heads, h * w, channels))


def attend_fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rel_pos_bias: RelPosBias,
    grid: Grid,
    bias_at_once: int,
) -> Tensor:
    """`attend` by the backend's kernel, which keeps no logits; the bias of some rows at a time.

    At most `bias_at_once` numbers of the bias are made at once, or those of one row.
    """
    h, w = grid
    windows, heads, _, channels = query.shape
    query = ops.reshape(query, (-1, heads, h, w, channels))
    numbers_per_row = (windows or 1) * heads * w * h * w
    rows = h if rel_pos_bias is None else max(bias_at_once // numbers_per_row, 1)
    outs = []
    for top in range(0, h, rows):
        part = slice(top, min(top + rows, h))
        queries = (part.stop - top) * w
        bias = None
        if rel_pos_bias is not None:
            bias = ops.expand_dims(rel_pos_bias[0][:, :, part], -1)
            bias = bias + ops.expand_dims(rel_pos_bias[1][:, :, part], -2)
            bias = ops.reshape(bias, (-1, heads, queries, h * w))
        some = ops.reshape(query[:, :, part], (-1, heads, queries, channels))
        outs.append(dot_product_attention(some, key, value, bias=bias))
    return outs[0] if len(outs) == 1 else ops.concatenate(outs, axis=2)


def dot_product_attention(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """Keras's, with axes in our order, `(N, D, tokens, c)`."""
    query, key, value = (ops.transpose(x, (0, 2, 1, 3)) for x in (query, key, value))
    return ops.transpose(ops.dot_product_attention(query, key, value, **options), (0, 2, 1, 3))


def has_device(device: str) -> bool:
    """Whether the backend has a device such as `"cpu"`, `"gpu"` or `"gpu:1"`.

    TensorFlow computes elsewhere, without a word, where a device is missing.
    """
    kind, _, index = device.partition(":")
    try:
        return f"{kind}:{index or 0}" in keras.distribution.list_devices(kind)
    except RuntimeError:  # JAX, of a kind that it has no platform for
        return False


def runs_sequentially() -> bool:
    """Whether a program takes things one after the other, which some do faster than batches."""
    return False


def pads_prompt_sets() -> bool:
    """Whether a program is made for a number of prompt sets, so that few numbers are worth it."""
    return True


def compile_program(
    model: keras.Model, variables: Sequence[keras.Variable], prompts: Sequence[str] = ()
) -> Callable[[Any], Any]:
    """`model.predict_on_batch`, compiled once for every shape of an array, or of a dict of them.

    `prompts` names inputs `(B, P, ...)`, of prompt sets that do not see each other and may be
    computed one after the other. The outputs are a dict then, `(B, P, ...)` each.
    """
    return model.predict_on_batch


def step_function(model: keras.Model, step: Callable, function: Callable) -> Callable:
    """What Keras runs for a batch: its own `function`, or one that does the same with `step`."""
    return function


def keeps_weights(model: keras.Model) -> contextlib.AbstractContextManager:
    """Within it, what interrupts training leaves the variables of the last finished step."""
    return contextlib.nullcontext()


def to_numpy(output: Tensor) -> np.ndarray:
    """An output of a program as numpy, in memory of its own."""
    # A copy: numpy's view of JAX's memory would be read-only.
    return output if isinstance(output, np.ndarray) else np.array(output)


def assign_value(variable: keras.Variable, array: np.ndarray) -> None:
    """Sets a variable that is not in use yet, with as few copies as the backend allows.

    The array has the variable's shape and any order; of a file's view no view is kept.
    """
    variable.assign(row_major_copy(array))


def row_major_copy(array: np.ndarray) -> np.ndarray:
    """In float32; some columns at a time, since numpy transposes faster within a cache."""
    if array.flags.c_contiguous:
        return np.array(array, dtype="float32", copy=True)
    out = np.empty(array.shape, "float32")
    for start in range(0, array.shape[-1], _COLUMNS_AT_ONCE):
        columns = (..., slice(start, start + _COLUMNS_AT_ONCE))
        out[columns] = array[columns]
    return out
