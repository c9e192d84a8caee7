"""Point grids, crops, box overlap, non-maximum suppression.

Numpy only. Boxes are x1 y1 x2 y2, sizes `(height, width)`, points x, y.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from keras_sam.geometry import size_pair

# --- points and crops ---


def build_point_grid(points_per_side: int) -> np.ndarray:
    """The centres of `points_per_side**2` equal cells of the unit square.

    Args:
        points_per_side: int. At least 1.

    Returns:
        Float64 array `(points_per_side**2, 2)`, x y in 0..1, row by row.

    Raises:
        ValueError: if `points_per_side` is less than 1.

    Example:

    >>> keras_sam.boxes.build_point_grid(2).tolist()
    [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    """
    if points_per_side < 1:
        raise ValueError(f"`points_per_side` must be at least 1. Received: {points_per_side}.")
    # linspace, not (i + 0.5) / n, to equal the released code bit for bit.
    half = 1 / (2 * points_per_side)
    side = np.linspace(half, 1 - half, points_per_side)
    return np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)


def build_layer_point_grids(
    points_per_side: int, n_layers: int, downscale_factor: int = 1
) -> list[np.ndarray]:
    """Point grids for the whole image and each layer of crops.

    Args:
        points_per_side: int. Points per side on the whole image.
        n_layers: int. Layers of crops, 0 for none.
        downscale_factor: int. Layer `i` has `points_per_side / downscale_factor**i` points
            per side, rounded down. Defaults to `1`.

    Returns:
        A list of `n_layers + 1` grids, as `build_point_grid`.

    Raises:
        ValueError: if a layer is left without points.
    """
    if n_layers < 0 or downscale_factor < 1:
        raise ValueError(
            "`n_layers` must be at least 0 and `downscale_factor` at least 1. "
            f"Received: n_layers={n_layers}, downscale_factor={downscale_factor}."
        )
    sides = [int(points_per_side / downscale_factor**layer) for layer in range(n_layers + 1)]
    if min(sides) < 1:
        raise ValueError(
            "Every layer of crops must have at least one point per side. Received: "
            f"points_per_side={points_per_side}, downscale_factor={downscale_factor}, which "
            f"leaves {sides}. Use more points, fewer layers or a smaller factor."
        )
    return [build_point_grid(side) for side in sides]


def generate_crop_boxes(
    original_size: Sequence[int], n_layers: int, overlap_ratio: float = 512 / 1500
) -> tuple[np.ndarray, np.ndarray]:
    """Divides an image into layers of overlapping crops.

    Layer 0 is the whole image; layer `i` has `2**i` by `2**i` crops, column by
    column, which overlap by `overlap_ratio` of the short side in layer 1 and
    by half as much in each layer after it.

    Args:
        original_size: pair of ints, `(H0, W0)`.
        n_layers: int. Layers of crops in addition to the whole image.
        overlap_ratio: float, 0..1. Defaults to `512 / 1500`.

    Returns:
        Int64 array `(N, 4)`, the crops in original pixels, and int64 array
        `(N,)`, the layer of each.

    Raises:
        ValueError: if the image is too small for so many crops.

    Source:
        `generate_crop_boxes`, facebookresearch/segment-anything@dca509f.

    Example:

    >>> boxes, layers = keras_sam.boxes.generate_crop_boxes((100, 100), 1, 0.2)
    >>> boxes.tolist()
    [[0, 0, 100, 100], [0, 0, 60, 60], [0, 40, 60, 100], [40, 0, 100, 60], [40, 40, 100, 100]]
    """
    h0, w0 = size_pair(original_size, "original_size", square=False)
    if n_layers < 0 or not 0 <= overlap_ratio < 1:
        raise ValueError(
            "`n_layers` must be at least 0 and `overlap_ratio` in [0, 1). "
            f"Received: n_layers={n_layers}, overlap_ratio={overlap_ratio}."
        )
    boxes, layers = [[0, 0, w0, h0]], [0]
    for layer in range(1, n_layers + 1):
        n = 2**layer
        overlap = int(overlap_ratio * min(h0, w0) * (2 / n))
        width, height = (math.ceil((overlap * (n - 1) + side) / n) for side in (w0, h0))
        for i in range(n):
            for j in range(n):
                x1, y1 = (width - overlap) * i, (height - overlap) * j
                boxes.append([x1, y1, min(x1 + width, w0), min(y1 + height, h0)])
                layers.append(layer)
    boxes = np.array(boxes, "int64")
    if (boxes[:, 2:] <= boxes[:, :2]).any():
        raise ValueError(
            f"The image is too small for {n_layers} layers of crops: some would be empty. "
            f"Received: original_size={(h0, w0)}. Use fewer layers."
        )
    return boxes, np.array(layers, "int64")


# --- from a crop to the image ---


def uncrop_boxes(boxes: ArrayLike, crop_box: Sequence[int]) -> np.ndarray:
    """Maps boxes `(..., 4)` of a crop to the image that `crop_box` was cut from."""
    return np.asarray(boxes) + np.tile(np.asarray(crop_box[:2]), 2)


def boxes_near_crop_edge(
    boxes: ArrayLike,
    crop_box: Sequence[int],
    original_size: Sequence[int],
    tolerance: float = 20.0,
) -> np.ndarray:
    """Finds boxes that a crop's edge has probably cut off.

    Args:
        boxes: array `(N, 4)`, x1 y1 x2 y2 in pixels of the *crop*.
        crop_box: four ints, x1 y1 x2 y2 in original pixels.
        original_size: pair of ints, `(H0, W0)`.
        tolerance: float, pixels. Defaults to `20.0`.

    Returns:
        Bool array `(N,)`: True where a side lies within `tolerance` of the same
        side of the crop, but not of the image.
    """
    h0, w0 = size_pair(original_size, "original_size", square=False)
    boxes = uncrop_boxes(np.asarray(boxes, "float32").reshape(-1, 4), crop_box)
    near_crop = np.abs(boxes - np.asarray(crop_box)) <= tolerance
    near_image = np.abs(boxes - [0, 0, w0, h0]) <= tolerance
    return (near_crop & ~near_image).any(axis=1)


# --- overlap ---


def box_area(boxes: ArrayLike) -> np.ndarray:
    """Areas `(...,)` of boxes `(..., 4)`."""
    boxes = np.asarray(boxes)
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_iou(boxes: ArrayLike, others: ArrayLike | None = None) -> np.ndarray:
    """Intersection over union of every box with every other.

    Args:
        boxes: array `(A, 4)`, x1 y1 x2 y2.
        others: array `(B, 4)`. Defaults to `boxes`.

    Returns:
        Float32 array `(A, B)`; 0 for two boxes without any area.
    """
    boxes = _float_boxes(boxes)
    others = boxes if others is None else _float_boxes(others)
    iou = np.empty((len(boxes), len(others)), "float32")
    for i, box in enumerate(boxes):
        iou[i] = _iou_with(box, others)
    return iou


def nms(boxes: ArrayLike, scores: ArrayLike, iou_threshold: float = 0.7) -> np.ndarray:
    """Non-maximum suppression: of boxes that overlap, the one with the highest score is kept.

    In the order of descending scores, a box is kept unless its IoU with a kept
    box is greater than the threshold. Of equal scores the earlier comes
    first; NaN scores come last. Equal to a brute-force reference (`test_nms_equals_brute_force`).

    Args:
        boxes: array `(N, 4)`, x1 y1 x2 y2.
        scores: array `(N,)`.
        iou_threshold: float. Defaults to `0.7`.

    Returns:
        Int64 array of the kept indices, by descending score.

    Raises:
        ValueError: if there are not as many scores as boxes.

    Example:

    >>> boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10]]
    >>> keras_sam.boxes.nms(boxes, [0.8, 0.9, 0.1], 0.5).tolist()
    [1, 2]
    """
    boxes, scores = _float_boxes(boxes), np.asarray(scores)
    if scores.shape != boxes.shape[:1]:
        raise ValueError(
            "`scores` must hold one number per box. "
            f"Received: {boxes.shape[0]} boxes, scores of shape={scores.shape}."
        )
    waiting = np.argsort(-scores.astype("float64"), kind="stable")
    kept = []
    while len(waiting):
        best, waiting = waiting[0], waiting[1:]
        kept.append(best)
        waiting = waiting[~(_iou_with(boxes[best], boxes[waiting]) > iou_threshold)]
    return np.array(kept, "int64")


def nms_across_crops(
    boxes: ArrayLike, crop_boxes: ArrayLike, iou_threshold: float = 0.7
) -> np.ndarray:
    """`nms` of masks found in different crops: those of smaller crops come first.

    Args:
        boxes: array `(N, 4)`, x1 y1 x2 y2 in original pixels.
        crop_boxes: array `(N, 4)`, the crop that each was found in.
        iou_threshold: float. Defaults to `0.7`.

    Returns:
        Int64 array of the kept indices, by ascending crop area, then index.
    """
    areas = box_area(np.asarray(crop_boxes).reshape(-1, 4))
    return nms(boxes, np.float32(1) / areas.astype("float32"), iou_threshold)


def _float_boxes(boxes: ArrayLike) -> np.ndarray:
    # float32, as in torchvision, so that an IoU near the threshold is on the same side of it.
    boxes = np.asarray(boxes, "float32")
    if boxes.size == 0:
        return boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(
            f"`boxes` must have shape (N, 4), x1 y1 x2 y2. Received: shape={boxes.shape}."
        )
    return boxes


def _iou_with(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    corner = np.maximum(box[:2], others[:, :2])
    sides = np.maximum(np.minimum(box[2:], others[:, 2:]) - corner, 0)
    shared = sides[:, 0] * sides[:, 1]
    union = box_area(box) + box_area(others) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
