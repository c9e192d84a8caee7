"""`tfimm.architectures.segment_anything`."""

from keras_sam.compat.tfimm.architectures.segment_anything.predictor import (
    ImageResizer,
    SAMPredictor,
)
from keras_sam.compat.tfimm.architectures.segment_anything.sam import (
    SegmentAnythingModel,
    SegmentAnythingModelConfig,
    sam_vit_b,
    sam_vit_h,
    sam_vit_l,
)

__all__ = [
    "ImageResizer",
    "SAMPredictor",
    "SegmentAnythingModel",
    "SegmentAnythingModelConfig",
    "sam_vit_b",
    "sam_vit_h",
    "sam_vit_l",
]
