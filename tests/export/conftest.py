"""Folders that are exported once for all tests of this folder.

Keras is imported late: its backend is chosen after this file is read.
"""

import copy
from unittest import mock

import pytest


@pytest.fixture(scope="session", autouse=True)
def traced_once():
    """Every graph of a segmenter is traced once: that takes most of an export's time."""
    from keras_sam.export import onnx_graphs

    traced, trace = {}, onnx_graphs.trace

    def trace_once(graph, opset):
        kind = (type(graph), graph.arguments, getattr(graph, "multimask_output", None))
        key = (*kind, *(id(layer) for layer in graph.layers), opset)
        if key not in traced:
            traced[key] = (trace(graph, opset), graph)  # kept, so that no other has its `id`
        return copy.deepcopy(traced[key][0])

    with mock.patch.object(onnx_graphs, "trace", trace_once):
        yield


@pytest.fixture(scope="session")
def folder(segmenter, tmp_path_factory):
    """ONNX files of the shared segmenter whose encoder takes pictures."""
    from keras_sam.export import export_model

    folder = tmp_path_factory.mktemp("export") / "of_pictures"
    export_model(segmenter, folder, image_input=True)
    return folder


@pytest.fixture(scope="session")
def pixels_folder(segmenter, tmp_path_factory):
    """ONNX files of the shared segmenter whose encoder takes pixels in the model frame."""
    from keras_sam.export import export_model

    folder = tmp_path_factory.mktemp("export") / "of_pixels"
    export_model(segmenter, folder)
    return folder
