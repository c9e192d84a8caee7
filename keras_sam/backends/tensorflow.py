"""What TensorFlow computes differently: on a CPU, in words that it replaces by oneDNN's kernels.

Read literally, the same words give the same numbers, slower.
"""

import functools
import math
from pathlib import Path

import keras
import tensorflow as tf
from keras import ops

from keras_sam.backends import generic, private

# Keras gives the shapes of the first two batches (or of the only one) to all of them.
READS_SIGNATURES = 2
# TensorFlow 2.21 on a CPU gives a convolution over no masks at all another shape than it should
# have, when the axis is free.
NEEDS_MASKS = True


# How many numbers a strip of a map has at most, 8 MB in float32: that fits into a cache.
_NUMBERS_PER_STRIP = 2 * 2**20


def dense(x, kernel, bias, activation=None, training=None):
    """`activation(x @ kernel + bias)`, with bias and GELU as parts of the product."""
    if training or not _is_for_one_dnn(x):
        return activate(generic.dense(x, kernel, bias), activation, training)
    kernel, bias = ops.cast(kernel, x.dtype), ops.cast(bias, x.dtype)
    out = tf.nn.bias_add(tf.matmul(tf.reshape(x, (-1, kernel.shape[0])), kernel), bias)
    if activation is keras.activations.gelu:
        out = _gelu(out)
        activation = None
    out = tf.reshape(out, (*ops.shape(x)[:-1], kernel.shape[1]))
    return out if activation is None else activation(out)


def activate(x, activation, training=None):
    """`activation(x)`; GELU by `erf`, in float32.

    Keras's `erfc` is slower, most of all in half precision. Not in training, for which the numbers
    in float32 would be kept.
    """
    if activation is keras.activations.gelu and not training:
        return ops.cast(_gelu(ops.cast(x, "float32")), x.dtype)
    return generic.activate(x, activation)


def _gelu(x):
    """In the words that TensorFlow computes as part of a product, and LiteRT as one operator."""
    return 0.5 * x * (1.0 + tf.math.erf(x * math.sqrt(0.5)))


def dense_add(x, kernel, bias, other, activation=None, training=None):
    """`generic.dense_add` of the functions above."""
    x = dense(x, kernel, bias, None, training) + other
    return x if activation is None else activate(x, activation, training)


def layer_norm(x, gamma, beta, epsilon, training=None):
    """Normalises the last axis, in the only words that TensorFlow replaces by oneDNN's kernel.

    These are a batch norm, of which each row is a channel, of a matrix.
    """
    batch_norm = private.look_up(tf.raw_ops, "FusedBatchNormV3")
    if batch_norm is None or training or not _is_for_one_dnn(x):
        return generic.layer_norm(x, gamma, beta, epsilon)
    channels = gamma.shape[0]
    matrix = tf.reshape(x, (-1, channels))
    matrix = tf.ensure_shape(matrix, matrix.shape)  # or two reshapes become one, of no matrix
    # A number that TensorFlow does not compute beforehand: `fill` has to stay in the graph.
    rows = tf.compat.v1.placeholder_with_default(tf.shape(matrix)[0], shape=())
    none = tf.constant([], "float32")
    out, *_ = batch_norm(
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


def convolve(x, kernel, bias=None, strides=1, activation=None, training=None):
    """`generic.convolve`, with padding and bias as parts of the convolution."""
    if training or not _is_for_one_dnn(x):
        return generic.convolve(x, kernel, bias, strides, activation, training)
    return _convolution(tf.nn.conv2d, x, kernel, bias, strides, activation)


def convolve_depthwise(
    x, kernel, bias=None, strides=1, activation=None, training=None, edges=(True, True)
):
    """`generic.convolve_depthwise`, with padding and bias as parts of the convolution."""
    if training or not _is_for_one_dnn(x):
        return generic.convolve_depthwise(x, kernel, bias, strides, activation, training, edges)
    return _convolution(tf.nn.depthwise_conv2d, x, kernel, bias, strides, activation, edges)


def _convolution(function, x, kernel, bias, strides, activation, edges=(True, True)):
    width = kernel.shape[0] // 2
    padding = [[0, 0], [width * edge for edge in edges], [width, width], [0, 0]]
    out = function(x, ops.cast(kernel, x.dtype), [1, strides, strides, 1], padding)
    out = out if bias is None else tf.nn.bias_add(out, ops.cast(bias, x.dtype))
    # Keras's GELU, not ours, whose rounding errors the layers after it multiply.
    return generic.activate(out, activation)


def in_strips(function, x, strides, numbers_per_row):
    """`function` of some rows at a time, so that what it makes in between stays in the caches.

    The GELU after a depthwise convolution is five operations, of which each reads and writes all.
    """
    if not _is_for_one_dnn(x):
        return function(x, (True, True))
    rows = max(_NUMBERS_PER_STRIP // ((x.shape[0] or 1) * numbers_per_row * strides), 1)
    return generic.by_strips(function, x, strides, rows)


def _is_for_one_dnn(x):
    """Whether `x` is of a graph of which TensorFlow may give parts to oneDNN."""
    on_cpu = not tf.config.list_logical_devices("GPU")
    fits = x.dtype.name == "float32" or (x.dtype.name == "bfloat16" and _multiplies_bfloat16())
    return on_cpu and not tf.executing_eagerly() and fits


@functools.cache
def _multiplies_bfloat16():
    """Whether the processor has products of bfloat16.

    Without them oneDNN takes no part, and the forms that are written for it only lose digits.
    """
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def compile_program(model, variables, prompts=()):
    """`model.predict_on_batch` that keeps a graph for every shape of the inputs.

    Keras's own replaces the first two by one for all sizes, which can't choose what is cheapest
    for a size, and warns of all that it traces.
    """
    graphs = {}

    def predict(inputs):
        tensors = keras.tree.map_structure(tf.convert_to_tensor, inputs)
        specs = keras.tree.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), tensors)
        key = tuple(keras.tree.flatten(specs))
        if key not in graphs:
            run = tf.function(lambda x: model(x, training=False), jit_compile=model.jit_compile)
            graphs[key] = run.get_concrete_function(specs)
        return graphs[key](tensors)

    return predict


def assign_value(variable, array):
    """Sets a variable to the values of an array; TensorFlow makes the copy where it can."""
    if array.flags.c_contiguous and array.dtype == "float32":
        variable.assign(array)
    else:
        generic.assign_value(variable, array)
