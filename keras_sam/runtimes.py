"""Exported files in the runtimes that they are for: dicts of numpy arrays in, dicts out.

Nothing here needs Keras or one of its backends.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

_INSTALL = {
    "onnxruntime": 'pip install "keras-sam[onnxruntime]"',
    "openvino": 'pip install "keras-sam[openvino]"',
    "ai_edge_litert": 'pip install "keras-sam[tensorflow,export]"',
}
_MOST_PROGRAMS = 16  # that are kept of an OpenVINO model, one per shape of its inputs


class Runtime(Protocol):
    """A file that is loaded: a function of arrays by name. Threads may share it.

    `inputs` are the shapes of its inputs, in which what is no int is of any length, and `outputs`
    the names of its outputs. With `fixed_shapes` every new shape of an input takes a moment once.
    A call may name inputs that are `zeros`, which costs less where the runtime can make use of it.
    """

    fixed_shapes: bool
    inputs: dict[str, Sequence[Any]]
    outputs: list[str]

    def __call__(
        self, inputs: dict[str, np.ndarray], zeros: Sequence[str] = ()
    ) -> dict[str, np.ndarray]: ...


class OnnxRuntime:
    """An ONNX file in ONNX Runtime.

    Args:
        path: the file.
        providers: optional sequence of ONNX Runtime's names of execution providers, such as
            `"CUDAExecutionProvider"`, or of pairs of a name and a dict of options. Defaults to the
            processor.
        threads: optional int. Threads of an operation; by default the runtime's own choice.

    Raises:
        ImportError: if onnxruntime is not installed.
        ValueError: if the file is damaged, or needs operators that this version lacks.
    """

    fixed_shapes = False

    def __init__(
        self, path: str | os.PathLike, providers: Sequence[Any] | None = None, threads: int = 0
    ):
        onnxruntime = _import("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors alone
        options.intra_op_num_threads = threads
        available = onnxruntime.get_available_providers()
        providers = ["CPUExecutionProvider"] if providers is None else list(providers)
        names = [provider if isinstance(provider, str) else provider[0] for provider in providers]
        if missing := set(names) - set(available):
            raise ValueError(
                f"`providers` must be any of {available}, which this ONNX Runtime has. Received "
                f"also: {sorted(missing)}."
            )
        try:
            self._session = onnxruntime.InferenceSession(os.fspath(path), options, providers)
        except Exception as error:  # onnxruntime's own classes have no common base
            raise _cannot_load(path, f"ONNX Runtime {onnxruntime.__version__}", error) from error
        if lost := [name for name in providers if name not in self._session.get_providers()]:
            raise ValueError(
                f"ONNX Runtime could not start {lost}: the libraries that it needs are missing, or "
                "there is no such device."
            )
        self.inputs = {x.name: x.shape for x in self._session.get_inputs()}
        self.outputs = [x.name for x in self._session.get_outputs()]
        self._takes_floats = {
            x.name for x in self._session.get_inputs() if x.type == "tensor(float)"
        }

    def __call__(
        self, inputs: dict[str, np.ndarray], zeros: Sequence[str] = ()
    ) -> dict[str, np.ndarray]:
        given = {
            name: np.asarray(inputs[name], "float32" if name in self._takes_floats else None)
            for name in self.inputs
        }
        arrays = self._session.run(self.outputs, given)
        return dict(zip(self.outputs, arrays, strict=True))


class OpenVino:
    """OpenVINO's IR, or an ONNX file, in OpenVINO on the processor.

    Args:
        path: the `.xml` or `.onnx` file.
        precision: optional str, `"f32"` or `"bf16"`. What is computed in; by default the fastest
            that the processor has.
        threads: as in `OnnxRuntime`.
        fixed_shapes: bool. Whether a program is compiled for every shape of the inputs, which takes
            a moment once for each, and is faster from then on.

    Raises:
        ImportError: if openvino is not installed.
        ValueError: if the file is damaged.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        precision: str | None = "f32",
        threads: int = 0,
        fixed_shapes: bool = False,
    ):
        self._openvino = _import("openvino")
        self._settings: dict[str, Any] = {}
        if precision is not None:
            self._settings["INFERENCE_PRECISION_HINT"] = precision
        if threads:
            self._settings["INFERENCE_NUM_THREADS"] = threads
        self.fixed_shapes = fixed_shapes
        self._requests: OrderedDict[Any, Any] = OrderedDict()  # those used last are at the end
        self._core = self._openvino.Core()
        try:
            self._model = self._core.read_model(os.fspath(path))
            if not fixed_shapes:
                self._requests[None] = self._compile(self._model)
        except Exception as error:
            version = self._openvino.__version__
            raise _cannot_load(path, f"OpenVINO {version}", error) from error
        # A tensor may have several names, where a step between two of them did nothing.
        self._inputs = [sorted(x.get_names()) for x in self._model.inputs]
        self._outputs = [sorted(x.get_names()) for x in self._model.outputs]
        self.inputs = {
            name: [None if n.is_dynamic else n.get_length() for n in x.get_partial_shape()]
            for names, x in zip(self._inputs, self._model.inputs, strict=True)
            for name in names
        }
        self.outputs = [name for names in self._outputs for name in names]
        self._lock = threading.Lock()  # a request is for one thread

    def __call__(
        self, inputs: dict[str, np.ndarray], zeros: Sequence[str] = ()
    ) -> dict[str, np.ndarray]:
        given = [next((n, inputs[n]) for n in names if n in inputs) for names in self._inputs]
        with self._lock:
            request, left_out = self._request(given, zeros)
            arrays = [array for name, array in given if name not in left_out]
            request.infer(arrays, share_inputs=True)
            # Copies: the next answer is written to the same memory.
            arrays = [np.array(tensor.data) for tensor in request.output_tensors]
        pairs = zip(self._outputs, arrays, strict=True)
        return {name: array for names, array in pairs for name in names}

    def _request(self, given, zeros):
        """The request for these inputs, and those that it has no need of."""
        if not self.fixed_shapes:
            return self._requests[None], ()
        key = (tuple(zeros), *(array.shape for _, array in given))
        if key not in self._requests:
            self._requests[key] = self._compile(self._specialised(given, zeros))
            if len(self._requests) > _MOST_PROGRAMS:
                self._requests.popitem(last=False)
        self._requests.move_to_end(key)
        return self._requests[key], zeros

    def _specialised(self, given, zeros):
        """The model for arrays of these shapes, in which inputs that are zeros are constants."""
        model = self._model.clone()
        pairs = list(zip(model.inputs, given, strict=True))
        model.reshape({x: array.shape for x, (_, array) in pairs})
        for x, (name, array) in pairs:
            if name in zeros:
                constant = self._openvino.op.Constant(array)
                for target in x.get_target_inputs():
                    target.replace_source_output(constant.output(0))
                model.remove_parameter(x.get_node())
        return model

    def _compile(self, model):
        return self._core.compile_model(model, "CPU", self._settings).create_infer_request()


class LiteRT:
    """A LiteRT file in LiteRT's interpreter on the processor.

    Args:
        path: the `.tflite` file.
        threads: as in `OnnxRuntime`.

    Raises:
        ImportError: if ai-edge-litert is not installed.
        ValueError: if the file is damaged, or needs operators that this version lacks.
    """

    fixed_shapes = False

    def __init__(self, path: str | os.PathLike, threads: int = 0):
        interpreter = _import("ai_edge_litert.interpreter")
        try:
            self._interpreter = interpreter.Interpreter(
                model_path=os.fspath(path), num_threads=threads or None
            )
            self._run = self._interpreter.get_signature_runner()
        except (ValueError, RuntimeError) as error:
            raise _cannot_load(path, "LiteRT", error) from error
        details = self._run.get_input_details()
        self.inputs = {name: about["shape_signature"].tolist() for name, about in details.items()}
        self.outputs = list(self._run.get_output_details())
        self._lock = threading.Lock()  # an interpreter is for one thread

    def __call__(
        self, inputs: dict[str, np.ndarray], zeros: Sequence[str] = ()
    ) -> dict[str, np.ndarray]:
        given = {name: np.asarray(inputs[name]) for name in self.inputs}
        with self._lock:
            return self._run(**given)


def _import(name):
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(f"This needs {package.replace('_', '-')}: {_INSTALL[package]}") from error


def _cannot_load(path, runtime, error):
    reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
    return ValueError(
        f"{runtime} cannot load {os.fspath(path)!r}: {reason:.300}. Export the model again, or "
        "install a newer version of the runtime."
    )
