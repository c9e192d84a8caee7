"""Initial values: those of the released code, or none at all."""

import contextlib
import contextvars
import math
from collections.abc import Iterator

import keras

_SKIPS = contextvars.ContextVar("skips", default=False)


@contextlib.contextmanager
def skip_init() -> Iterator[None]:
    """Kernels and biases that are built in here have no values: whatever the memory holds.

    Drawing them takes most of the time of building a large model, and as much memory again. Every
    one of them has to be set before it is used.
    """
    token = _SKIPS.set(True)
    try:
        yield
    finally:
        _SKIPS.reset(token)


def released_initializer(
    fan_in: int, initializer_range: float | None = None
) -> keras.initializers.Initializer:
    """The initialiser of one kernel or bias of the released code.

    That leaves its layers at PyTorch's default: kernels *and* biases uniform within
    `1 / sqrt(fan_in)`. `initializer_range` is the deviation of a truncated normal one instead.
    """
    if initializer_range is not None:
        return keras.initializers.TruncatedNormal(stddev=initializer_range)
    limit = 1.0 / math.sqrt(fan_in)
    return keras.initializers.RandomUniform(-limit, limit)


def build_part(
    layer: keras.layers.Layer, input_shape: tuple, initializer_range: float | None = None
) -> keras.layers.Layer:
    """Builds a Dense or convolution part with its released initial values.

    Of `input_shape` only the channels count. With an `initializer_range`, biases are zero.
    """
    fan_in = input_shape[-1]
    kernel = "kernel"
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        kernel, fan_in = "depthwise", math.prod(layer.kernel_size)
    elif isinstance(layer, keras.layers.Conv2DTranspose):
        # PyTorch counts the output channels here, because its transposed
        # kernels are stored (in, out, h, w).
        fan_in = layer.filters * math.prod(layer.kernel_size)
    elif isinstance(layer, keras.layers.Conv2D):
        fan_in = input_shape[-1] * math.prod(layer.kernel_size)
    initializers = {f"{kernel}_initializer": released_initializer(fan_in, initializer_range)}
    if initializer_range is None:
        initializers["bias_initializer"] = released_initializer(fan_in)
    for name, initializer in initializers.items():
        setattr(layer, name, _no_values if _SKIPS.get() else initializer)
    layer.build(input_shape)
    for name, initializer in initializers.items():
        setattr(layer, name, initializer)  # what a copy of the layer starts from
    return layer


def _no_values(shape, dtype=None):
    return keras.ops.empty(shape, dtype)
