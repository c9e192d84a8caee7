"""How the running Keras backend computes, compiles and stores things: `backends.dense(...)`.

`generic` has every function, in the textbook form, by `keras.ops`. A backend's own module has
those that it does differently, with the same arguments and, up to rounding, the same numbers.
They differ in the library that computes, and in the memory that is touched.
"""

# ruff: noqa: F401 - callers take these from here

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
    attend_with_bias,
    attention_map,
    compile_program,
    convolve,
    convolve_depthwise,
    decomposed_rel_pos,
    dense,
    dense_add,
    has_device,
    in_strips,
    keeps_weights,
    layer_norm,
    matmul,
    matmul_transposed,
    pads_prompt_sets,
    runs_sequentially,
    softmax_float32,
    split_windows_and_heads,
    step_function,
    to_numpy,
)

# The backend that Keras runs on. Of the modules here, its own is the only one ever imported.
NAME = keras.config.backend()
_name = f"{__name__}.{NAME}"
if importlib.util.find_spec(_name):
    _own = vars(importlib.import_module(_name))
    globals().update({n: _own[n] for n in vars(generic) if n in _own and not n.startswith("_")})
