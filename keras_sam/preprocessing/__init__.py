"""Preprocessing: from images, prompts and targets as people have them to the model frame."""

from keras_sam.preprocessing.converter import SAMImageConverter
from keras_sam.preprocessing.preprocessor import SAMImageSegmenterPreprocessor, restore_masks

__all__ = ["SAMImageConverter", "SAMImageSegmenterPreprocessor", "restore_masks"]
