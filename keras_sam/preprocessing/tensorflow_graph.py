"""Running numpy code inside a `tf.data` pipeline.

Holds the package's one TensorFlow import outside the kernels: only TensorFlow can put an operation
into its own graph, whatever backend Keras runs on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from keras_sam.prompts.nested import is_ragged_tensor, split_rows


def is_graph_tensor(value: Any) -> bool:
    """Whether the value is a tensor of a TensorFlow graph under construction."""
    if "tensorflow" not in sys.modules:
        return False
    if is_ragged_tensor(value):
        value = value.flat_values
    # Only eager tensors have values, hence the method.
    return isinstance(value, sys.modules["tensorflow"].Tensor) and not hasattr(value, "numpy")


def call_on_host(
    function: Callable[[dict[str, Any]], Mapping[str, np.ndarray]],
    inputs: Mapping[str, Any],
    outputs: Mapping[str, tuple[str, tuple[int | None, ...]]],
) -> dict[str, Any]:
    """Puts a numpy function of a dict into the graph; `outputs` says what it returns.

    The function gets lists of arrays for ragged tensors; inputs that are None are left out.
    """
    import tensorflow as tf

    components, layout = [], []
    for name, value in inputs.items():
        if value is None:
            continue
        splits = list(value.nested_row_splits) if is_ragged_tensor(value) else []
        layout.append((name, len(splits)))
        components += [value.flat_values, *splits] if splits else [value]

    def run(*arrays: np.ndarray) -> list[np.ndarray]:
        remaining, rebuilt = list(arrays), {}
        for name, num_splits in layout:
            values, *splits = remaining[: num_splits + 1]
            del remaining[: num_splits + 1]
            rebuilt[name] = split_rows(values, splits) if splits else values
        results = function(rebuilt)
        return [results[name] for name in outputs]

    dtypes = [tf.as_dtype(dtype) for dtype, _ in outputs.values()]
    tensors = tf.numpy_function(run, components, dtypes)
    for tensor, (_, shape) in zip(tensors, outputs.values(), strict=True):
        tensor.set_shape(shape)
    return dict(zip(outputs, tensors, strict=True))
