"""How the running Keras backend computes, compiles and stores things: `backends.dense(...)`.

`generic` has every function, in the textbook form, by `keras.ops`. A backend's own module has
those that it does differently, with the same arguments and, up to rounding, the same numbers.
They differ in the library that computes, and in the memory that is touched.
"""

import importlib.util

import keras

from keras_sam.backends import generic
from keras_sam.backends.generic import (
    CAN_TRAIN,
    FOLDS_CONSTANTS,
    NEEDS_MASKS,
    PROMPT_CHUNK,
    READS_SIGNATURES,
    activate,
    assign_value,
    attend,
    attention_map,
    compile_program,
    decomposed_rel_pos,
    dense,
    layer_norm,
    matmul,
    matmul_transposed,
    pads_prompt_sets,
    runs_sequentially,
    softmax_float32,
    to_numpy,
)

__all__ = [
    "CAN_TRAIN",
    "FOLDS_CONSTANTS",
    "NEEDS_MASKS",
    "PROMPT_CHUNK",
    "READS_SIGNATURES",
    "activate",
    "assign_value",
    "attend",
    "attention_map",
    "compile_program",
    "decomposed_rel_pos",
    "dense",
    "layer_norm",
    "matmul",
    "matmul_transposed",
    "pads_prompt_sets",
    "runs_sequentially",
    "softmax_float32",
    "to_numpy",
]


def _running():
    """The module of the backend that Keras runs on, the only one that is ever imported."""
    name = f"{__name__}.{keras.config.backend()}"
    return importlib.import_module(name) if importlib.util.find_spec(name) else generic


_own = vars(_running())
globals().update({name: _own[name] for name in __all__ if name in _own})
