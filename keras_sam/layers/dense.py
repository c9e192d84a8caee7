"""Keras's dense layer and layer norm, computed by `backends`."""

import keras
from keras import ops

from keras_sam import backends


@keras.saving.register_keras_serializable(package="keras_sam")
class Dense(keras.layers.Dense):
    """`keras.layers.Dense` by `backends.dense`: no pass over the output for bias and activation.

    Arguments, variables, LoRA and quantization are Keras's.
    """

    def call(self, inputs, training=None):
        if self.bias is None:
            return super().call(inputs, training=training)
        inputs = ops.cast(inputs, self.compute_dtype)  # Keras leaves integers as they are
        activation = None if self.activation is keras.activations.linear else self.activation
        return backends.dense(inputs, self.kernel, self.bias, activation, training)

    def quantize(self, mode=None, type_check=True, config=None):
        # Keras would pass over a class that is not its own.
        super().quantize(mode, type_check=False, config=config)


@keras.saving.register_keras_serializable(package="keras_sam")
class LayerNormalization(keras.layers.LayerNormalization):
    """`keras.layers.LayerNormalization` by `backends.layer_norm`.

    Variables are Keras's; always of the last axis, with scale and centre.
    """

    def call(self, inputs, training=None):
        out = backends.layer_norm(inputs, self.gamma, self.beta, self.epsilon, training)
        return ops.cast(out, self.compute_dtype)
