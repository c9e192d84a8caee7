"""Models as files for other runtimes: ONNX Runtime, OpenVINO, TensorFlow.

Example:

```python
manifest = keras_sam.export.export_model(tiny_segmenter, "exported", format="onnx")
sorted(manifest["files"])  # ["image_encoder.onnx", "mask_decoder.onnx", "prompt_decoder.onnx"]
```
"""

from keras_sam.export.writing import FORMATS, export_model

__all__ = ["FORMATS", "export_model"]
