"""Nested values of any backend, ragged or not, read into numpy.

A *node* is an array where a value is rectangular, a list of nodes where it is ragged or has
None, and None where there is nothing. Numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

Node = Any


def to_numpy(value: Any) -> np.ndarray:
    """An array of any backend, or a nested list, as a numpy array.

    Works by the methods that the value has, so that no backend is imported:
    torch tensors are detached and brought to the host, and bfloat16, which
    numpy does not know, becomes float32.
    """
    if hasattr(value, "detach"):  # torch
        value = value.detach().cpu()
        if "bfloat16" in str(value.dtype):
            value = value.float()
    if hasattr(value, "numpy") and callable(value.numpy):  # torch, TensorFlow, keras.Variable
        value = value.numpy()
    array = np.asarray(value)
    if array.dtype.kind == "V" and "bfloat16" in array.dtype.name:
        array = array.astype("float32")
    return array


def is_ragged_tensor(value: Any) -> bool:
    """Whether the value is a `tf.RaggedTensor`."""
    return hasattr(value, "flat_values") and hasattr(value, "nested_row_splits")


def read_ragged(value: Any) -> list[Any]:
    """A `tf.RaggedTensor` as nested lists of arrays."""
    return split_rows(
        to_numpy(value.flat_values), [to_numpy(split) for split in value.nested_row_splits]
    )


def split_rows(values: np.ndarray, row_splits: list[np.ndarray]) -> list[Any]:
    """Nested lists of arrays from flat values and the boundaries of their rows, outermost first."""
    for split in reversed(row_splits):
        values = [values[a:b] for a, b in zip(split[:-1], split[1:], strict=True)]
    return values


def read_nested(value: Any, name: str) -> Node:
    """Arrays where the value is rectangular, lists where it is ragged or has None."""
    if value is None:
        return None
    if is_ragged_tensor(value):
        value = read_ragged(value)
    if not isinstance(value, (list, tuple)):
        array = to_numpy(value)
        if array.dtype == object:
            return read_nested(array.tolist(), name) if array.ndim else _raise_type(name, value)
        if array.dtype.kind not in "biuf":
            _raise_type(name, value)
        return array
    if value and all(type(item) in (int, float, bool) for item in value):
        return np.asarray(value)
    children = [read_nested(item, name) for item in value]
    children = [None if isinstance(c, np.ndarray) and c.size == 0 else c for c in children]
    if all(child is None for child in children):
        # Nothing in it; at the top level the number of images still counts.
        return children or None
    if any(c is None for c in children) and any(getattr(c, "ndim", 1) == 0 for c in children):
        _raise_type(name, value)
    shapes = {c.shape if isinstance(c, np.ndarray) else None for c in children}
    return np.stack(children) if len(shapes) == 1 and None not in shapes else children


def is_empty(node: Node) -> bool:
    """Whether there is no value anywhere in the node."""
    return node is None or (isinstance(node, list) and all(is_empty(child) for child in node))


def nesting_depth(node: Node, name: str) -> int | None:
    """Number of axes; None for a node without any value."""
    if node is None:
        return None
    if isinstance(node, np.ndarray):
        return node.ndim
    depths = {nesting_depth(child, name) for child in node} - {None}
    if len(depths) > 1:
        raise ValueError(
            f"`{name}` must be nested equally deep everywhere. Received: values "
            f"{' and '.join(str(d) for d in sorted(depths))} levels deep in one list."
        )
    return depths.pop() + 1 if depths else None


def leaves(node: Node) -> Iterator[np.ndarray]:
    """All arrays in the node."""
    if isinstance(node, np.ndarray):
        yield node
    elif node is not None:
        for child in node:
            yield from leaves(child)


def outline(node: Node, depth: int) -> Any:
    """Lengths of the first `depth` axes, nested where they are ragged."""
    if is_empty(node):
        return None
    if isinstance(node, np.ndarray):
        return node.shape[:depth]
    return [outline(child, depth - 1) for child in node]


def pad_nested(node: Node, depth: int, num_sets: int, fill: float) -> np.ndarray:
    """A float64 array of the node with `fill` in the gaps, `num_sets` long on axis 1."""
    extent = _extent(node, depth)
    padded = np.full((extent[0], num_sets, *extent[2:]), fill, "float64")
    _write(padded, node)
    return padded


def describe(node: Node) -> str:
    """The node's shape for a message."""
    if isinstance(node, np.ndarray):
        return f"shape={node.shape}"
    if is_empty(node):
        return "None"
    more = ", ..." if len(node) > 4 else ""
    return f"a list of [{', '.join(describe(child) for child in node[:4])}{more}]"


def describe_value(value: Any) -> str:
    """Type and shape of any value for a message."""
    shape = getattr(value, "shape", None)
    name = type(value).__name__
    return name if shape is None else f"{name} of shape {tuple(shape)}"


def _extent(node: Node, depth: int) -> tuple[int, ...]:
    """Largest length along each axis."""
    if is_empty(node):
        return (0,) * depth
    if isinstance(node, np.ndarray):
        return node.shape
    inner = [_extent(child, depth - 1) for child in node]
    return (len(node), *map(max, zip(*inner, strict=True)))


def _write(target: np.ndarray, node: Node) -> None:
    if isinstance(node, np.ndarray):
        target[tuple(slice(0, n) for n in node.shape)] = node
    elif node is not None:
        for view, child in zip(target, node, strict=False):  # the target may be longer
            _write(view, child)


def _raise_type(name: str, value: Any) -> None:
    raise ValueError(
        f"`{name}` must hold numbers, with None only in place of a whole entry. "
        f"Received: {type(value).__name__} {str(value)[:60]!r}."
    )
