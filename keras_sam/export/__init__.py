"""Models as files for other runtimes: ONNX Runtime, OpenVINO, TensorFlow, LiteRT."""

from keras_sam.export.writing import FORMATS, export_model

__all__ = ["FORMATS", "export_model"]
