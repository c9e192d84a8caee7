"""ONNX models: what torch makes of our graphs, in how many bits weights are stored, and files."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from keras_sam.export.graphs import Graph

_LARGEST = 4096  # of an axis of any length; PyTorch wants a bound
_SMALL = 1024  # values, below which a tensor is stored as it is
LARGEST_FILE = 2**31 - 2**24  # bytes of weights; a protobuf cannot have 2 GB


def trace(graph: Graph, opset: int) -> Any:
    """The ONNX model of a graph, on the torch backend.

    Raises a ValueError for an operator set that PyTorch and onnx cannot write it with.
    """
    import torch

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(graph.layers)

        def forward(self, *arrays):
            outputs = graph(*arrays)
            return tuple(outputs[name] for name in graph.outputs)

    # Not 1, which PyTorch would take for a constant.
    lengths = {"prompts": 3, "points": 5}
    examples = tuple(torch.from_numpy(a.example(**lengths)) for a in graph.arguments)
    axes = {name: torch.export.Dim(name, max=_LARGEST) for name in lengths}
    dynamic = tuple(
        {i: axes[n] for i, n in enumerate(a.shape) if isinstance(n, str)} or None
        for a in graph.arguments
    )
    with warnings.catch_warnings(), torch.no_grad(), _quiet("torch.onnx"), _quiet("onnxscript"):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Module().eval(),
            examples,
            dynamo=True,
            opset_version=opset,
            input_names=[a.name for a in graph.arguments],
            output_names=list(graph.outputs),
            dynamic_shapes=(dynamic,),
            verbose=False,
        )
    model = program.model_proto
    written = next(x.version for x in model.opset_import if not x.domain)
    if written != opset:  # PyTorch only logs that it could not
        raise ValueError(
            "`opset` must be an operator set that the installed PyTorch and onnx can write, such "
            f"as the default, 20. Received: opset={opset}."
        )
    for node in model.graph.node:  # where in our code it came from, with paths of this machine
        del node.metadata_props[:]
    del model.metadata_props[:]
    return model


def save(model: Any, path: Path) -> list[str]:
    """Writes a model, checks the file, and returns the names of the files that were written.

    The weights of the largest models, as ViT-H's in float32, lie beside it in `<name>.data`.
    """
    import onnx

    beside = f"{path.name}.data"
    large = sum(len(x.raw_data) for x in model.graph.initializer) > LARGEST_FILE
    onnx.save(model, os.fspath(path), save_as_external_data=large, location=beside)
    onnx.checker.check_model(os.fspath(path))  # by its path, which models of any size have
    return [path.name, beside] if large else [path.name]


@contextlib.contextmanager
def _quiet(name):
    """Without a logger's warnings, such as those on packages that our graphs do not use."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def with_stored_weights(model: Any, precision: str) -> Any:
    """The same model with its large weights stored in fewer bits; it computes in float32.

    float16 keeps 11 bits of each number. int8 keeps 8 bits of each channel's range, for the weights
    of products and convolutions, one channel per output.
    """
    import onnx
    from onnx import helper, numpy_helper

    if precision == "float32":
        return model
    graph = model.graph
    axes = _output_axes(graph)
    nodes, kept = [], []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < _SMALL:
            kept.append(tensor)
            continue
        name = tensor.name
        if precision == "float16":
            kept.append(numpy_helper.from_array(values.astype("float16"), f"{name}_float16"))
            nodes.append(
                helper.make_node("Cast", [f"{name}_float16"], [name], to=onnx.TensorProto.FLOAT)
            )
        elif name in axes:
            axis = axes[name]
            others = tuple(i for i in range(values.ndim) if i != axis)
            scale = np.maximum(np.abs(values).max(others) / 127, 1e-12).astype("float32")
            column = [-1 if i == axis else 1 for i in range(values.ndim)]
            whole = np.clip(np.rint(values / scale.reshape(column)), -127, 127).astype("int8")
            kept.append(numpy_helper.from_array(whole, f"{name}_int8"))
            kept.append(numpy_helper.from_array(scale, f"{name}_scale"))
            nodes.append(
                helper.make_node(
                    "DequantizeLinear", [f"{name}_int8", f"{name}_scale"], [name], axis=axis
                )
            )
        else:
            kept.append(tensor)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    return model


def _output_axes(graph):
    """The axis of the output channels of each weight that a product or a convolution reads."""
    axes = {}
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm", "Conv", "ConvTranspose") or len(node.input) < 2:
            continue
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        axes[node.input[1]] = {
            "MatMul": -1,
            "Gemm": 0 if transposed else 1,
            "Conv": 0,
            "ConvTranspose": 1,
        }[node.op_type]
    ranks = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    return {name: axis % ranks[name] for name, axis in axes.items() if name in ranks}
