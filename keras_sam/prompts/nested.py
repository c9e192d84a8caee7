"""What people pass: values of any backend, nested and ragged or not, read into numpy.

A *node* is an array where a value is rectangular, a list of nodes where it is ragged or has
None, and None where there is nothing. Numpy only.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

import numpy as np
from numpy.typing import ArrayLike

KEYS = ("points", "labels", "boxes", "masks")

# One kind of prompt as people pass it: an array, a tensor of any backend, or nested lists of them
# that may be ragged, with None in place of what is absent.
PromptLike: TypeAlias = ArrayLike | Sequence[Any] | None


class PromptDict(TypedDict, total=False):
    """Prompts as people pass them, see `keras_sam.prompts.read`."""

    points: PromptLike
    labels: PromptLike
    boxes: PromptLike
    masks: PromptLike


Node = Any


_FORMS = {
    "points": "(B, N, 2) for one object per image or (B, P, N, 2) for P objects, x y in pixels of "
    "the original image, or (B, 2) for one click per image",
    "labels": "(B, N) or (B, P, N), that of `points` without its last axis",
    "boxes": "(B, P, 4) or (B, P, 2, 2), (B, P, M, 4) for M boxes of one object, or (B, 4) for one "
    "box per image, x1 y1 x2 y2 in pixels of the original image",
    "masks": "(B, P, height, width, 1) or (B, P, height, width), mask logits; of an object's "
    'candidates one, as `best_mask(outputs)["masks"]` has it',
}
_FORMS_OF_ONE_IMAGE = {
    "points": "(2,) for one click, (N, 2) for one object or (P, N, 2) for P objects, x y in pixels "
    "of the original image",
    "labels": "(N,) for one object or (P, N) for P objects, that of `points` without its last axis",
    "boxes": "(4,) for one object, (P, 4) for P objects or (P, M, 4) for M boxes of each, "
    "x1 y1 x2 y2 in pixels of the original image",
    "masks": "(L, L) for one object or (P, L, L) for P objects, mask logits",
}
# One click or one box per image: without the axis `N` or `P`, and with it.
_ONE_PER_IMAGE = {"points": ((2,), (1, 2)), "labels": ((), (1,)), "boxes": ((4,), (1, 2, 2))}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One entry of a dict of prompts, with one item per image, and what its messages need."""

    name: str  # the key
    node: Node
    shown: str  # the value as it was passed, described
    forms: Mapping[str, str]  # the shapes that it may have

    @classmethod
    def read(
        cls,
        value: Any,
        name: str,
        images: int | None,
        mask_sizes: tuple[tuple[int, int], ...] | None = None,
    ) -> Entry | None:
        """The value, or None if no image has this prompt."""
        node = read_nested(value, name)
        if images is None:
            return cls._of_one_image(node, name, mask_sizes)
        if node is None or (isinstance(node, np.ndarray) and node.size == 0 and len(node) == 0):
            return None
        read = cls(name, node, describe(node), _FORMS)
        if isinstance(node, np.ndarray) and node.ndim == 0:
            raise read.wrong_shape()
        if len(node) != images:
            raise ValueError(
                f"`{name}` must have one entry per image, {images}. Received: {read.shown}, "
                f"{len(node)} entries."
            )
        if isinstance(node, np.ndarray):
            if not node.size:
                return None
            flat, shape = _ONE_PER_IMAGE.get(name, (None, None))
            if node.shape[1:] == flat:
                node = node.reshape((images, *shape))
        return None if is_empty(node) else dataclasses.replace(read, node=node)

    @classmethod
    def _of_one_image(
        cls, node: Node, name: str, mask_sizes: tuple[tuple[int, int], ...] | None
    ) -> Entry | None:
        """The value of one image, in the form of a batch of one."""
        is_array = isinstance(node, np.ndarray)
        if is_empty(node) or (is_array and node.ndim and not node.size):
            return None
        shown = describe(node)
        if is_array and name == "boxes" and node.shape == (4,):
            node = node.reshape((1, 1, 2, 2))
        elif is_array and name == "boxes" and node.shape[1:] == (2, 2):
            node = node.reshape((1, -1, 4))  # corners, whose axis P is to stay
        elif is_array and name == "masks" and 2 <= node.ndim <= 4:
            known = mask_sizes is None or node.shape[:2] in mask_sizes
            if node.shape[-1] == 1 and (node.ndim == 4 or known):
                node = node[..., 0]
            node = node.reshape((1, -1, *node.shape[-2:], 1))
        elif is_array and (name, node.shape) in (("points", (2,)), ("labels", ())):
            node = [node[None]]
        else:
            node = [node]
        return cls(name, node, shown, _FORMS_OF_ONE_IMAGE)

    def wrong_shape(self) -> ValueError:
        return ValueError(
            f"`{self.name}` must have shape {self.forms[self.name]}. Received: {self.shown}."
        )

    def check_finite(self, values: np.ndarray) -> None:
        wrong = values[~np.isfinite(values)]
        if wrong.size:
            raise not_finite(self.name, wrong.flat[0])


def not_finite(name: str, value: float) -> ValueError:
    """The error for a prompt with a value that is NaN, infinite or too large for float32."""
    return ValueError(
        f"`{name}` must be finite. Received: {value}. Use None for an image or an object without "
        "this prompt."
    )


def check_at_least_one(value: Any, name: str) -> None:
    """Raises unless `value` is a positive integer."""
    if not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"`{name}` must be an integer of at least 1. Received: {name}={value!r}.")


def next_power_of_two(n: int) -> int:
    """The smallest power of two that is at least `n`, and at least 1."""
    return 1 << max(n - 1, 0).bit_length()


def to_numpy(value: Any) -> np.ndarray:
    """An array of any backend, or a nested list, as a numpy array; bfloat16 becomes float32.

    Works by the methods that the value has, so that no backend is imported.
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
    # Binary masks and logits are not stacked, for then all would be logits.
    is_mask = name == "masks" and any(getattr(c, "ndim", 0) > 1 for c in children)
    kinds = {
        (c.shape, c.dtype.kind if is_mask else c.dtype == bool)
        if isinstance(c, np.ndarray)
        else None
        for c in children
    }
    return np.stack(children) if len(kinds) == 1 and None not in kinds else children


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


def ones_for_points(node: Node) -> Node:
    """A label 1, foreground, for each point of the node."""
    if isinstance(node, np.ndarray):
        return np.ones(node.shape[:-1], "int32")
    return None if node is None else [ones_for_points(child) for child in node]


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
