"""Measures of masks (area, box, IoU, stability), and filtering candidates by them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from keras_sam.boxes import boxes_near_crop_edge, uncrop_boxes
from keras_sam.geometry import size_pair
from keras_sam.masks.rle import as_mask_stack, decode_rle, encode_rle, read_counts

# Few enough for float32 to count them exactly; as float32, a chunk of 100 masks takes 100 MB.
_PIXELS_PER_PRODUCT = 1 << 18


def list_masks(masks: Any) -> list[Any]:
    """Masks in any form that `mask_iou` takes as a list of arrays or dicts, none decoded."""
    if isinstance(masks, dict) or (hasattr(masks, "ndim") and masks.ndim == 2):
        masks = [masks]
    return [
        mask["segmentation"] if isinstance(mask, dict) and "segmentation" in mask else mask
        for mask in masks
    ]


def iterate_masks(masks: Any) -> Iterator[np.ndarray]:
    """Yields each mask as a bool array `(H0, W0)`, run lengths decoded one by one."""
    size = None
    for mask in list_masks(masks):
        mask = decode_rle(mask) if isinstance(mask, dict) else as_mask_stack(mask)[0] != 0
        if size not in (None, mask.shape):
            raise ValueError(
                f"All masks must have one size (H0, W0). Received: {size} and {mask.shape}."
            )
        size = mask.shape
        yield mask


def mask_area(masks: Any) -> np.ndarray:
    """Counts the foreground pixels of each mask.

    Args:
        masks: bool or integer array `(..., H0, W0)`, a run-length dict, or
            a sequence of them. Run lengths are not decoded.

    Returns:
        Int64 array `(...,)`; for run-length dicts `()` or `(M,)`.

    Raises:
        ValueError: if the masks are malformed.
    """
    if isinstance(masks, dict):
        return read_counts(masks)[0][1::2].sum()
    if _are_dicts(masks):
        return np.array([mask_area(rle) for rle in masks])
    masks = _mask_array(masks)
    return np.count_nonzero(masks, axis=(-2, -1)).astype("int64")


def mask_to_box(masks: Any, inclusive: bool = True) -> np.ndarray:
    """Finds the box around each mask.

    Args:
        masks: as `mask_area`.
        inclusive: bool. True for Meta's box: x2 and y2 are the last column and row inside, so its
            width is one pixel short. False for COCO's: one past them, so that width and height
            count pixels. Defaults to `True`.

    Returns:
        Int64 array `(..., 4)`, x1 y1 x2 y2 in pixels; all 0 for an empty mask.

    Raises:
        ValueError: if the masks are malformed.

    Example:

    >>> keras_sam.masks.mask_to_box([[0, 0, 0], [0, 1, 1]]).tolist()
    [1, 1, 2, 1]
    >>> keras_sam.masks.mask_to_box([[0, 0, 0], [0, 1, 1]], inclusive=False).tolist()
    [1, 1, 3, 2]
    """
    if isinstance(masks, dict):
        return _rle_to_box(masks, inclusive)
    if _are_dicts(masks):
        return np.stack([_rle_to_box(rle, inclusive) for rle in masks])
    masks = _mask_array(masks)
    sides = []
    for axis in (-2, -1):  # the columns of x, then the rows of y
        inside = masks.any(axis=axis)
        stop = inside.shape[-1] - np.flip(inside, axis=-1).argmax(axis=-1)
        sides.append((inside.argmax(axis=-1), stop - inclusive, inside.any(axis=-1)))
    (x1, x2, filled), (y1, y2, _) = sides
    return np.stack([x1, y1, x2, y2], axis=-1) * filled[..., None]  # (..., 4)


def mask_iou(masks: Any, others: Any = None) -> np.ndarray:
    """Intersection over union of every mask with every other.

    Args:
        masks: `A` masks: an array `(A, H0, W0)`, or a list of masks, run-length dicts or records.
        others: `B` masks in any of these forms. Defaults to `masks`.

    Returns:
        Float32 array `(A, B)`; 0 for two empty masks.

    Raises:
        ValueError: if the masks are malformed or not of one size.
    """
    bits, area, size = _pack(masks)
    other_bits, other_area, other_size = (bits, area, size) if others is None else _pack(others)
    if size is None or other_size is None:
        return np.zeros((len(bits), len(other_bits)), "float32")
    if size != other_size:
        raise ValueError(
            f"`masks` and `others` must be of one size (H0, W0). Received: {size} and {other_size}."
        )
    shared = np.zeros((len(bits), len(other_bits)))
    step = _PIXELS_PER_PRODUCT // 8
    for first in range(0, bits.shape[1], step):
        a, b = (
            np.unpackbits(part[:, first : first + step], axis=1).astype("float32")
            for part in (bits, other_bits)
        )
        shared += a @ b.T
    return iou_of_areas(shared, area[:, None], other_area).astype("float32")


def iou_of_areas(
    shared: ArrayLike, area: ArrayLike, other_area: ArrayLike, if_empty: float = 0.0
) -> np.ndarray:
    """Intersection over union, float64, from the pixels in both masks and those in each."""
    shared = np.asarray(shared, "float64")
    union = area + other_area - shared
    return np.divide(shared, union, out=np.full_like(shared, if_empty), where=union > 0)


def stability_score(
    logits: ArrayLike, mask_threshold: float = 0.0, stability_score_offset: float = 1.0
) -> np.ndarray:
    """How stable a mask is when its threshold changes.

    The IoU between the masks at `mask_threshold` plus and minus the offset:
    `|logits > threshold + offset| / |logits > threshold - offset|`.

    Args:
        logits: float array `(..., h, w)`.
        mask_threshold: float. Defaults to `0.0`.
        stability_score_offset: float. Defaults to `1.0`.

    Returns:
        Float32 array `(...,)`; NaN where the mask is empty even at the lower threshold.

    Raises:
        ValueError: if `logits` has fewer than two axes.

    Source:
        `calculate_stability_score`, facebookresearch/segment-anything@dca509f.
    """
    logits = np.asarray(logits)
    if logits.ndim < 2:
        raise ValueError(f"`logits` must have shape (..., h, w). Received: shape={logits.shape}.")
    # One mask at a time: numpy counts much more slowly along an axis than over a whole array.
    each = logits.reshape(-1, *logits.shape[-2:])
    inner, outer = (
        np.array([np.count_nonzero(one > mask_threshold + offset) for one in each], int)
        for offset in (stability_score_offset, -stability_score_offset)
    )
    return stability_of_areas(*(area.reshape(logits.shape[:-2]) for area in (inner, outer)))


def stability_of_areas(inner: ArrayLike, outer: ArrayLike) -> np.ndarray:
    """`stability_score` of masks whose areas at both thresholds are known."""
    with np.errstate(invalid="ignore"):
        return np.divide(inner, outer, dtype="float32")


def filter_masks(
    logits: ArrayLike,
    scores: ArrayLike,
    original_size: Sequence[int],
    crop_box: Sequence[int] | None = None,
    pred_iou_thresh: float = 0.88,
    stability_score_thresh: float = 0.95,
    mask_threshold: float = 0.0,
    stability_score_offset: float = 1.0,
) -> dict[str, Any]:
    """Keeps the candidates of a crop that Meta's mask generator would keep.

    The filters run in its order: predicted IoU (`>`), stability (`>=`), then boxes that the crop's
    edge cuts off are dropped. A threshold of 0 switches its filter off.

    Args:
        logits: float array `(..., h, w)`, of the crop's size.
        scores: float array `(...,)`, predicted IoUs.
        original_size: pair of ints, `(H0, W0)`.
        crop_box: four ints, x1 y1 x2 y2 in original pixels. Defaults to the whole image.
        pred_iou_thresh, stability_score_thresh, mask_threshold, stability_score_offset: floats, as
            of `SAMAutomaticMaskGenerator`.

    Returns:
        A dict of the `M` candidates kept, in their order: `indices` (int64 `(M,)`, into the
        flattened input), `predicted_iou` and `stability_score` (float32 `(M,)`), `boxes`
        (int64 `(M, 4)`, x1 y1 x2 y2 in original pixels, inclusive) and `segmentations`, a list
        of compressed run-length dicts of the whole image.

    Raises:
        ValueError: if shapes do not fit each other.

    Source:
        `SamAutomaticMaskGenerator._process_batch`, facebookresearch/segment-anything@dca509f.
    """
    h0, w0 = size_pair(original_size, "original_size", square=False)
    crop_box = [0, 0, w0, h0] if crop_box is None else [int(n) for n in crop_box]
    logits, scores = np.asarray(logits), np.asarray(scores, "float32")
    crop_size = (crop_box[3] - crop_box[1], crop_box[2] - crop_box[0])
    if logits.shape != (*scores.shape, *crop_size):
        raise ValueError(
            "`logits` must have the shape of `scores`, then the crop's height and width "
            f"{crop_size}. Received: logits.shape={logits.shape}, scores.shape={scores.shape}."
        )
    logits, scores = logits.reshape(-1, *crop_size), scores.reshape(-1)
    kept = np.arange(len(scores))
    if pred_iou_thresh > 0:
        kept = kept[scores > pred_iou_thresh]
    # One at a time, so that there is never a second stack of the candidates' size.
    stability = np.array(
        [stability_score(logits[i], mask_threshold, stability_score_offset) for i in kept],
        "float32",
    )
    if stability_score_thresh > 0:
        stable = stability >= stability_score_thresh
        kept, stability = kept[stable], stability[stable]
    boxes = np.array([mask_to_box(logits[i] > mask_threshold) for i in kept], "int64")
    boxes = boxes.reshape(-1, 4)
    whole = ~boxes_near_crop_edge(boxes, crop_box, (h0, w0))
    kept, stability, boxes = kept[whole], stability[whole], boxes[whole]
    return {
        "indices": kept,
        "predicted_iou": scores[kept],
        "stability_score": stability,
        "boxes": uncrop_boxes(boxes, crop_box),
        "segmentations": [
            encode_rle(logits[i] > mask_threshold, crop_box=crop_box, original_size=(h0, w0))
            for i in kept
        ],
    }


def _are_dicts(masks: Any) -> bool:
    return isinstance(masks, (list, tuple)) and len(masks) > 0 and isinstance(masks[0], dict)


def _mask_array(masks: ArrayLike) -> np.ndarray:
    masks = np.asarray(masks)
    if masks.ndim < 2:
        raise ValueError(
            "`masks` must have shape (..., H0, W0), or be run-length dicts. "
            f"Received: shape={masks.shape}."
        )
    flat = as_mask_stack(masks.reshape(-1, *masks.shape[-2:]))
    return flat.reshape(masks.shape)


def _rle_to_box(rle: dict, inclusive: bool) -> np.ndarray:
    counts, (h0, _) = read_counts(rle)
    ends = np.cumsum(counts)
    full = counts[1::2] > 0
    first, last = ends[:-1:2][: len(full)][full], ends[1::2][full] - 1
    if not len(first):
        return np.zeros(4, "int64")
    # A run that continues in the next column touches the bottom and the top.
    across = (first // h0 != last // h0).any()
    y1, y2 = (0, h0 - 1) if across else ((first % h0).min(), (last % h0).max())
    x1, x2 = first[0] // h0, last[-1] // h0
    return np.array([x1, y1, x2 + (not inclusive), y2 + (not inclusive)], "int64")


def _pack(masks: Any) -> tuple[np.ndarray, np.ndarray, tuple[int, int] | None]:
    """Masks as bits `(M, bytes)`, their areas, and their size (None if there are none)."""
    rows, areas, size = [], [], None
    for mask in iterate_masks(masks):
        rows.append(np.packbits(mask.reshape(-1)))
        areas.append(np.count_nonzero(mask))
        size = mask.shape
    bits = np.stack(rows) if rows else np.zeros((0, 0), "uint8")
    return bits, np.array(areas, "float64"), size
