"""Mask logits at the size of the image: two small matrices, a few rows of pixels at a time.

Numpy only. The logits of a mask at full size take megabytes, and mostly only their signs are
wanted. Computed a few rows at a time, they are compared with the threshold while they are in the
processor's cache, and are never held in memory.
"""

import functools
from collections.abc import Iterator

import numpy as np

# Pixels that are computed together: few enough for numpy's BLAS to multiply in the calling thread.
# Larger products are spread over threads of its own, for which callers in several threads wait.
_ROWS = 16
_COLUMNS = 64


class AxisWeights:
    """The weights of one axis of `ResizePlan.masks_to_original`, from the pixels along it.

    `weights`, float32 `(original, mask)`, leads from the mask frame to the model's, whose first
    `scaled` pixels are the image, and to the image's own. The weights of a row are non-negative,
    adjacent and sum to 1; from row to row they move to the right.
    """

    def __init__(self, original: int, scaled: int, model: int, mask: int):
        matrix = _resize_weights(original, scaled) @ _resize_weights(model, mask)[:scaled]
        self.weights = matrix.astype("float32")
        self.weights.setflags(write=False)  # shared through `axis_weights`
        used = self.weights > 0
        self._first = used.argmax(axis=1)
        self._stop = mask - used[:, ::-1].argmax(axis=1)

    def inputs(self, outputs: slice) -> slice:
        """The pixels of the mask frame that these pixels of the image depend on."""
        return slice(int(self._first[outputs.start]), int(self._stop[outputs.stop - 1]))

    def reach(self, wanted: np.ndarray) -> slice:
        """One slice that holds the pixels of the image that depend on a wanted one, bool `(mask,)`.

        It is never empty: one pixel if there are none.
        """
        hits = np.flatnonzero(wanted)
        if not len(hits):
            return slice(0, 1)
        start = int(np.searchsorted(self._stop, hits[0], side="right"))
        stop = int(np.searchsorted(self._first, hits[-1], side="right"))
        return slice(start, stop) if start < stop else slice(0, 1)  # else all is in the padding


# Large images have weights of megabytes, so few are kept.
axis_weights = functools.lru_cache(maxsize=16)(AxisWeights)


def enlarged_rows(
    logits: np.ndarray,
    rows: AxisWeights,
    columns: AxisWeights,
    part: tuple[slice, slice] | None = None,
) -> Iterator[tuple[slice, np.ndarray]]:
    """`rows.weights @ logits @ columns.weights.T`, some rows at a time.

    `part`, slices of rows and columns of the image, computes only these. Yields a slice of rows
    within the part and their float32 values `(n, w)`, in an array that the next rows overwrite.
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


def enlarge_masks(
    masks: np.ndarray, rows: AxisWeights, columns: AxisWeights, mask_threshold: float | None = None
) -> np.ndarray:
    """Masks `(..., Lh, Lw)` at the image's size, float32, or which values are above the threshold.

    With a threshold, the values of a whole mask are never held in memory.
    """
    dtype = "float32" if mask_threshold is None else bool
    size = (len(rows.weights), len(columns.weights))
    original = np.empty(masks.shape[:-2] + size, dtype)
    for index in np.ndindex(masks.shape[:-2]):
        for some, values in enlarged_rows(masks[index], rows, columns):
            if mask_threshold is None:
                original[index][some] = values
            else:
                np.greater(values, mask_threshold, out=original[index][some])
    return original  # (..., H0, W0)


def _blocks(start: int, stop: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, stop)) for first in range(start, stop, size))


def bilinear_weights(places: np.ndarray, size: int) -> np.ndarray:
    """`(N, size)` weights of linear interpolation at `places` `(N,)` between the centres of cells.

    Cell `i` has its centre at `i`; the ends are repeated.
    """
    places = np.clip(places, 0, size - 1)
    low = places.astype(int)
    matrix = np.zeros((len(places), size))
    rows = np.arange(len(places))
    matrix[rows, low] = 1 - (places - low)
    matrix[rows, np.minimum(low + 1, size - 1)] += places - low
    return matrix


def _resize_weights(out_size: int, in_size: int) -> np.ndarray:
    """`(out, in)` weights of bilinear resizing, half-pixel centres, no antialiasing."""
    # Scale and positions rounded to float32 where torch rounds them (one fused multiply-add), so
    # that the weights are the reference's, bit for bit.
    scale = np.float64(np.float32(in_size) / np.float32(out_size))
    return bilinear_weights((scale * (np.arange(out_size) + 0.5) - 0.5).astype("float32"), in_size)
