"""Models compiled by OpenVINO, once for each shape of their inputs, and kept."""

import os

import keras
import numpy as np

PRECISION_VARIABLE = "KERAS_SAM_OPENVINO_PRECISION"
# A folder in which OpenVINO keeps what it compiled, for the next process: as large as the weights.
CACHE_VARIABLE = "KERAS_SAM_OPENVINO_CACHE"
_PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def precision() -> str | None:
    """The format that OpenVINO is asked to compute in, as its hint; None leaves it the choice.

    `KERAS_SAM_OPENVINO_PRECISION` in the environment says which: `float32`, `bfloat16` or
    `float16`. OpenVINO's own choice is bfloat16 on processors that have it, else float32.

    Raises:
        ValueError: if the variable holds something else.
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


def compile_for_openvino(model):
    """`predict_on_batch` that keeps what was compiled for every shape of the inputs.

    Keras's own keeps the last shape alone, and leaves the batch size open, for which OpenVINO
    can plan less.

    Args:
        model: a `keras.Model`.

    Returns:
        A function from a numpy array, or a dict of them, to the model's outputs as numpy.
    """
    requests = {}
    hint = precision()

    def predict(inputs):
        arrays = [np.ascontiguousarray(array) for array in keras.tree.flatten(inputs)]
        key = tuple((array.shape, array.dtype.str) for array in arrays)
        if key not in requests:
            requests[key] = _compiled(model, inputs, hint)
        request, structure = requests[key]
        request.infer(arrays, share_inputs=True)
        # Copies: the request writes its next answer to the same memory.
        outputs = [np.array(output.data) for output in request.output_tensors]
        return keras.tree.pack_sequence_as(structure, outputs)

    return predict


def _compiled(model, inputs, hint):
    """An inference request for inputs of these shapes, and the structure of its outputs."""
    import openvino
    from keras.src.backend.openvino.core import OPENVINO_DTYPES, OpenVINOKerasTensor
    from openvino import opset15

    def parameter(array):
        node = opset15.parameter(list(array.shape), OPENVINO_DTYPES[str(array.dtype)])
        return OpenVINOKerasTensor(node.output(0))

    given = keras.tree.map_structure(parameter, inputs)
    outputs = model(given, training=False)
    graph = openvino.Model(
        results=[opset15.result(output.output) for output in keras.tree.flatten(outputs)],
        parameters=[tensor.output.get_node() for tensor in keras.tree.flatten(given)],
    )
    config = {"PERFORMANCE_HINT": "LATENCY"} | ({"INFERENCE_PRECISION_HINT": hint} if hint else {})
    if folder := os.environ.get(CACHE_VARIABLE):
        config["CACHE_DIR"] = folder
    request = openvino.compile_model(graph, "CPU", config).create_infer_request()
    return request, keras.tree.map_structure(lambda _: 0, outputs)
