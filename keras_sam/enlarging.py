"""Mask logits at the size of the image: two small matrices, a few rows of pixels at a time.

Numpy only. A mask at full size is megabytes of floats, of which mostly no more is wanted than
which are above a threshold. What is made some rows at a time is looked at while it is in the
processor's cache, and never needs the memory.
"""

import functools
from collections.abc import Iterator

import numpy as np

# Pixels that are made together. Products of these sizes numpy's BLAS computes in the thread that
# asks: those that it spreads over threads of its own make callers in several threads wait for one
# another, and 192 masks of a photograph took 7.9 ms each on 2 cores, not 4.
_ROWS = 16
_COLUMNS = 64


class Axis:
    """The weights of one axis of `ResizePlan.masks_to_original`.

    Args:
        original: int. Pixels of the image along the axis.
        scaled: int. Pixels of the scaled image, before padding.
        model: int. Pixels of the model's frame.
        mask: int. Pixels of the mask frame.

    Attributes:
        weights: float32 array `(original, mask)`, read-only: mask frame -> model frame -> crop ->
            original. Each row holds non-negative weights that sum to 1, next to each other, and
            further to the right from row to row.
    """

    def __init__(self, original: int, scaled: int, model: int, mask: int):
        matrix = _bilinear_matrix(original, scaled) @ _bilinear_matrix(model, mask)[:scaled]
        self.weights = matrix.astype("float32")
        self.weights.setflags(write=False)  # many share it
        used = self.weights > 0
        self._first = used.argmax(axis=1)
        self._stop = mask - used[:, ::-1].argmax(axis=1)

    def inputs(self, outputs: slice) -> slice:
        """The pixels of the mask frame that have weight in pixels of the image."""
        return slice(int(self._first[outputs.start]), int(self._stop[outputs.stop - 1]))

    def reach(self, wanted: np.ndarray) -> slice:
        """The pixels of the image in which any wanted pixel of the mask frame has weight.

        Args:
            wanted: bool array `(mask,)`.

        Returns:
            A slice that holds them all; of one pixel if there are none, so that there is one.
        """
        hits = np.flatnonzero(wanted)
        if not len(hits):
            return slice(0, 1)
        start = int(np.searchsorted(self._stop, hits[0], side="right"))
        stop = int(np.searchsorted(self._first, hits[-1], side="right"))
        return slice(start, stop) if start < stop else slice(0, 1)  # else all is in the padding


# A pure function of four sizes; an enlargement to 4000 pixels takes 4 MB, so few are kept.
axis_of = functools.lru_cache(maxsize=16)(Axis)


def enlarged_rows(
    logits: np.ndarray, rows: Axis, columns: Axis, part: tuple[slice, slice] | None = None
) -> Iterator[tuple[slice, np.ndarray]]:
    """`rows.weights @ logits @ columns.weights.T`, some rows at a time.

    Args:
        logits: float array `(Lh, Lw)`.
        rows: the `Axis` of heights.
        columns: the `Axis` of widths.
        part: optional slices of rows and columns, to make only those of the image.

    Yields:
        Which rows of the part, and their float32 values `(n, w)`, which the next ones overwrite.
    """
    whole = (slice(0, len(rows.weights)), slice(0, len(columns.weights)))
    (top, bottom), (left, right) = ((s.start, s.stop) for s in part or whole)
    needed = rows.inputs(slice(top, bottom))
    logits = np.asarray(logits[needed], "float32")
    wide = np.empty((len(logits), right - left), "float32")
    for some in _blocks(left, right, _COLUMNS):
        inputs = columns.inputs(some)
        made = wide[:, some.start - left : some.stop - left]
        np.matmul(logits[:, inputs], columns.weights[some, inputs].T, out=made)
    values = np.empty((min(_ROWS, bottom - top), right - left), "float32")
    for some in _blocks(top, bottom, _ROWS):
        inputs = rows.inputs(some)
        of_wide = wide[inputs.start - needed.start : inputs.stop - needed.start]
        made = values[: some.stop - some.start]
        np.matmul(rows.weights[some, inputs], of_wide, out=made)
        yield slice(some.start - top, some.stop - top), made


def _blocks(start: int, stop: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, stop)) for first in range(start, stop, size))


def _bilinear_matrix(out_size: int, in_size: int) -> np.ndarray:
    """`(out, in)` weights of bilinear interpolation, half-pixel centres, no antialiasing."""
    # Scale and positions rounded to float32 where torch rounds them (one fused multiply-add), so
    # that the weights are the reference's, bit for bit.
    rows = np.arange(out_size)
    scale = np.float64(np.float32(in_size) / np.float32(out_size))
    position = np.maximum((scale * (rows + 0.5) - 0.5).astype("float32"), 0)
    low = np.minimum(position.astype(int), in_size - 1)
    high = np.minimum(low + 1, in_size - 1)
    matrix = np.zeros((out_size, in_size))
    matrix[rows, low] += 1 - (position - low)
    matrix[rows, high] += position - low
    return matrix
