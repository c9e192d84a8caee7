"""What torch computes differently: on a CPU by oneDNN, in programs that are recorded once."""

import functools
import math
import os
import platform
import threading
from collections.abc import Sequence

import keras
import numpy as np
import torch
from keras import ops

from keras_sam.backends import generic, private, torch_recorder
from keras_sam.notices import notice

PROMPT_CHUNK = 8  # the calls share what they know of the image

# Rows of queries of one head that oneDNN attends with at once.
_ROWS_PER_STEP = 4

# How many numbers a strip of a map has at most, 8 MB in float32: that fits into a cache.
_NUMBERS_PER_STRIP = 2 * 2**20

# The most numbers of bias that fused attention makes at once, 50 MB in float32: those of all
# windows of a 1024 x 1024 image, or of four rows of queries of a global block.
_BIAS_AT_ONCE = 12 * 2**20


def dense(x, kernel, bias, activation=None, training=None):
    """`activation(x @ kernel + bias)` in one call, bias and GELU included."""
    kernel, bias = ops.cast(kernel, x.dtype), ops.cast(bias, x.dtype)
    gelu = activation is keras.activations.gelu
    if _multiplies_by_one_dnn(x):
        out = _product(x, kernel.t(), bias, "gelu" if gelu else "none")
    elif gelu and _may_be_ours(x):
        out = _operation_of_dense()(x, kernel, bias, None, gelu)
    else:
        gelu = False
        out = torch.addmm(bias, x.reshape(-1, x.shape[-1]), kernel)
        out = out.reshape(*x.shape[:-1], kernel.shape[1])
    return out if gelu or activation is None else activation(out)


def dense_add(x, kernel, bias, other, activation=None, training=None):
    """`activation(x @ kernel + bias + other)`, in the memory of the product."""
    shape = (*x.shape[:-1], kernel.shape[1])
    gelu = activation is keras.activations.gelu
    if other.shape != shape or not (gelu or activation is None) or not _may_be_ours(x):
        return generic.dense_add(x, kernel, bias, other, activation, training)
    kernel, bias, other = (ops.cast(y, x.dtype) for y in (kernel, bias, other))
    return _operation_of_dense()(x, kernel, bias, other, gelu)


@functools.cache
def _operation_of_dense():
    """`dense_add`, or `dense` where there is no `other`, in the memory of the product.

    One operation for torch: recordings take none that changes tensors.
    """

    @torch.library.custom_op("keras_sam::dense", mutates_args=())
    def dense_in_place(
        x: torch.Tensor,
        kernel: torch.Tensor,
        bias: torch.Tensor,
        other: torch.Tensor | None,
        gelu: bool,
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        other = None if other is None else other.reshape(-1, kernel.shape[1])
        add = _one_dnn_sum()
        if other is None:
            out = torch.addmm(bias, rows, kernel)
        elif add is not None and _multiplies_by_one_dnn(x):
            y = kernel.t()
            y = y if y.stride(0) == 1 else y.contiguous()
            out = add(rows.contiguous(), other.contiguous(), y, bias, "add")
        else:
            out = torch.addmm(bias, rows, kernel).add_(other)
        out = torch.ops.aten.gelu_(out) if gelu else out
        return out.reshape(*x.shape[:-1], kernel.shape[1])

    return dense_in_place


def layer_norm(x, gamma, beta, epsilon, training=None):
    """Normalises the last axis in one pass; half precision as it is, in float32 inside."""
    gamma, beta = ops.cast(gamma, x.dtype), ops.cast(beta, x.dtype)
    return torch.nn.functional.layer_norm(x, gamma.shape, gamma, beta, epsilon)


def matmul(x, y):
    """`x @ y` of the last two axes."""
    return _product(x, y.flatten(0, -2).t()) if _is_one_product(x, y) else generic.matmul(x, y)


def matmul_transposed(x, y):
    """`x @ y.T` of the last two axes."""
    if _is_one_product(x, y):
        return _product(x, y.flatten(0, -2))
    return generic.matmul_transposed(x, y)


def _is_one_product(x, y):
    # Where a program is traced for export, sizes are symbols, which the last test cannot compare.
    same = len(x.shape) == len(y.shape) and x.dtype == y.dtype
    if not (same and _is_for_one_dnn(x) and _is_for_one_dnn(y)):
        return False
    return {*x.shape[:-2], *y.shape[:-2]} <= {1}


def _multiplies_by_one_dnn(x):
    """Whether oneDNN multiplies `x` by a layer's kernel: it has AVX-512 on every processor.

    The usual way, MKL, uses that on Intel's alone. Without AVX-512 MKL is the faster of the two.
    """
    return _is_for_one_dnn(x) and _is_wide()


def _is_for_one_dnn(x):
    """Whether oneDNN may compute with `x`."""
    return _may_be_ours(x) and x.dtype in _one_dnn()[1]


def _may_be_ours(x):
    """Whether operations that only we use on a CPU, oneDNN's and our own, may take `x`.

    Not where gradients are wanted, autocast is on or a program is traced for export, of all of
    which they know nothing.
    """
    return (
        not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
        and type(x) in (torch.Tensor, torch.nn.Parameter)
        and x.device.type == "cpu"
    )


@functools.cache
def _one_dnn():
    """oneDNN's product, and what it multiplies here; only x86 was measured.

    The operation is the one that `torch.compile` uses.
    """
    product = private.look_up(torch.ops.mkldnn, "_linear_pointwise")
    is_there = product is not None and torch.backends.mkldnn.is_available()
    if not is_there or platform.machine() not in ("x86_64", "AMD64"):
        return None, ()
    has_bfloat16 = private.look_up(torch.ops.mkldnn, "_is_mkldnn_bf16_supported")
    has_bfloat16 = has_bfloat16 is not None and has_bfloat16()
    return product, (torch.float32, torch.bfloat16) if has_bfloat16 else (torch.float32,)


@functools.cache
def _one_dnn_sum():
    """oneDNN's product that adds another array to the result, if it is there."""
    return private.look_up(_one_dnn()[0], "binary")


def _product(x, y, bias=None, activation="none"):
    """`activation(x @ y.T + bias)` of `x` `(..., A, C)` and `y` `(B, C)`, by oneDNN."""
    # oneDNN is far slower on numbers with gaps between them.
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    y = y if y.stride(0) == 1 else y.contiguous()
    out = _one_dnn()[0](rows, y, bias, activation, [], "none")
    return out.reshape(*x.shape[:-1], len(y))


def convolve(x, kernel, bias=None, strides=1, activation=None, training=None):
    """`activation(convolution + bias)` in one call, bias and GELU included."""
    return _convolution(x, kernel.permute(3, 2, 0, 1), bias, strides, activation)


def convolve_depthwise(
    x, kernel, bias=None, strides=1, activation=None, training=None, edges=(True, True)
):
    """`convolve`, each channel by itself."""
    kernel = kernel.permute(2, 3, 0, 1)
    return _convolution(x, kernel, bias, strides, activation, x.shape[-1], edges)


def _convolution(x, kernel, bias, strides, activation, groups=1, edges=(True, True)):
    width = kernel.shape[-1] // 2
    if edges != (True, True):
        x = torch.nn.functional.pad(x, (0, 0, 0, 0, *(width * edge for edge in edges)))
    padding = [width if edges == (True, True) else 0, width]
    kernel, bias = kernel.to(x.dtype), None if bias is None else bias.to(x.dtype)
    x = x.permute(0, 3, 1, 2)  # which oneDNN reads where it is, channels last
    operation = _one_dnn_convolution()
    if operation is not None and _is_for_one_dnn(x):
        fused = "gelu" if activation is keras.activations.gelu else "none"
        steps = [strides, strides]
        out = operation(x, kernel, bias, padding, steps, [1, 1], groups, fused, [], "none")
        activation = None if fused == "gelu" else activation
    else:
        out = torch.nn.functional.conv2d(x, kernel, bias, strides, padding, groups=groups)
    out = out.permute(0, 2, 3, 1)
    return out if activation is None else activation(out)


@functools.cache
def _one_dnn_convolution():
    return private.look_up(torch.ops.mkldnn, "_convolution_pointwise")


def in_strips(function, x, strides, numbers_per_row):
    """`function` of some rows at a time, so that what it makes in between stays in the caches."""
    if not _is_for_one_dnn(x):
        return function(x, (True, True))
    rows = max(_NUMBERS_PER_STRIP // (len(x) * numbers_per_row * strides), 1)
    return generic.by_strips(function, x, strides, rows)


def softmax_float32(logits, axis=-1):
    """Softmax; of half precision torch computes it in float32, without two more passes."""
    return ops.softmax(logits, axis=axis)


def attention_map(query, key, rel_pos_bias, grid):
    """The whole attention map, by our softmax."""
    return generic.attention_map(query, key, rel_pos_bias, grid, softmax_float32)


def split_windows_and_heads(qkv, window_grid, heads):
    """Query, key and value in one transpose, which takes three quarters of the time of three."""
    window_h, window_w = window_grid
    columns, width = qkv.shape[2] // window_w, qkv.shape[3] // (3 * heads)
    qkv = ops.reshape(qkv, (-1, window_h, columns, window_w, 3, heads, width))
    qkv = ops.transpose(qkv, (4, 0, 2, 5, 1, 3, 6))
    return list(ops.reshape(qkv, (3, -1, heads, window_h * window_w, width)))


def attend(query, key, value, rel_pos_bias, grid, training=None):
    """Attention over a grid, in the form that suits device, dtype and the grid's size."""
    inputs = (query, key, value, rel_pos_bias, grid)
    if query.device.type != "cpu":
        return attend_flash(*inputs)
    is_for_rows = math.prod(grid) >= generic.ROWS_FROM_TOKENS and _is_for_one_dnn(query)
    if rel_pos_bias is None and query.dtype == torch.float32 and not (is_for_rows and _is_wide()):
        # By torch alone: numbers may have gaps between them, which Keras would close by copies.
        return torch.nn.functional.scaled_dot_product_attention(query, key, value)
    if is_for_rows:
        return _operation_by_head()(query, key, value, list(rel_pos_bias or ()), grid[0])
    if query.dtype == torch.float32:  # slower in bfloat16
        if torch.compiler.is_compiling() and math.prod(grid) < generic.ROWS_FROM_TOKENS:
            # In a file, a bias passes through memory twice, which takes longer than more channels.
            return attend_flash(*inputs)
        return generic.attend_fused(*inputs, _BIAS_AT_ONCE)
    return generic.attend(*inputs, softmax=softmax_float32)


def attend_with_bias(query, key, value, bias, training=None):
    """Attention with a bias that windows share, fused where that is faster."""
    if query.device.type == "cpu" and query.dtype != torch.float32:
        return generic.attend_with_bias(query, key, value, bias)
    bias = bias.to(query.dtype).unsqueeze(0)
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)


@functools.cache
def _is_wide():
    """Whether the processor has AVX-512, which oneDNN always uses.

    torch's attention, of MKL's products, does so on Intel's alone. Without it, that is
    faster: it keeps no logits.
    """
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


@functools.cache
def _operation_by_head():
    """`attend` by oneDNN, some rows of queries of one head at a time.

    One operation for torch: a recorded program would hold a thousand for each block.
    """

    @torch.library.custom_op("keras_sam::attend_by_head", mutates_args=())
    def attend_by_head(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rel_pos_bias: Sequence[torch.Tensor],
        height: int,
    ) -> torch.Tensor:
        tokens, channels = query.shape[2:]
        width = tokens // height
        rows = max(n for n in range(1, _ROWS_PER_STEP + 1) if height % n == 0)
        out = torch.empty(query.shape, dtype=value.dtype)
        for place in np.ndindex(*query.shape[:2]):
            scaled, keys = query[place] * channels**-0.5, key[place].contiguous()
            values, head_out, biases = value[place].t().contiguous(), out[place], []
            if rel_pos_bias:
                by_row, by_column = (part[place] for part in rel_pos_bias)
                biases = [by_row.unsqueeze(-1), by_column.unsqueeze(-2)]
            for top in range(0, height, rows):
                some = slice(top * width, (top + rows) * width)
                logits = _product(scaled[some], keys)  # (queries, h * w)
                for bias in biases:
                    logits.view(rows, width, height, width).add_(bias[top : top + rows])
                head_out[some] = _product(torch.softmax(logits, -1), values)
        return out

    return attend_by_head


def attend_flash(query, key, value, rel_pos_bias, grid):
    """`attend` without a bias: a query brings its bias, and a key names its row and column.

    `[q / sqrt(c), by row, by column] [k, one-hot row, one-hot column]` is the logit with its bias,
    so that any kernel for plain attention does, over more channels.
    """
    h, w = grid
    windows, heads, tokens, channels = query.shape
    query = query * channels**-0.5
    if rel_pos_bias is not None:
        rest = -(channels + h + w) % 8  # kernels for half precision want whole blocks of channels
        by_row, by_column = (ops.reshape(x, (windows, heads, tokens, -1)) for x in rel_pos_bias)
        nothing = ops.zeros((windows, heads, tokens, rest), dtype=query.dtype)
        query = ops.concatenate([query, by_row, by_column, nothing], axis=-1)
        row = ops.broadcast_to(ops.expand_dims(ops.eye(h), 1), (h, w, h))
        column = ops.broadcast_to(ops.expand_dims(ops.eye(w), 0), (h, w, w))
        place = ops.concatenate([row, column, ops.zeros((h, w, rest))], axis=-1)
        place = ops.cast(ops.reshape(place, (tokens, h + w + rest)), key.dtype)
        place = ops.broadcast_to(place, (windows, heads, *place.shape))
        key = ops.concatenate([key, place], axis=-1)
    return generic.dot_product_attention(query, key, value, scale=1.0)


def has_device(device):
    """Of GPUs; for other devices True: Keras cannot list them, but using a missing one fails."""
    kind, _, index = device.partition(":")
    count = torch.cuda.device_count() or int(torch.backends.mps.is_available())
    return kind != "gpu" or int(index or 0) < count


def runs_sequentially():
    """On a CPU."""
    return ops.convert_to_tensor(0.0).device.type == "cpu"


def pads_prompt_sets():
    """Not where prompts run sequentially: any number of them is the same recording."""
    return not runs_sequentially()


def compile_program(model, variables, prompts=()):
    """`model.predict_on_batch` that repeats what torch computed for inputs of the same shapes.

    The decoder calls torch hundreds of times for a click, and Keras's layers spend much time
    between these calls. The first call for a shape runs the layers and records what they ask of
    torch; later calls only repeat that.

    Custom layers and activations may depend on values, which a recording does not see, and hooks
    have to be called: models that have any of these run their layers every time.

    What does not depend on `prompts` is computed once a call. From two prompt sets on, any number
    of them is the same recording.
    """
    recordings = {}
    layers = [model, *private.sublayers(model)]
    if runs_sequentially() and any(layer.compute_dtype == "float16" for layer in layers):
        notice(
            "torch computes float16 on a CPU many times slower than float32. Load the model with "
            'dtype="float32", or "bfloat16" on processors that have it.',
        )
    hooks = [table for layer in layers for table in private.hook_tables(layer)]
    never_records = (
        not torch_recorder.can_record() or None in hooks or any(map(_has_custom_code, layers))
    )
    sequential = prompts if runs_sequentially() else ()

    def predict(inputs):
        inputs = _as_tensors(inputs)
        with torch.no_grad():
            if never_records or any(hooks):  # which may be added at any time
                return model(inputs, training=False)
            values = [variable.value for variable in variables]
            if not sequential or inputs[sequential[0]].shape[1] == 1:
                return run([], inputs, [[*values, *_flatten(inputs)]])[0]
            names = [name for name in sequential if name in inputs]
            common = {name: x for name, x in inputs.items() if name not in names}
            turns = [*zip(*(inputs[name].split(1, dim=1) for name in names))]
            first = {**common, **dict(zip(names, turns[0]))}
            outputs = run([*values, *_flatten(common)], first, turns)
            return {name: torch.cat([some[name] for some in outputs], 1) for name in outputs[0]}

    def run(given, inputs, turns):
        """The outputs for each of `turns`, tensors that differ; the first one's are in `inputs`."""
        key = (len(given), *((x.shape, x.dtype) for x in (*given, *turns[0])))
        outputs = []
        if key not in recordings:
            output, recordings[key] = torch_recorder.record(model, inputs, given, turns[0])
            outputs.append(output)
        if len(outputs) < len(turns):
            once, each = recordings[key]
            shared = once(*given)
            outputs += [each(*shared, *turn) for turn in turns[len(outputs) :]]
        return outputs

    return predict


# In place of `keras.tree`: torch's tree functions leave reference cycles behind, memory that Python
# frees only when its garbage collector runs.
def _as_tensors(inputs):
    if isinstance(inputs, dict):
        return {name: _as_tensors(x) for name, x in inputs.items()}
    return ops.convert_to_tensor(inputs)


def _flatten(inputs):
    if isinstance(inputs, dict):
        return [x for name in sorted(inputs) for x in _flatten(inputs[name])]
    return [inputs]


def _has_custom_code(layer):
    code = (layer, getattr(layer, "activation", None), getattr(layer, "function", None))  # Lambda's
    modules = (getattr(x, "__module__", None) or "" for x in code if x is not None)
    return any(module.partition(".")[0] not in ("keras", "keras_sam") for module in modules)


def to_numpy(output):
    """An output of a program as numpy, in memory of its own."""
    if isinstance(output, np.ndarray):
        return output
    if output.dtype == torch.bfloat16:  # which numpy lacks
        return ops.convert_to_numpy(output)
    # Not by Keras, which warns of numpy's protocol every time.
    return np.array(output.detach().cpu().numpy())


def assign_value(variable, array):
    """Sets a variable to the values of an array, in new memory.

    The variable's own memory has no pages yet. Copying into it is slower with several threads than
    with one, because all of them ask the system for pages.
    """
    values = torch.from_numpy(generic.row_major_copy(array))
    variable.value.data = values.to(variable.value)


def let_waiting_threads_sleep():
    """Makes torch's threads that wait for others sleep soon, where the environment says nothing.

    After `import torch` it is too late for `GOMP_SPINCOUNT`, which `import keras_sam` sets before.
    But GNU's OpenMP looks 1,000 times, too, instead of 300,000 times, where it has more threads
    than the machine has processors. So a thread starts a second pool with one operation, and both
    sleep from then on.
    """
    said = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys()
    if said or platform.system() != "Linux" or torch.get_num_threads() == 1:
        return
    started = threading.Event()

    def start_pool():
        size = 2**15 * torch.get_num_threads()  # a piece for each, of the least that torch gives
        torch.empty(size, dtype=torch.uint8, device="cpu").fill_(0)
        started.set()
        threading.Event().wait()

    threading.Thread(target=start_pool, name="keras_sam_idle", daemon=True).start()
    started.wait()


let_waiting_threads_sleep()
