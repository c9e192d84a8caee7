"""What JAX computes differently: products by XLA, and on a CPU one after the other."""

import contextlib
import math
import weakref

import jax
import keras
import numpy as np
from keras import ops

from keras_sam.backends import generic, private
from keras_sam.backends.generic import ROWS_FROM_TOKENS, attend_by_rows, attention_map

# Rows of queries of one head that attend together where heads run one after the other: few enough
# for their logits to stay in the caches.
_ROWS_PER_STEP = 8


def dense(x, kernel, bias, activation=None, training=None):
    """`activation(x @ kernel + bias)`, by our `activate`."""
    return activate(generic.dense(x, kernel, bias), activation, training)


def activate(x, activation, training=None):
    """`activation(x)`; GELU by `erf`, which is faster than Keras's `erfc`."""
    if activation is keras.activations.gelu and x.dtype == "float32":  # coarser in other dtypes
        return x * (0.5 + 0.5 * ops.erf(x * math.sqrt(0.5)))
    return generic.activate(x, activation)


def dense_add(x, kernel, bias, other, activation=None, training=None):
    """`generic.dense_add` of the functions above."""
    x = dense(x, kernel, bias, None, training) + other
    return x if activation is None else activate(x, activation, training)


def matmul_transposed(x, y):
    """`x @ y.T` of the last two axes; XLA would first transpose `y` in memory."""
    return ops.einsum("...ac,...bc->...ab", x, y)


def convolve_depthwise(
    x, kernel, bias=None, strides=1, activation=None, training=None, edges=(True, True)
):
    """Each channel by itself; on a CPU as a sum of products, one for each place of the kernel.

    XLA's own convolution goes through the channels one by one there.
    """
    if jax.default_backend() != "cpu":
        return generic.convolve_depthwise(x, kernel, bias, strides, activation, training, edges)
    k, kernel = kernel.shape[0], ops.cast(kernel, x.dtype)
    # The barrier keeps XLA from computing the map once for each place.
    x = jax.lax.optimization_barrier(generic.pad_map(x, k // 2, edges))
    h, w = ((n - k) // strides + 1 for n in x.shape[1:3])
    out = 0.0
    for i, j in np.ndindex(k, k):
        places = x[:, i : i + strides * h : strides, j : j + strides * w : strides]
        out = out + places * kernel[i, j, :, 0]
    return activate(generic.add_bias(out, bias), activation, training)


def attend_with_bias(query, key, value, bias, training=None):
    """Attention with a bias that windows share: on a CPU one window after the other."""
    if training or not runs_sequentially():
        return generic.attend_with_bias(query, key, value, bias)

    def one_window(x):
        query, key, value = (ops.expand_dims(part, 0) for part in x)
        return generic.attend_with_bias(query, key, value, bias)[0]

    return ops.map(one_window, (query, key, value))


def attend(query, key, value, rel_pos_bias, grid, training=None):
    """Attention over a grid: on a CPU one window, or some rows of one head, after the other.

    On a CPU, XLA multiplies two matrices faster than a batch of small ones. Not in training, whose
    gradients would keep everything anyway.
    """
    if training or not runs_sequentially():
        return generic.attend(query, key, value, rel_pos_bias, grid)
    heads, tokens, channels = query.shape[1:]
    inputs = (query, key, value, *(rel_pos_bias or ()))

    def one_window(x):
        query, key, value, *bias = (ops.expand_dims(part, 0) for part in x)
        return ops.matmul(attention_map(query, key, bias or None, grid), value)[0]

    def one_head(x):
        query, key, value, *bias = (ops.expand_dims(part, (0, 1)) for part in x)
        rows = max(n for n in range(1, _ROWS_PER_STEP + 1) if grid[0] % n == 0)
        return attend_by_rows(query, key, value, bias or None, grid, rows)[0, 0]

    if tokens < ROWS_FROM_TOKENS:
        return ops.map(one_window, inputs)
    inputs = tuple(ops.reshape(x, (-1, *x.shape[2:])) for x in inputs)
    return ops.reshape(ops.map(one_head, inputs), (-1, heads, tokens, channels))


def runs_sequentially():
    """On a CPU, unless it is several devices: they share a batch, and would each run every step."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def compile_program(model, variables, prompts=()):
    """`model.predict_on_batch` that only reads the model's variables.

    Keras's own donates them to the computation and puts them back afterwards: in between
    another thread finds deleted arrays, and an interrupt or an exhausted memory leaves them
    deleted. May go when Keras predicts without donating its state.
    """

    @jax.jit
    def run(values, inputs):
        state = zip(variables, values, strict=True)
        with keras.StatelessScope(state_mapping=list(state)):
            if prompts and runs_sequentially():
                return _call_by_prompt(model, inputs, prompts)
            return model(inputs, training=False)

    def predict(inputs):
        return run([variable.value for variable in variables], inputs)

    return predict


def step_function(model, step, function):
    """Keras's function of a batch that only reads the state it is given, and notes every new one.

    Keras's own donates the state to the computation: what interrupts it leaves deleted arrays. The
    price is memory for a second copy of what is trained, during a step.
    """
    if model.run_eagerly or not model.jit_compile:
        return function
    compiled = None

    def run(state, iterator):
        nonlocal compiled
        logs = None
        for _ in range(model.steps_per_execution):
            if logs is None:
                data = next(iterator)
            elif (data := next(iterator, None)) is None:
                break
            if compiled is None:
                shardings = None
                if keras.distribution.distribution() is not None:
                    shardings = (None, jax.tree.map(lambda x: x.sharding, state))
                compiled = jax.jit(step, out_shardings=shardings)
            is_noted = model in _latest and len(state) == 4  # of training, with the optimizer's
            if is_noted:
                _latest[model] = state
            logs, state = compiled(state, data)
            if is_noted:
                _latest[model] = state
        return logs, state

    return run


# The state after the last finished step, of the models that are in `keeps_weights`.
_latest = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def keeps_weights(model):
    """Within it, what interrupts training leaves the variables of the last finished step.

    Keras takes the values out of the variables before the first step of an epoch, and puts them
    back at the end of the epoch or where a callback asks for them.
    """
    if model.optimizer is not None and not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    outer = _latest.get(model)  # `evaluate` within `fit`
    groups = _variables_of_state(model)
    _latest[model] = [[variable.value for variable in group] for group in groups]
    try:
        yield
    except BaseException:
        for group, values in zip(_variables_of_state(model), _latest[model]):
            for variable, value in zip(group, values):
                if not private.has_value(variable):
                    variable.assign(value)
        raise
    finally:
        _latest.pop(model)
        if outer is not None:
            _latest[model] = outer


def _variables_of_state(model):
    optimizer = model.optimizer
    return [
        model.trainable_variables,
        model.non_trainable_variables,
        optimizer.variables if optimizer is not None else [],
        model.metrics_variables,
    ]


def _call_by_prompt(model, inputs, prompts):
    """`model(inputs)`, one prompt set after the other, so that each stays in the caches."""

    def one(prompt):
        prompt = {name: x[:, None] for name, x in prompt.items()}  # (B, 1, ...)
        outputs = model({**inputs, **prompt}, training=False)
        return {name: x[:, 0] for name, x in outputs.items()}

    by_prompt = {name: x.swapaxes(0, 1) for name, x in inputs.items() if name in prompts}
    outputs = jax.lax.map(one, by_prompt)
    return {name: x.swapaxes(0, 1) for name, x in outputs.items()}
