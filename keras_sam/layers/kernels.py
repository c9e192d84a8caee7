"""The one place that picks how something is computed, by backend, device and dtype.

Every form here gives the same numbers, up to rounding: those of `attention_map(...) @ value`, of
`x @ y`, of `activation(x @ kernel + bias)` and of a layer norm. The forms differ in the library
that computes them, and in the memory they touch.
"""

import functools
import math
import platform
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

# Above this many tokens the logits of all queries at once (805 MB for a global
# block of ViT-B at 1024 x 1024) fall out of every cache, so queries are taken
# one row of the grid at a time. Windows (14 x 14) stay below it.
_ROWS_FROM_TOKENS = 1024

# As many where each head has its turn. Its logits are 8 MB then; with 4 or 16 rows it is no
# faster.
_ROWS_IN_TURN = 8

# As many for torch, by oneDNN.
_ROWS_BY_HEAD = 4

# The most numbers of bias that the fused form makes at once. On torch 50 MB in float32: that of all
# windows of a 1024 x 1024 image, or of four rows of queries of a global block, where more would
# save little. OpenVINO compiles every part, and is 3 % faster with the whole of a global block.
_BIAS_AT_ONCE = {"torch": 12 * 2**20, "openvino": 12 * 2**24}


def linear(x, kernel, bias, activation=None, training=None):
    """`activation(x @ kernel + bias)`, in one call to the backend where it has one.

    Two passes over the output less: those of ViT-B's MLPs have 50 MB each.

    Args:
        x: float tensor `(..., C)`.
        kernel: float tensor or variable `(C, C')`.
        bias: float tensor or variable `(C',)`.
        activation: optional function of a tensor.
        training: optional bool. Whether gradients are wanted.

    Returns:
        Float tensor `(..., C')`, in the dtype of `x`.
    """
    kernel, bias = ops.cast(kernel, x.dtype), ops.cast(bias, x.dtype)
    backend = keras.backend.backend()
    if backend == "torch":
        return _linear_on_torch(x, kernel, bias, activation)
    if backend == "tensorflow" and not training and _is_for_one_dnn(x):
        return _linear_on_tensorflow(x, kernel, bias, activation)
    out = ops.add(ops.matmul(x, kernel), bias)
    return out if activation is None else activate(out, activation, training)


def _linear_on_torch(x, kernel, bias, activation):
    import torch

    if _by_one_dnn(x):
        fused = "gelu" if activation is keras.activations.gelu else "none"
        out = _product_on_torch(x, kernel.t(), bias, fused)
        activation = None if fused == "gelu" else activation
    else:
        out = torch.addmm(bias, x.reshape(-1, x.shape[-1]), kernel)
        out = out.reshape(*x.shape[:-1], kernel.shape[1])
    return out if activation is None else activation(out)


def _linear_on_tensorflow(x, kernel, bias, activation):
    import tensorflow as tf

    out = tf.nn.bias_add(tf.matmul(tf.reshape(x, (-1, kernel.shape[0])), kernel), bias)
    if activation is keras.activations.gelu:
        # TensorFlow computes exactly this as part of the product.
        out = 0.5 * out * (1.0 + tf.math.erf(out * math.sqrt(0.5)))
        activation = None
    out = tf.reshape(out, (*ops.shape(x)[:-1], kernel.shape[1]))
    return out if activation is None else activation(out)


def activate(x, activation, training=None):
    """`activation(x)`; GELU by `erf` where `erfc`, which Keras uses, takes three times as long.

    That is so on JAX, and on TensorFlow, where half precision takes three times as long again.

    Args:
        x: float tensor.
        activation: function of a tensor.
        training: optional bool. Whether gradients are wanted, for which a pass over numbers in
            float32 would be kept.

    Returns:
        Float tensor, shaped as `x`.
    """
    if activation is not keras.activations.gelu:
        return activation(x)
    backend, dtype = keras.backend.backend(), keras.backend.standardize_dtype(x.dtype)
    if (backend, dtype) == ("jax", "float32"):  # in others it is coarser
        return x * (0.5 + 0.5 * ops.erf(x * math.sqrt(0.5)))
    if backend == "tensorflow" and not training:
        wide = ops.cast(x, "float32")
        return ops.cast(wide * (0.5 + 0.5 * ops.erf(wide * math.sqrt(0.5))), dtype)
    return activation(x)


def layer_norm(x, gamma, beta, epsilon, training=None):
    """Normalises the last axis, in one pass where the backend has a kernel for it.

    Args:
        x: float tensor `(..., C)`.
        gamma: float tensor or variable `(C,)`.
        beta: float tensor or variable `(C,)`.
        epsilon: float.
        training: optional bool. Whether gradients are wanted.

    Returns:
        Float tensor, shaped as `x`, in its dtype.
    """
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        # Half precision as it is: the kernel computes in float32 by itself.
        gamma, beta = ops.cast(gamma, x.dtype), ops.cast(beta, x.dtype)
        return torch.nn.functional.layer_norm(x, gamma.shape, gamma, beta, epsilon)
    if backend == "tensorflow" and not training and _is_for_one_dnn(x):
        return _layer_norm_on_tensorflow(x, gamma, beta, epsilon)
    return ops.layer_normalization(x, gamma, beta, -1, epsilon)


def _is_for_one_dnn(x):
    """Whether `x` is of a TensorFlow graph of which grappler may give parts to oneDNN."""
    import tensorflow as tf

    on_cpu = not tf.config.list_logical_devices("GPU")
    return on_cpu and not tf.executing_eagerly() and x.dtype.name in ("float32", "bfloat16")


def _layer_norm_on_tensorflow(x, gamma, beta, epsilon):
    """`layer_norm` in the only words that TensorFlow replaces by oneDNN's kernel.

    These are a batch norm, of which each row is a channel, of a matrix. 16 MB, 2 cores: 2 ms
    instead of 11.
    """
    import tensorflow as tf

    channels = gamma.shape[0]
    matrix = tf.reshape(x, (-1, channels))
    matrix = tf.ensure_shape(matrix, matrix.shape)  # or two reshapes become one, of no matrix
    # A number that TensorFlow does not compute beforehand: `fill` has to stay in the graph.
    rows = tf.compat.v1.placeholder_with_default(tf.shape(matrix)[0], shape=())
    none = tf.constant([], "float32")
    out, *_ = tf.raw_ops.FusedBatchNormV3(
        x=tf.reshape(matrix, (1, rows, channels, 1)),
        scale=tf.fill([rows], 1.0),
        offset=tf.fill([rows], 0.0),
        mean=none,
        variance=none,
        epsilon=epsilon,
        data_format="NCHW",
    )
    out = tf.reshape(out, ops.shape(matrix)) * ops.cast(gamma, x.dtype) + ops.cast(beta, x.dtype)
    return tf.reshape(out, ops.shape(x))


def _by_one_dnn(x):
    """Whether torch multiplies `x` by oneDNN, which uses AVX-512 on every processor that has it.

    The usual way, MKL, does so on Intel's alone. Not where gradients are wanted, autocast is on or
    a program is traced for export, of all of which these operations know nothing.
    """
    import torch

    return (
        not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
        and type(x) in (torch.Tensor, torch.nn.Parameter)
        and x.device.type == "cpu"
        and x.dtype in _one_dnn_dtypes()
    )


@functools.cache
def _one_dnn_dtypes():
    """What oneDNN multiplies here; only x86 was measured."""
    import torch

    is_there = torch.backends.mkldnn.is_available() and hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    )
    if not is_there or platform.machine() not in ("x86_64", "AMD64"):
        return ()
    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return (torch.float32, torch.bfloat16) if has_bfloat16 else (torch.float32,)


def matmul(x, y):
    """`x @ y` of the last two axes.

    Args:
        x: float tensor `(..., A, C)`.
        y: float tensor `(..., C, B)`.

    Returns:
        Float tensor `(..., A, B)`.
    """
    if keras.backend.backend() == "torch" and _is_one_product(x, y):
        return _product_on_torch(x, y.flatten(0, -2).t())
    return ops.matmul(x, y)


def matmul_transposed(x, y):
    """`x @ y.T` of the last two axes, which XLA would first transpose in memory on JAX.

    Args:
        x: float tensor `(..., A, C)`.
        y: float tensor `(..., B, C)`.

    Returns:
        Float tensor `(..., A, B)`.
    """
    if keras.backend.backend() == "jax":
        return ops.einsum("...ac,...bc->...ab", x, y)
    if keras.backend.backend() == "torch" and _is_one_product(x, y):
        return _product_on_torch(x, y.flatten(0, -2))
    return ops.matmul(x, ops.swapaxes(y, -1, -2))


def _is_one_product(x, y):
    is_one = len(x.shape) == len(y.shape) and {*x.shape[:-2], *y.shape[:-2]} <= {1}
    return is_one and x.dtype == y.dtype and _by_one_dnn(x) and _by_one_dnn(y)


def _product_on_torch(x, y, bias=None, activation="none"):
    """`activation(x @ y.T + bias)` of `x` `(..., A, C)` and `y` `(B, C)`."""
    import torch

    # Numbers with gaps between them take oneDNN a thousand times as long.
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    y = y if y.stride(0) == 1 else y.contiguous()
    out = torch.ops.mkldnn._linear_pointwise(rows, y, bias, activation, [], "none")
    return out.reshape(*x.shape[:-1], len(y))


def gather_relative_positions(table, size: int):
    """Rows of a relative-position table for every query and key index of one axis.

    Args:
        table: float tensor `(2 size - 1, c)`; row `q - k + size - 1` belongs to
            query `q` and key `k`.
        size: int. Cells along the axis.

    Returns:
        Float tensor `(size, size, c)`, indexed by query, then key.
    """
    index = ops.arange(size)
    index = ops.expand_dims(index, 1) - ops.expand_dims(index, 0) + (size - 1)
    return ops.take(table, index, axis=0)


def relative_terms(query, rel_pos_h, rel_pos_w, grid):
    """The two parts of the relative-position bias, which uses the unscaled query.

    Args:
        query: float tensor `(N, D, h * w, c)`.
        rel_pos_h: float tensor `(2 h - 1, c)`.
        rel_pos_w: float tensor `(2 w - 1, c)`.
        grid: tuple `(h, w)`.

    Returns:
        Float tensors `(N, D, h, w, h)`, by key row, and `(N, D, h, w, w)`, by key column.
    """
    h, w = grid
    heads, channels = query.shape[1], query.shape[3]
    query = ops.reshape(query, (-1, heads, h, w, channels))
    rows = gather_relative_positions(ops.cast(rel_pos_h, query.dtype), h)
    columns = gather_relative_positions(ops.cast(rel_pos_w, query.dtype), w)
    return (
        ops.einsum("ndhwc,hkc->ndhwk", query, rows),
        ops.einsum("ndhwc,wkc->ndhwk", query, columns),
    )


def softmax_float32(logits, axis=-1):
    """Softmax in float32, back in the dtype of `logits`."""
    if keras.backend.backend() == "torch":
        # Its kernel computes half precision in float32 by itself, without two more passes:
        # a global block of ViT-B in bfloat16 takes half the time.
        return ops.softmax(logits, axis=axis)
    return ops.cast(ops.softmax(ops.cast(logits, "float32"), axis=axis), logits.dtype)


def attention_map(query, key, terms, grid):
    """The whole attention map, `(N, D, h * w, h * w)`: for small grids, dropout or inspection."""
    h, w = grid
    heads, channels = query.shape[1], query.shape[3]
    logits = ops.matmul(query * channels**-0.5, ops.transpose(key, (0, 1, 3, 2)))
    if terms is not None:
        by_row, by_column = terms
        logits = ops.reshape(logits, (-1, heads, h, w, h, w))
        logits = logits + ops.expand_dims(by_row, -1) + ops.expand_dims(by_column, -2)
        logits = ops.reshape(logits, (-1, heads, h * w, h * w))
    return softmax_float32(logits)


def attend(query, key, value, terms, grid, training=None):
    """Attention over a grid of tokens, in the form that suits the grid's size.

    Args:
        query: float tensor `(N, D, h * w, c)`.
        key: float tensor `(N, D, h * w, c)`.
        value: float tensor `(N, D, h * w, c)`.
        terms: `None`, or what `relative_terms` returned.
        grid: tuple `(h, w)`.
        training: optional bool. Whether gradients are wanted.

    Returns:
        Float tensor `(N, D, h * w, c)`.
    """
    backend = keras.backend.backend()
    if backend == "torch" and query.device.type != "cpu":
        return _attend_flash(query, key, value, terms, grid)
    is_large = math.prod(grid) >= _ROWS_FROM_TOKENS
    if backend == "torch" and is_large and _by_one_dnn(query):
        return _attend_by_head(query, key, value, terms, grid)
    # ViT-B at 1024 x 1024, 2 cores: on torch, where gradients are wanted, a global block takes
    # 0.66 s instead of 1.13, in bfloat16 it would take 0.58 instead of 0.34; all windows of a block
    # take 0.045 s instead of 0.07. OpenVINO's encoder takes 5.5 s instead of 6.3, 2.8 instead of
    # 3.0 in bfloat16, and half the time to compile.
    is_float32 = keras.backend.standardize_dtype(query.dtype) == "float32"
    if backend == "openvino" or (backend == "torch" and is_float32):
        return _attend_fused(query, key, value, terms, grid)
    if backend == "jax" and not training and takes_turns():
        return _attend_in_turn(query, key, value, terms, grid)
    if not is_large:
        return ops.matmul(attention_map(query, key, terms, grid), value)
    return _attend_by_rows(query, key, value, terms, grid)


def takes_turns():
    """Whether taking things in turn inside a program is faster than batches: on a CPU.

    Of JAX and torch. Not if that is several devices for JAX: they would share a batch, and each
    run the whole loop.
    """
    if keras.backend.backend() == "torch":
        return ops.convert_to_tensor(0.0).device.type == "cpu"
    if keras.backend.backend() != "jax":
        return False
    import jax

    return jax.default_backend() == "cpu" and jax.device_count() == 1


def _attend_in_turn(query, key, value, terms, grid):
    """`attend` on JAX: one window, or some rows of queries of one head, at a time.

    XLA multiplies two matrices on a CPU twice as fast as a batch of small ones. ViT-B at 1024 x
    1024, 2 cores: a global block's attention takes 0.46 s instead of 0.96, all windows of a block
    0.054 s instead of 0.124.
    """
    heads, tokens, channels = query.shape[1:]
    inputs = (query, key, value, *(terms or ()))

    def one_window(x):
        query, key, value, *terms = (ops.expand_dims(part, 0) for part in x)
        return ops.matmul(attention_map(query, key, terms or None, grid), value)[0]

    def one_head(x):
        query, key, value, *terms = (ops.expand_dims(part, (0, 1)) for part in x)
        rows = max(n for n in range(1, _ROWS_IN_TURN + 1) if grid[0] % n == 0)
        return _attend_by_rows(query, key, value, terms or None, grid, rows)[0, 0]

    if tokens < _ROWS_FROM_TOKENS:
        return ops.map(one_window, inputs)
    inputs = tuple(ops.reshape(x, (-1, *x.shape[2:])) for x in inputs)
    return ops.reshape(ops.map(one_head, inputs), (-1, heads, tokens, channels))


def _attend_by_head(query, key, value, terms, grid):
    """`attend` on torch, by oneDNN: some rows of queries of one head at a time.

    ViT-B at 1024 x 1024, 2 cores: a global block takes 0.41 s, by torch's fused kernel 0.63; in
    bfloat16 0.33, by rows of all heads 0.39.
    """
    return _operation_by_head()(query, key, value, list(terms or ()), grid[0])


@functools.cache
def _operation_by_head():
    """As one operation for torch: a recorded program would hold a thousand a block."""
    import torch

    @torch.library.custom_op("keras_sam::attend_by_head", mutates_args=())
    def attend_by_head(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        terms: Sequence[torch.Tensor],
        height: int,
    ) -> torch.Tensor:
        tokens, channels = query.shape[2:]
        width = tokens // height
        rows = max(n for n in range(1, _ROWS_BY_HEAD + 1) if height % n == 0)
        out = torch.empty(query.shape, dtype=value.dtype)
        for place in np.ndindex(*query.shape[:2]):
            scaled, keys = query[place] * channels**-0.5, key[place].contiguous()
            values, of_head, biases = value[place].t().contiguous(), out[place], []
            if terms:
                biases = [terms[0][place].unsqueeze(-1), terms[1][place].unsqueeze(-2)]
            for top in range(0, height, rows):
                some = slice(top * width, (top + rows) * width)
                logits = _product_on_torch(scaled[some], keys)  # (queries, h * w)
                by_cell = logits.view(rows, width, height, width)
                for bias in biases:
                    by_cell += bias[top : top + rows]
                of_head[some] = _product_on_torch(torch.softmax(logits, -1), values)
        return out

    return attend_by_head


def _attend_fused(query, key, value, terms, grid):
    """`attend` by the backend's kernel, which keeps no logits; the bias of some rows at a time."""
    h, w = grid
    windows, heads, _, channels = query.shape
    query = ops.reshape(query, (-1, heads, h, w, channels))
    of_a_row = (windows or 1) * heads * w * h * w
    rows = h if terms is None else max(_BIAS_AT_ONCE[keras.backend.backend()] // of_a_row, 1)
    outs = []
    for top in range(0, h, rows):
        part = slice(top, min(top + rows, h))
        queries = (part.stop - top) * w
        bias = None
        if terms is not None:
            bias = ops.expand_dims(terms[0][:, :, part], -1)
            bias = bias + ops.expand_dims(terms[1][:, :, part], -2)
            bias = ops.reshape(bias, (-1, heads, queries, h * w))
        some = ops.reshape(query[:, :, part], (-1, heads, queries, channels))
        outs.append(_dot_product_attention(some, key, value, bias=bias))
    return outs[0] if len(outs) == 1 else ops.concatenate(outs, axis=2)


def _attend_flash(query, key, value, terms, grid):
    """`attend` without a bias: a query brings its terms, and a key names its row and column.

    `[q / sqrt(c), by row, by column] [k, one-hot row, one-hot column]` is the logit with its bias,
    so that any kernel for plain attention does, over more channels.
    """
    h, w = grid
    windows, heads, tokens, channels = query.shape
    query = query * channels**-0.5
    if terms is not None:
        rest = -(channels + h + w) % 8  # kernels for half precision want whole blocks of channels
        by_row, by_column = (ops.reshape(x, (windows, heads, tokens, -1)) for x in terms)
        nothing = ops.zeros((windows, heads, tokens, rest), dtype=query.dtype)
        query = ops.concatenate([query, by_row, by_column, nothing], axis=-1)
        row, column = ops.repeat(ops.arange(h), w), ops.tile(ops.arange(w), h)
        place = ops.one_hot(row, h + w + rest) + ops.one_hot(h + column, h + w + rest)
        place = ops.cast(place, key.dtype)
        place = ops.broadcast_to(place, (windows, heads, *place.shape))
        key = ops.concatenate([key, place], axis=-1)
    return _dot_product_attention(query, key, value, scale=1.0)


def _dot_product_attention(query, key, value, **options):
    """Keras's, with axes in our order, `(N, D, tokens, c)`."""
    query, key, value = (ops.transpose(x, (0, 2, 1, 3)) for x in (query, key, value))
    return ops.transpose(ops.dot_product_attention(query, key, value, **options), (0, 2, 1, 3))


def _attend_by_rows(query, key, value, terms, grid, rows=1):
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
        if terms is not None:
            logits = ops.reshape(logits, (-1, heads, queries, h, w))
            logits = logits + ops.expand_dims(part[1], -1) + ops.expand_dims(part[2], -2)
            logits = ops.reshape(logits, (-1, heads, queries, h * w))
        return ops.matmul(softmax_float32(logits), value)  # (N, D, queries, c)

    inputs = tuple(map(by_parts, (query, *(terms or ()))))
    out = ops.map(one_part, inputs)  # (parts, N, D, queries, c)
    return ops.reshape(ops.transpose(out, (1, 2, 0, 3, 4)), (-1, heads, h * w, channels))
