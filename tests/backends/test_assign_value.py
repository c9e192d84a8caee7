"""A variable gets a copy of any array."""

import keras
import numpy as np
import pytest

from keras_sam import backends


def numbers(*shape):
    return np.arange(np.prod(shape), dtype="float32").reshape(shape)


def read_only(array):
    array.flags.writeable = False
    return array


ARRAYS = {
    "as it is": numbers(3, 300),
    "read-only": read_only(numbers(3, 300)),
    "transposed": numbers(300, 3).T,
    "a convolution's": numbers(4, 5, 2, 3).transpose(2, 3, 1, 0),
    "reversed": numbers(3, 300)[:, ::-1],
    "unaligned": np.frombuffer(b"\0" + numbers(3, 300).tobytes(), "u1")[1:].view("f4"),
    "big-endian": numbers(3, 300).astype(">f4"),
    "half precision": numbers(3, 300).astype("f2"),
    "double precision": numbers(3, 300).astype("f8"),
    "one number": np.array(2.5, "f4"),
    "none": numbers(0, 3),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_a_variable_gets_a_copy_of_any_array(array, dtype):
    source = array.copy(order="K") if array.flags.writeable else array
    variable = keras.Variable(np.ones(array.shape), dtype=dtype)
    backends.assign_value(variable, source)
    wanted = keras.ops.convert_to_tensor(np.array(array, "float32"), dtype)
    if source.flags.writeable:
        source[...] = -1
    given, wanted = (
        keras.ops.convert_to_numpy(keras.ops.cast(x, "float32")) for x in (variable.value, wanted)
    )
    np.testing.assert_array_equal(given, wanted)
    assert keras.backend.standardize_dtype(variable.value.dtype) == dtype
    if keras.backend.backend() == "torch":
        assert variable.value.is_contiguous() and variable.value.requires_grad


def test_a_long_matrix_is_transposed_in_parts():
    variable = keras.Variable(np.zeros((5, 1000)))
    backends.assign_value(variable, numbers(1000, 5).T)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), numbers(1000, 5).T)
