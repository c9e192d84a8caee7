"""Preprocessing: from images, prompts and targets as people have them to the model frame."""

from keras_sam.outputs import restore_masks
from keras_sam.preprocessing.converter import SAMImageConverter
from keras_sam.preprocessing.preprocessor import (
    SAM2ImageSegmenterPreprocessor,
    SAMImageSegmenterPreprocessor,
)

__all__ = [
    "SAM2ImageSegmenterPreprocessor",
    "SAMImageConverter",
    "SAMImageSegmenterPreprocessor",
    "restore_masks",
]
