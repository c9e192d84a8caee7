"""`keras_cv.models`, as far as Segment Anything goes."""

from keras_sam.compat.keras_cv.models import segmentation
from keras_sam.compat.keras_cv.models.backbones import (
    ViTDetBackbone,
    ViTDetBBackbone,
    ViTDetHBackbone,
    ViTDetLBackbone,
)
from keras_sam.compat.keras_cv.models.parts import (
    SAMMaskDecoder,
    SAMPromptEncoder,
    TwoWayTransformer,
)
from keras_sam.compat.keras_cv.models.segmentation import SegmentAnythingModel
from keras_sam.models.backbone import Backbone
from keras_sam.models.image_segmenter import ImageSegmenter as Task

__all__ = [
    "Backbone",
    "SAMMaskDecoder",
    "SAMPromptEncoder",
    "SegmentAnythingModel",
    "Task",
    "TwoWayTransformer",
    "ViTDetBBackbone",
    "ViTDetBackbone",
    "ViTDetHBackbone",
    "ViTDetLBackbone",
    "segmentation",
]
