"""`keras_hub.models`, as far as Segment Anything goes."""

from keras_sam.models.backbone import Backbone
from keras_sam.models.image_segmenter import ImageSegmenter
from keras_sam.models.sam_backbone import SAMBackbone
from keras_sam.models.sam_image_segmenter import SAMImageSegmenter
from keras_sam.models.vit_det_backbone import ViTDetBackbone
from keras_sam.preprocessing import SAMImageSegmenterPreprocessor

Task = ImageSegmenter
Preprocessor = ImageSegmenterPreprocessor = SAMImageSegmenterPreprocessor

__all__ = [
    "Backbone",
    "ImageSegmenter",
    "ImageSegmenterPreprocessor",
    "Preprocessor",
    "SAMBackbone",
    "SAMImageSegmenter",
    "SAMImageSegmenterPreprocessor",
    "Task",
    "ViTDetBackbone",
]
