"""Gradient checkpointing that draws the same random numbers twice."""

from collections.abc import Callable

import keras
from keras import ops


def rematerialized(layer: keras.layers.Layer, function: Callable) -> Callable:
    """A function of a built layer whose insides are computed again for gradients, not kept.

    `keras.remat` alone would draw other random numbers in the second run, because the layer's
    seed generators have moved on by then. So their state goes in as an argument and comes out as
    a result, and the function has no side effects.
    """
    seeds = [v for v in layer.non_trainable_variables if v.path.endswith("seed_generator_state")]

    def pure(states, *inputs):
        mapping = [(v, v.value) for v in layer.variables]
        mapping += list(zip(seeds, states, strict=True))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            outputs = function(*inputs)
        return outputs, [scope.get_current_value(v) for v in seeds]

    def run(*inputs):
        # Copies: PyTorch and TensorFlow change a variable's value in place.
        outputs, states = keras.remat(pure)([ops.copy(v) for v in seeds], *inputs)
        for variable, state in zip(seeds, states, strict=True):
            variable.assign(state)
        return outputs

    return run
