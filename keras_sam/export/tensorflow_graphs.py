"""SavedModel and LiteRT files, on the TensorFlow backend."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sam import runtimes
from keras_sam.export import checking
from keras_sam.export.graphs import Graph, ImageEncoderGraph, PromptDecoderGraph

SAVED_MODEL = "saved_model"


class SegmentGraph(Graph):
    """Encoder and decoder in one: pixels and prompts to masks and their scores."""

    def __init__(self, segmenter: Any):
        self.encoder, self.decoder = ImageEncoderGraph(segmenter), PromptDecoderGraph(segmenter)
        self.layers = (*self.encoder.layers, *self.decoder.layers)
        prompts = self.decoder.arguments[len(self.decoder.features) :]
        self.arguments = (*self.encoder.arguments, *prompts)
        self.outputs = self.decoder.outputs

    def __call__(self, pixels: Any, *prompts: Any) -> dict[str, Any]:
        return self.decoder(*self.encoder(pixels).values(), *prompts)


def write_saved_model(segmenter: Any, folder: Path) -> dict[str, dict]:
    """Writes a SavedModel with the signatures `encode`, `decode` and `segment`, and checks them."""
    path = folder / SAVED_MODEL
    made = _save(segmenter, path)
    loaded = tf.saved_model.load(os.fspath(path))
    differences = {}
    for name, check in _checks(segmenter, made, "float32").items():
        differences[name] = check(_of_signature(loaded.signatures[name]))
    about = {
        "inputs": {name: [a.name for a in graph.arguments] for name, graph in made.items()},
        "outputs": {name: list(graph.outputs) for name, graph in made.items()},
        "differences": differences,
    }
    return {SAVED_MODEL: about}


def write_litert(segmenter: Any, folder: Path, precision: str) -> dict[str, dict]:
    """Writes image encoder and prompts' decoder as LiteRT files, and checks them."""
    files = {}
    with tempfile.TemporaryDirectory(prefix="keras_sam_") as place:
        made = _save(segmenter, os.path.join(place, SAVED_MODEL))
        checks = _checks(segmenter, made, precision)
        for signature, name in (("encode", "image_encoder"), ("decode", "prompt_decoder")):
            converter = tf.lite.TFLiteConverter.from_saved_model(
                os.path.join(place, SAVED_MODEL), signature_keys=[signature]
            )
            if precision == "float16":
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
                converter.target_spec.supported_types = [tf.float16]
            path = folder / f"{name}.tflite"
            path.write_bytes(converter.convert())
            run = runtimes.LiteRT(path)
            files[path.name] = {
                "inputs": list(run.inputs),
                "outputs": run.outputs,
                "differences": checks[signature](run),
            }
    return files


def _save(segmenter, path):
    graphs = {
        "encode": ImageEncoderGraph(segmenter),
        "decode": PromptDecoderGraph(segmenter),
        "segment": SegmentGraph(segmenter),
    }
    archive = keras.export.ExportArchive()
    for layer in dict.fromkeys(graphs["segment"].layers):
        archive.track(layer)
    for name, graph in graphs.items():
        specs = [
            tf.TensorSpec([None if isinstance(n, str) else n for n in a.shape], a.dtype, a.name)
            for a in graph.arguments
        ]
        archive.add_endpoint(name, graph.__call__, input_signature=specs)
    archive.write_out(os.fspath(path), verbose=False)
    return graphs


def _checks(segmenter, graphs, precision):
    """For each signature a function that checks it, see `checking`."""
    segment = graphs["segment"]
    return {
        "encode": lambda run: checking.check_encoder(run, segmenter, False, precision),
        "decode": lambda run: checking.check_decoder(run, graphs["decode"], segmenter, precision),
        "segment": lambda run: checking.check_decoder(run, segment, segmenter, precision),
    }


def _of_signature(signature):
    def run(inputs):
        names = signature.structured_input_signature[1]
        arrays = {name: tf.constant(np.asarray(inputs[name])) for name in names}
        return {name: x.numpy() for name, x in signature(**arrays).items()}

    return run
