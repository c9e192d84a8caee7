"""Gradients of a function of arrays, on whatever backend the tests run."""

import keras


def gradients_of(function, arrays):
    """Of `function(tensors)`, a scalar, by each of a list of arrays; as numpy arrays."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        found = jax.grad(function)([keras.ops.convert_to_tensor(x) for x in arrays])
    elif backend == "torch":
        import torch

        tensors = [torch.tensor(x, requires_grad=True) for x in arrays]
        found = torch.autograd.grad(function(tensors), tensors)
    else:
        import tensorflow as tf

        tensors = [tf.constant(x) for x in arrays]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            result = function(tensors)
        found = tape.gradient(result, tensors)
    return [keras.ops.convert_to_numpy(x) for x in found]
