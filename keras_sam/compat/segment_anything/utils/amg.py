"""Functions of Meta's `segment_anything.utils.amg`, over those of this package.

Tensors of torch give tensors of torch, everything else numpy arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from keras_sam import boxes as geometry
from keras_sam import masks as measures
from keras_sam.boxes import build_layer_point_grids as build_all_layer_point_grids
from keras_sam.boxes import build_point_grid
from keras_sam.compat.tensors import like
from keras_sam.geometry import xyxy_to_xywh
from keras_sam.masks import compress_rle as coco_encode_rle
from keras_sam.prompts.nested import to_numpy

__all__ = [
    "area_from_rle",
    "batch_iterator",
    "batched_mask_to_box",
    "box_xyxy_to_xywh",
    "build_all_layer_point_grids",
    "build_point_grid",
    "calculate_stability_score",
    "coco_encode_rle",
    "generate_crop_boxes",
    "is_box_near_crop_edge",
    "mask_to_rle_pytorch",
    "remove_small_regions",
    "rle_to_mask",
    "uncrop_boxes_xyxy",
    "uncrop_masks",
    "uncrop_points",
]


def area_from_rle(rle: dict[str, Any]) -> int:
    """The number of pixels of a mask in run lengths."""
    return int(measures.mask_area(rle))


def batch_iterator(batch_size: int, *args: Any) -> Iterator[list[Any]]:
    """Cuts sequences of one length into batches.

    Raises:
        ValueError: if there is no sequence, or they differ in length.
    """
    if len({len(x) for x in args}) != 1:
        raise ValueError(
            f"`args` must be sequences of one length. Received: lengths {[len(x) for x in args]}."
        )
    for start in range(0, len(args[0]), batch_size):
        yield [x[start : start + batch_size] for x in args]


def batched_mask_to_box(masks: Any) -> Any:
    """Boxes `(..., 4)`, x1 y1 x2 y2 with inclusive corners, of bool masks `(..., h, w)`."""
    return like(masks, measures.mask_to_box(to_numpy(masks)))


def box_xyxy_to_xywh(box_xyxy: Any) -> Any:
    """A box `(4,)` as x y width height."""
    return like(box_xyxy, xyxy_to_xywh(to_numpy(box_xyxy)))


def calculate_stability_score(masks: Any, mask_threshold: float, threshold_offset: float) -> Any:
    """The IoU `(...,)` of logits `(..., h, w)` above and below the threshold by an offset."""
    return like(masks, measures.stability_score(to_numpy(masks), mask_threshold, threshold_offset))


def generate_crop_boxes(
    im_size: Sequence[int], n_layers: int, overlap_ratio: float
) -> tuple[list[list[int]], list[int]]:
    """Crops, x1 y1 x2 y2, of an image `(H0, W0)` in layers, and the layer of each."""
    crops, layers = geometry.generate_crop_boxes(im_size, n_layers, overlap_ratio)
    return crops.tolist(), layers.tolist()


def is_box_near_crop_edge(
    boxes: Any, crop_box: Sequence[int], orig_box: Sequence[int], atol: float = 20.0
) -> Any:
    """Which boxes `(N, 4)` of a crop lie at its edge, but not at that of the image `orig_box`."""
    size = (orig_box[3], orig_box[2])
    return like(boxes, geometry.boxes_near_crop_edge(to_numpy(boxes), crop_box, size, atol))


def mask_to_rle_pytorch(tensor: Any) -> list[dict[str, Any]]:
    """Uncompressed run lengths of bool masks `(N, h, w)`."""
    return measures.encode_rle(to_numpy(tensor), compressed=False)


def remove_small_regions(
    mask: np.ndarray, area_thresh: float, mode: str
) -> tuple[np.ndarray, bool]:
    """Fills holes or drops islands that are smaller; also says whether there were any."""
    return measures.remove_small_regions(mask, area_thresh, mode)


def rle_to_mask(rle: dict[str, Any]) -> np.ndarray:
    """The mask `(H0, W0)`, bool, of run lengths."""
    return measures.decode_rle(rle)


def uncrop_boxes_xyxy(boxes: Any, crop_box: Sequence[int]) -> Any:
    """Boxes `(..., 4)` of a crop, in pixels of the image."""
    return like(boxes, geometry.uncrop_boxes(to_numpy(boxes), crop_box))


def uncrop_points(points: Any, crop_box: Sequence[int]) -> Any:
    """Points `(..., 2)` of a crop, in pixels of the image."""
    return like(points, to_numpy(points) + np.asarray(crop_box[:2]))


def uncrop_masks(masks: Any, crop_box: Sequence[int], orig_h: int, orig_w: int) -> Any:
    """Masks `(..., h, w)` of a crop, in an image of `orig_h` by `orig_w` pixels."""
    pixels, (x1, y1, x2, y2) = to_numpy(masks), crop_box
    whole = np.zeros((*pixels.shape[:-2], orig_h, orig_w), pixels.dtype)
    whole[..., y1:y2, x1:x2] = pixels
    return like(masks, whole)
