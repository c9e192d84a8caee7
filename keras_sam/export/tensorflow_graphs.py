"""SavedModels and LiteRT files, on the TensorFlow backend."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_sam import runtimes
from keras_sam.export import checking
from keras_sam.export.graphs import Graph, ImageEncoderGraph, PromptDecoderGraph

SAVED_MODEL = "saved_model"


class SegmentGraph(Graph):
    """Encoder and decoder in one: pixels and prompts to masks and their scores."""

    def __init__(self, encoder: ImageEncoderGraph, decoder: PromptDecoderGraph):
        self.encoder, self.decoder = encoder, decoder
        self.layers = (*self.encoder.layers, *self.decoder.layers)
        prompts = self.decoder.arguments[len(self.decoder.features) :]
        self.arguments = (*self.encoder.arguments, *prompts)
        self.outputs = self.decoder.outputs

    def __call__(self, pixels: Any, *prompts: Any) -> dict[str, Any]:
        return self.decoder(*self.encoder(pixels).values(), *prompts)


def write_saved_model(segmenter: Any, folder: Path, settings: dict) -> dict[str, dict]:
    """Writes a SavedModel with the signatures `encode`, `decode` and `segment`, and checks them."""
    import tensorflow as tf

    path = folder / SAVED_MODEL
    decoder = PromptDecoderGraph(segmenter, settings["multimask_output"])
    encoder = ImageEncoderGraph(segmenter)
    made = {"encode": encoder, "decode": decoder, "segment": SegmentGraph(encoder, decoder)}
    _save(made, path)
    loaded = tf.saved_model.load(os.fspath(path))
    differences = {}
    for name, graph in made.items():
        run = _of_signature(loaded.signatures[name])
        if name == "encode":
            differences[name] = checking.check_encoder(run, segmenter, False, "float32")
        else:
            differences[name] = checking.check_decoder(run, graph, segmenter, "float32")
    about = {
        "inputs": {name: [a.name for a in graph.arguments] for name, graph in made.items()},
        "outputs": {name: list(graph.outputs) for name, graph in made.items()},
        "differences": differences,
    }
    return {SAVED_MODEL: about}


def write_litert(segmenter: Any, folder: Path, settings: dict) -> dict[str, dict]:
    """Writes encoder and decoder as LiteRT files of LiteRT's own operators, and checks them."""
    precision = settings["precision"]
    encoder = ImageEncoderGraph(segmenter)
    decoder = PromptDecoderGraph(segmenter, settings["multimask_output"])
    parts = {
        "image_encoder": (
            encoder,
            lambda run: checking.check_encoder(run, segmenter, False, precision),
        ),
        "prompt_decoder": (
            decoder,
            lambda run: checking.check_decoder(run, decoder, segmenter, precision),
        ),
    }
    files = {}
    for name, (graph, check) in parts.items():
        path = folder / f"{name}.tflite"
        path.write_bytes(as_litert(graph, precision))
        run = runtimes.LiteRT(path)
        files[path.name] = {
            "inputs": run.inputs, "outputs": run.outputs, "differences": check(run)
        }  # fmt: skip
    return files


def as_litert(graph: Graph, precision: str) -> bytes:
    """A graph as a LiteRT file with one signature, `serve`, on the TensorFlow backend."""
    import tensorflow as tf

    with tempfile.TemporaryDirectory(prefix="keras_sam_") as place:
        _save({"serve": graph}, place)
        converter = tf.lite.TFLiteConverter.from_saved_model(place, signature_keys=["serve"])
        if precision == "float16":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        try:
            return converter.convert()
        except Exception as error:  # TensorFlow's class is private, and its text a program
            missing = re.search(r"^TF Select ops: (.*)$", str(error), re.MULTILINE)
            reason = f"LiteRT lacks {missing[1]}" if missing else str(error).splitlines()[0][:200]
            raise RuntimeError(
                f"TensorFlow cannot convert the {type(graph.layers[0]).__name__} to LiteRT: "
                f"{reason}. Export it as ONNX instead."
            ) from error


def _save(graphs, path):
    """Writes a SavedModel with a signature per graph."""
    import tensorflow as tf

    archive = keras.export.ExportArchive()
    for layer in dict.fromkeys(layer for graph in graphs.values() for layer in graph.layers):
        archive.track(layer)
    for name, graph in graphs.items():
        specs = [
            tf.TensorSpec([None if isinstance(n, str) else n for n in a.shape], a.dtype, a.name)
            for a in graph.arguments
        ]
        archive.add_endpoint(name, graph.__call__, input_signature=specs)
    archive.write_out(os.fspath(path), verbose=False)


def _of_signature(signature):
    import tensorflow as tf

    def run(inputs):
        names = signature.structured_input_signature[1]
        arrays = {name: tf.constant(np.asarray(inputs[name])) for name in names}
        return {name: x.numpy() for name, x in signature(**arrays).items()}

    return run
