"""A tensor of a checkpoint that has a shape now and values when somebody asks for them."""

from collections.abc import Callable

import numpy as np


class Tensor:
    """A named array of a file that is read no earlier than it is needed.

    Files of gigabytes are converted tensor by tensor, so that no second copy of all
    weights is ever held. `numpy.asarray(tensor)` reads the values.

    Args:
        shape: tuple of ints.
        dtype: numpy dtype of the values.
        read: function without arguments that returns the values; they may be a view of a
            memory-mapped file.
    """

    __slots__ = ("dtype", "read", "shape")

    def __init__(self, shape, dtype, read: Callable[[], np.ndarray]):
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self.read = read

    @classmethod
    def of(cls, array) -> "Tensor":
        """Wraps an array, or returns a `Tensor` as it is."""
        if isinstance(array, cls):
            return array
        array = np.asarray(array)
        return cls(array.shape, array.dtype, lambda: array)

    def map(self, function: Callable, shape, dtype=None) -> "Tensor":
        """A tensor whose values are `function(values)`, of the given shape."""
        return Tensor(shape, dtype or self.dtype, lambda: function(self.read()))

    def __array__(self, dtype=None, copy=None):
        values = self.read()
        if copy:
            return np.array(values, dtype=dtype)
        return values if dtype is None else values.astype(dtype, copy=False)

    def __repr__(self):
        return f"Tensor(shape={self.shape}, dtype={self.dtype})"


def widen_bfloat16(words: np.ndarray) -> np.ndarray:
    """The float32 values of bfloat16 numbers, which numpy has no type for.

    Args:
        words: uint16 array, the bits of the numbers.

    Returns:
        Float32 array of the same shape; the conversion is exact.
    """
    return (words.astype("<u4") << 16).view("<f4")


def narrow_bfloat16(values: np.ndarray) -> np.ndarray:
    """The bits, uint16, of the bfloat16 numbers nearest to finite float32 values, ties to even.

    `widen_bfloat16` is the inverse.
    """
    bits = np.ascontiguousarray(values, "float32").view("uint32")
    # Half of the last place that stays, less one bit if that place is even: ties to even.
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("uint16")
