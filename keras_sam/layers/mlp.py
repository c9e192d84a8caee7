"""The multi-layer perceptron that every part of SAM uses."""

from typing import Any

import keras

from keras_sam.layers.arguments import Activation, KeptArguments, Shape, Tensor
from keras_sam.layers.dense import Dense
from keras_sam.layers.initialization import build_part


@keras.saving.register_keras_serializable(package="keras_sam")
class MLP(KeptArguments, keras.layers.Layer):
    """A stack of dense layers: `C -> [hidden_dim] * (num_layers - 1) -> output_dim`.

    Args:
        hidden_dim: int. Channels of every layer but the last.
        output_dim: int. Channels of the last layer.
        num_layers: int. Number of dense layers, at least 1.
        activation: str or callable, after every layer but the last.
            Defaults to `"relu"`.
        dropout_rate: float. Dropout after every activation and after the last
            layer, in training only. Defaults to `0.0`.
        initializer_range: optional float. Standard deviation of the initial
            kernels; by default they start as in the released code.

    Call arguments:
        x: float tensor `(..., C)`.

    Returns:
        Float tensor `(..., output_dim)`, in the layer's compute dtype.

    Raises:
        ValueError: if `num_layers` is less than 1.

    Example:

    ```python
    mlp = keras_sam.MLP(hidden_dim=20, output_dim=4, num_layers=3)
    mlp(np.zeros((2, 7, 16), "float32")).shape  # (2, 7, 4)
    ```
    """

    def __init__(
        self,
        hidden_dim: int,
        output_dim: int,
        num_layers: int,
        activation: Activation = "relu",
        dropout_rate: float = 0.0,
        initializer_range: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if num_layers < 1:
            raise ValueError(f"`num_layers` must be at least 1. Received: num_layers={num_layers}.")
        self.keep_arguments(locals())
        units = [(hidden_dim, self.activation)] * (num_layers - 1) + [(output_dim, None)]
        self.dense_layers = [
            Dense(n, activation=after, dtype=self.dtype_policy, name=f"dense_{i}")
            for i, (n, after) in enumerate(units)
        ]
        self.dropout = keras.layers.Dropout(dropout_rate, dtype=self.dtype_policy, name="dropout")

    def build(self, input_shape: Shape) -> None:
        for dense in self.dense_layers:
            build_part(dense, input_shape, self.initializer_range)
            input_shape = (*input_shape[:-1], dense.units)

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        for dense in self.dense_layers[:-1]:
            x = dense(x)
            if self.dropout_rate:
                x = self.dropout(x, training=training)
        x = self.dense_layers[-1](x)
        return self.dropout(x, training=training) if self.dropout_rate else x

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape[:-1], self.output_dim)
