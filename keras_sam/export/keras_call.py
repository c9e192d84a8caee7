"""`keras.Model.export` of our models: the same call on every backend."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_sam import backends, runtimes
from keras_sam.encode_decode import named_features
from keras_sam.export import checking, processes, writing
from keras_sam.export.graphs import Argument, Graph
from keras_sam.files import whole_file
from keras_sam.layers.arguments import Tensor
from keras_sam.models.backbone import Backbone
from keras_sam.models.image_segmenter import ImageSegmenter

# Keras's names of the formats, and ours.
_FORMATS = {
    "tf_saved_model": "saved_model",
    "onnx": "onnx",
    "openvino": "openvino",
    "litert": "litert",
}
_ENDINGS = {"openvino": ".xml", "litert": ".tflite"}


class KerasEncoderGraph(Graph):
    """An image encoder as Keras calls it: images `(B, H, W, channels)`, pixel values 0..255."""

    def __init__(self, encoder: Any, batch_size: int):
        self.encoder, self.layers = encoder, (encoder,)
        shape = tuple(encoder.input.shape[1:])
        self.arguments = (Argument("images", "float32", (batch_size, *shape)),)
        self.outputs = tuple(named_features(encoder.output))

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        features = named_features(self.encoder(images, training=False))
        return {name: ops.cast(x, "float32") for name, x in features.items()}


def export(
    model: Any,
    filepath: str | os.PathLike,
    format: str,
    verbose: bool | None,
    input_signature: Any,
    **options: Any,
) -> None:
    """What `PresetModel.export` says; for `"torch"` and unknown formats, Keras's own."""
    if format not in _FORMATS:
        keras.Model.export(model, filepath, format, verbose, input_signature, **options)
        return
    if "opset_version" in options:  # Keras's name of it
        options["opset"] = options.pop("opset_version")
    if isinstance(model, ImageSegmenter):
        _export_segmenter(model, filepath, format, input_signature, options)
    elif isinstance(model, Backbone) and not hasattr(model, "mask_decoder"):
        batch_size = _batch_size(model, input_signature)
        export_encoder(model, os.fspath(filepath), format, batch_size, options)
    else:
        raise ValueError(
            f"A {type(model).__name__} has no masks to give. Export the segmenter, or the image "
            "encoder alone: `backbone.image_encoder.export(...)`."
        )
    if verbose is None or verbose:
        sys.stdout.write(f"Saved artifact at '{os.fspath(filepath)}'.\n")


def _export_segmenter(segmenter, filepath, format, input_signature, options):
    if input_signature is not None:
        raise ValueError(
            "`input_signature` is for the image encoder: a segmenter's files take one image, and "
            "any number of prompts. Leave it out."
        )
    if Path(filepath).suffix in (".onnx", ".xml", ".tflite"):
        raise ValueError(
            "`filepath` must be a folder, in which encoder and decoder become files of their own. "
            f"Received: filepath={os.fspath(filepath)!r}. The encoder alone is written by "
            "`segmenter.image_encoder.export(...)`."
        )
    writing.export_model(segmenter, filepath, _FORMATS[format], **options)


def export_encoder(
    model: Any, filepath: str, format: str, batch_size: int | None, options: dict[str, Any]
) -> None:
    """Writes an image encoder as one file, by the backend that can.

    Args:
        model: a `Backbone`, or what its `from_preset` takes.
        filepath: str, the file; for `"tf_saved_model"`, the folder.
        format: str, a format of Keras's `export`.
        batch_size: optional int. None is any number of images in a SavedModel, 1 elsewhere.
        options: dict. `opset` for ONNX and OpenVINO, else Keras's options of the format.
    """
    ending = _ENDINGS.get(format, "")
    if not filepath.endswith(ending):
        raise ValueError(f"`filepath` must end in {ending!r}. Received: filepath={filepath!r}.")
    needed = writing.FORMATS[_FORMATS[format]]
    if backends.NAME not in needed:
        task = {"filepath": os.path.abspath(filepath), "format": format}
        task.update(batch_size=batch_size, options=options)
        processes.run_with(needed, format, model, export_encoder, task)
        return
    encoder = Backbone.from_preset(model) if isinstance(model, str) else model
    if format in ("onnx", "openvino"):
        _write_encoder(encoder, Path(filepath), format, batch_size or 1, **options)
        return
    if format == "litert":
        batch_size = batch_size or 1
    shape = (batch_size, *encoder.input.shape[1:])
    signature = [keras.InputSpec(shape=shape, dtype="float32", name="images")]
    keras.Model.export(encoder, filepath, format, False, signature, **options)


def _write_encoder(encoder, path, format, batch_size, opset=20):
    from keras_sam.export import onnx_graphs

    writing.check_opset(opset)
    writing.check_float32(encoder)
    writing.import_onnx()
    graph = KerasEncoderGraph(encoder, batch_size)
    model = onnx_graphs.trace(graph, opset)
    # On Windows, files that a runtime has mapped cannot be removed yet.
    with tempfile.TemporaryDirectory(prefix="keras_sam_", ignore_cleanup_errors=True) as place:
        made = Path(place) / path.name
        if format == "onnx":
            names = onnx_graphs.save(model, made)
            run = runtimes.OnnxRuntime(made)
        else:
            writing.save_openvino(model, made)
            names = [made.name, f"{made.stem}.bin"]
            run = runtimes.OpenVino(made)
        _check(run, graph)
        with contextlib.ExitStack() as files:  # both are written before one of them appears
            for name in names:
                file = files.enter_context(whole_file(path.with_name(name)))
                file.write((made.parent / name).read_bytes())
                file.flush()


def _check(run, graph):
    (images,) = graph.arguments
    batch_size, height, width, channels = images.shape
    image = checking.picture((height, width), channels).astype("float32")
    frames = np.repeat(image[None], batch_size, axis=0)
    expected = graph(ops.convert_to_tensor(frames))
    expected = {name: ops.convert_to_numpy(x) for name, x in expected.items()}
    checking.compare(run({"images": frames}), expected, checking.BOUNDS["float32"])


def _batch_size(encoder, input_signature):
    """The number of images in a signature of Keras's; None if there is none, or it is open."""
    if input_signature is None:
        return None
    shape = tuple(encoder.input.shape[1:])
    specs = keras.tree.flatten(input_signature)
    found = [tuple(spec.shape) for spec in specs]
    if len(found) != 1 or len(found[0]) != 4 or found[0][1:] != shape:
        raise ValueError(
            f"`input_signature` must be one spec of shape (B, {', '.join(map(str, shape))}), the "
            f"encoder's images. Received shapes: {found}."
        )
    return found[0][0]
