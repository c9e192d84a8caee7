"""Masks on disk: COCO, SA-1B, YOLO and PNG, written whole or not at all, and read back.

Numpy and pillow only.
"""

from keras_sam.annotations.coco import read_coco, write_coco
from keras_sam.annotations.image_annotations import ImageAnnotations, segmentation_to_rle
from keras_sam.annotations.png import (
    read_label_map,
    read_mask_folder,
    write_label_map,
    write_mask_folder,
)
from keras_sam.annotations.sa1b import read_sa1b, write_sa1b
from keras_sam.annotations.yolo import read_yolo, write_yolo

__all__ = [
    "ImageAnnotations",
    "read_coco",
    "read_label_map",
    "read_mask_folder",
    "read_sa1b",
    "read_yolo",
    "segmentation_to_rle",
    "write_coco",
    "write_label_map",
    "write_mask_folder",
    "write_sa1b",
    "write_yolo",
]
