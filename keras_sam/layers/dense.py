"""Keras's dense layer, with the bias added as it multiplies."""

import keras

from keras_sam.layers.kernels import linear


@keras.saving.register_keras_serializable(package="keras_sam")
class Dense(keras.layers.Dense):
    """`keras.layers.Dense` by `kernels.linear`: without a pass over the output for the bias.

    Arguments, variables, LoRA and quantization are Keras's.
    """

    def call(self, inputs, training=None):
        # On TensorFlow the decoder was no faster with it, and mixed float16 came out farther from
        # float32 (tests/parity/test_half_precision.py).
        if keras.backend.backend() != "torch" or self.bias is None:
            return super().call(inputs, training=training)
        out = linear(inputs, self.kernel, self.bias)
        return out if self.activation is None else self.activation(out)

    def quantize(self, mode=None, type_check=True, config=None):
        # Keras would pass over a class that is not its own.
        super().quantize(mode, type_check=False, config=config)
