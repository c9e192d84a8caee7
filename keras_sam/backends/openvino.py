"""What OpenVINO computes differently: fused attention, and programs with their precision."""

import operator
import os

import keras
import numpy as np
import openvino
from openvino import opset15

from keras_sam.backends import generic, private

PRECISION_VARIABLE = "KERAS_SAM_OPENVINO_PRECISION"
# A folder in which OpenVINO keeps what it compiled, for the next process: as large as the weights.
CACHE_VARIABLE = "KERAS_SAM_OPENVINO_CACHE"
_PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}

PROMPT_CHUNK = 8  # fewer at once are slower
CAN_TRAIN = False
FOLDS_CONSTANTS = True

# The most numbers of bias that attention makes at once, enough for the whole of a global block of
# a 1024 x 1024 image: OpenVINO compiles every part.
_BIAS_AT_ONCE = 12 * 2**24


def has_device(device):
    """Keras runs OpenVINO on the CPU only."""
    return device.startswith("cpu")


def attend(query, key, value, rel_pos_bias, grid, training=None):
    """Attention over a grid by OpenVINO's own kernel, which is faster and compiles faster."""
    return generic.attend_fused(query, key, value, rel_pos_bias, grid, _BIAS_AT_ONCE)


def precision() -> str | None:
    """The format that OpenVINO is asked to compute in, as its hint; None leaves it the choice.

    Its own choice is bfloat16 on processors that have it, else float32.
    """
    wanted = os.environ.get(PRECISION_VARIABLE)
    if not wanted:
        return None
    if wanted not in _PRECISIONS:
        raise ValueError(
            f"The environment variable {PRECISION_VARIABLE} must be one of {sorted(_PRECISIONS)}. "
            f"Received: {wanted!r}. Unset it to leave the choice to OpenVINO."
        )
    return _PRECISIONS[wanted]


def compile_program(model, variables, prompts=()):
    """`model.predict_on_batch` that keeps what was compiled for every shape of the inputs.

    Keras's own keeps the last shape alone, and leaves the batch size open, for which OpenVINO
    can plan less.
    """
    hint = precision()
    core = "keras.src.backend.openvino.core"
    dtypes, tensor = (private.look_up(core, x) for x in ("OPENVINO_DTYPES", "OpenVINOKerasTensor"))
    if dtypes is None or tensor is None:
        return generic.compile_program(model, variables)
    requests, weights = {}, []

    def parameter(array):
        return tensor(opset15.parameter(list(array.shape), dtypes[str(array.dtype)]).output(0))

    def predict(inputs):
        # What is compiled holds the weights as constants: new weights need new programs.
        values = [variable.value for variable in variables]
        if len(values) != len(weights) or any(map(operator.is_not, values, weights)):
            requests.clear()
            weights[:] = values
        arrays = [np.ascontiguousarray(array) for array in keras.tree.flatten(inputs)]
        shapes = tuple((array.shape, array.dtype.str) for array in arrays)
        if shapes not in requests:
            requests[shapes] = _compile(model, keras.tree.map_structure(parameter, inputs), hint)
        request, structure = requests[shapes]
        request.infer(arrays, share_inputs=True)
        # Copies: the request writes its next answer to the same memory.
        outputs = [np.array(output.data) for output in request.output_tensors]
        return keras.tree.pack_sequence_as(structure, outputs)

    return predict


def _compile(model, parameters, hint):
    """An inference request for inputs of these shapes, and the structure of its outputs."""
    outputs = model(parameters, training=False)
    graph = openvino.Model(
        results=[opset15.result(output.output) for output in keras.tree.flatten(outputs)],
        parameters=[tensor.output.get_node() for tensor in keras.tree.flatten(parameters)],
    )
    config = {"PERFORMANCE_HINT": "LATENCY"} | ({"INFERENCE_PRECISION_HINT": hint} if hint else {})
    if folder := os.environ.get(CACHE_VARIABLE):
        config["CACHE_DIR"] = folder
    request = openvino.compile_model(graph, "CPU", config).create_infer_request()
    return request, keras.tree.map_structure(lambda _: 0, outputs)
