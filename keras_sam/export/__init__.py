"""Models as files for other runtimes: ONNX Runtime, OpenVINO, TensorFlow, LiteRT."""

from keras_sam.namespaces import lazy_names

_HOMES = dict.fromkeys(("FORMATS", "export_model"), "keras_sam.export.writing")

__all__, __getattr__, __dir__ = lazy_names(globals(), _HOMES)
