"""Exported models in the place of a segmenter, for processes without Keras."""

from keras_sam.exported.segmenter import ExportedSegmenter

__all__ = ["ExportedSegmenter"]
