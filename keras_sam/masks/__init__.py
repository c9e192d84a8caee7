"""Tools for masks: run lengths, boxes, polygons, IoU and stability, small regions, label maps.

Numpy only. Masks are bool `(H0, W0)` in pixels of their image.
"""

from keras_sam.masks.measures import (
    filter_masks,
    mask_area,
    mask_iou,
    mask_to_box,
    stability_score,
)
from keras_sam.masks.polygons import (
    mask_to_polygons,
    polygons_to_coco,
    polygons_to_mask,
    polygons_to_yolo,
    yolo_to_polygons,
)
from keras_sam.masks.regions import (
    label_map_to_masks,
    masks_to_label_map,
    remove_overlaps,
    remove_small_regions,
)
from keras_sam.masks.rle import compress_rle, decode_rle, decompress_rle, encode_rle

__all__ = [
    "compress_rle",
    "decode_rle",
    "decompress_rle",
    "encode_rle",
    "filter_masks",
    "label_map_to_masks",
    "mask_area",
    "mask_iou",
    "mask_to_box",
    "mask_to_polygons",
    "masks_to_label_map",
    "polygons_to_coco",
    "polygons_to_mask",
    "polygons_to_yolo",
    "remove_overlaps",
    "remove_small_regions",
    "stability_score",
    "yolo_to_polygons",
]
