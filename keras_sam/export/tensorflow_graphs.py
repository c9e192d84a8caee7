"""SavedModels, on the TensorFlow backend."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import keras
import numpy as np

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
    import tensorflow as tf

    path = folder / SAVED_MODEL
    made = _save(segmenter, path)
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


def _save(segmenter, path):
    import tensorflow as tf

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


def _of_signature(signature):
    import tensorflow as tf

    def run(inputs):
        names = signature.structured_input_signature[1]
        arrays = {name: tf.constant(np.asarray(inputs[name])) for name in names}
        return {name: x.numpy() for name, x in signature(**arrays).items()}

    return run
