"""Cleaning masks and combining them: small regions, label maps, masks without overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from keras_sam.geometry import size_pair
from keras_sam.masks.measures import iterate_masks, list_masks, mask_area
from keras_sam.masks.rle import as_mask_stack


def remove_small_regions(mask: ArrayLike, min_area: float, mode: str) -> tuple[np.ndarray, bool]:
    """Fills small holes, or drops small islands.

    Regions are 8-connected. If every island is small, the largest one is kept, the topmost of
    equals. Background that touches the image's edge counts as a hole, too.

    Args:
        mask: bool or integer array `(H0, W0)`.
        min_area: float, pixels. Regions with fewer are changed.
        mode: str, `"holes"` or `"islands"`.

    Returns:
        Bool array `(H0, W0)`, and whether it differs from `mask`.

    Raises:
        ValueError: if `mask` is not a single binary mask, or `mode` is something else.

    Source:
        `remove_small_regions`, facebookresearch/segment-anything@dca509f. Works on runs of pixels
        in numpy alone: on masks of photographs that is faster than labelling every pixel with
        OpenCV or scipy, and needs neither.
    """
    if mode not in ("holes", "islands"):
        raise ValueError(f"`mode` must be 'holes' or 'islands'. Received: {mode!r}.")
    if np.ndim(mask) != 2:
        raise ValueError(f"`mask` must have shape (H0, W0). Received: shape={np.shape(mask)}.")
    mask = as_mask_stack(mask, "mask")[0] != 0
    holes = mode == "holes"
    starts, lengths, region = _regions(mask ^ holes)
    area = np.bincount(region, weights=lengths, minlength=len(starts))
    small = (area > 0) & (area < min_area)
    if not small.any():
        return mask, False
    if not holes and np.count_nonzero(small) == np.count_nonzero(area):
        small[area.argmax()] = False
    changed = small[region]
    starts, lengths = starts[changed], lengths[changed]
    pixels = np.arange(lengths.sum()) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
    mask.reshape(-1)[pixels] = holes
    return mask, True


def masks_to_label_map(
    masks: Any, scores: ArrayLike | None = None, size: Sequence[int] | None = None
) -> np.ndarray:
    """Paints masks into one map of numbers.

    Where masks overlap, the smaller one is on top, or with `scores` the
    one with the higher score; the earlier one if they are equal.

    Args:
        masks: array `(M, H0, W0)`, or a sequence of masks, of run-length dicts or of
            records. Run lengths are decoded one at a time.
        scores: array `(M,)`. By default smaller masks score higher.
        size: pair of ints `(H0, W0)`. Defaults to the masks' size; required if there is no mask.

    Returns:
        Int32 array `(H0, W0)`: 0 is background, `i + 1` is mask `i`.

    Raises:
        ValueError: if there are no masks and no size, or not as many scores as masks.

    Example:

    >>> keras_sam.masks.masks_to_label_map([[[1, 1, 1, 0]], [[0, 0, 1, 0]]]).tolist()
    [[1, 1, 2, 0]]
    """
    masks = list_masks(masks)
    if not masks and size is None:
        raise ValueError("`masks` must hold at least one mask, or `size` be given. Received: none.")
    rank = -np.array([mask_area(mask) for mask in masks]) if scores is None else np.asarray(scores)
    if rank.shape != (len(masks),):
        raise ValueError(
            "`scores` must hold one number per mask. "
            f"Received: shape={rank.shape} for {len(masks)} masks."
        )
    # The mask on top is painted last; masks whose score is NaN lie at the bottom.
    order = np.argsort(-rank.astype("float64"), kind="stable")[::-1]
    labels = None if size is None else np.zeros(size_pair(size, "size", square=False), "int32")
    for i, mask in zip(order, iterate_masks(masks[i] for i in order), strict=True):
        if labels is None:
            labels = np.zeros(mask.shape, "int32")
        if mask.shape != labels.shape:
            raise ValueError(
                f"`masks` must be of `size` {labels.shape}. Received: a mask of {mask.shape}."
            )
        np.copyto(labels, i + 1, where=mask)
    return labels


def label_map_to_masks(label_map: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Splits a label map into masks.

    Args:
        label_map: integer array `(H0, W0)`, 0 for background.

    Returns:
        The labels that occur, ascending, `(M,)`, and their masks, bool `(M, H0, W0)`.

    Raises:
        ValueError: if `label_map` is not an integer map.
    """
    label_map = as_mask_stack(label_map, "label_map")
    if len(label_map) != 1:
        raise ValueError(
            f"`label_map` must have shape (H0, W0). Received: shape={label_map.shape}."
        )
    labels = np.unique(label_map)
    labels = labels[labels != 0]
    return labels, label_map == labels[:, None, None]


def remove_overlaps(masks: Any, scores: ArrayLike | None = None) -> np.ndarray:
    """Gives every pixel to one mask at most, by the rule of `masks_to_label_map`.

    Args:
        masks: as `masks_to_label_map`.
        scores: array `(M,)`. By default smaller masks score higher.

    Returns:
        Bool array `(M, H0, W0)`; a mask that is covered completely is left empty.

    Raises:
        ValueError: as `masks_to_label_map`.
    """
    masks = list_masks(masks)
    if not masks:
        raise ValueError("`masks` must hold at least one mask. Received: none.")
    labels = masks_to_label_map(masks, scores)
    return labels == np.arange(1, len(masks) + 1)[:, None, None]


def _regions(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds the 8-connected regions of a mask, as runs of pixels within rows.

    Returns for each run its first pixel `y * W0 + x`, its length, and its region, which is the
    index of the region's first run.
    """
    h0, w0 = mask.shape
    stride = w0 + 1  # an empty column, so that no run continues in the next row
    flat = np.zeros(h0 * stride + 1, bool)
    flat[1:].reshape(h0, stride)[:, :w0] = mask
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    starts, stops = edges[0::2], edges[1::2]
    # Runs of the next row that touch a run, be it at a corner, are consecutive.
    first = np.searchsorted(stops, starts + stride, side="left")
    touching = np.searchsorted(starts, stops + stride, side="right") - first
    upper = np.repeat(np.arange(len(starts)), touching)
    lower = np.arange(len(upper)) + np.repeat(first - np.cumsum(touching) + touching, touching)
    # Each round joins every region to a neighbour that starts earlier, if there is one, so that at
    # least half of the regions that are still to be joined disappear.
    region = np.arange(len(starts))
    while True:
        a, b = region[upper], region[lower]
        apart = a != b
        if not apart.any():
            return starts - starts // stride, stops - starts, region
        a, b, upper, lower = a[apart], b[apart], upper[apart], lower[apart]
        np.minimum.at(region, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(region[region], region):
            region = region[region]
