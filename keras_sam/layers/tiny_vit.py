"""The parts of TinyViT: inverted bottlenecks, and blocks of attention with a local convolution."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_sam import backends
from keras_sam.layers.arguments import Activation, KeptArguments, Shape, Tensor
from keras_sam.layers.conv_norm import ConvNorm
from keras_sam.layers.dense import Dense, LayerNormalization
from keras_sam.layers.initialization import build_part
from keras_sam.layers.mlp import MLP
from keras_sam.layers.window_attention import DropPath

# Deviation of the dense layers' initial kernels in the released code.
_DENSE_RANGE = 0.02


@keras.saving.register_keras_serializable(package="keras_sam")
class InvertedBottleneck(KeptArguments, keras.layers.Layer):
    """Three convolutions with batch norm: to more channels, depthwise, and to the output's.

    With a shortcut it is the block of TinyViT's first stage (MBConv), without one the merging of
    patches between stages.

    Args:
        hidden_dim: int. Channels of the first two convolutions.
        output_dim: int. Channels of the last.
        strides: int. Of the depthwise convolution. Defaults to `1`.
        shortcut: bool. Whether the input is added and an activation follows. Defaults to `False`.
        activation: str or callable, after the first two convolutions. Defaults to `"gelu"`.
        drop_path_rate: float. Chance that all but the shortcut is dropped in training.
        batch_norm_epsilon: see `ConvNorm`.
        batch_norm_momentum: see `ConvNorm`.
        initializer_range: see `MLP`.

    Call arguments:
        x: float tensor `(B, h, w, channels)`.

    Returns:
        Float tensor `(B, ceil(h / strides), ceil(w / strides), output_dim)`.

    Source:
        Sandler et al. 2018, https://arxiv.org/abs/1801.04381; Wu et al. 2022,
        https://arxiv.org/abs/2207.10666 (TinyViT).

    Example:

    ```python
    block = keras_sam.layers.InvertedBottleneck(hidden_dim=20, output_dim=5, shortcut=True)
    block(np.zeros((1, 9, 11, 5), "float32")).shape  # (1, 9, 11, 5)
    ```
    """

    def __init__(
        self,
        hidden_dim: int,
        output_dim: int,
        strides: int = 1,
        shortcut: bool = False,
        activation: Activation = "gelu",
        drop_path_rate: float = 0.0,
        batch_norm_epsilon: float = 1e-5,
        batch_norm_momentum: float = 0.9,
        initializer_range: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.keep_arguments(locals())
        settings = {
            "batch_norm_epsilon": batch_norm_epsilon,
            "batch_norm_momentum": batch_norm_momentum,
            "initializer_range": initializer_range,
            "dtype": self.dtype_policy,
        }
        self.conv1 = ConvNorm(hidden_dim, activation=activation, name="conv1", **settings)
        self.conv2 = ConvNorm(
            hidden_dim, 3, strides, True, activation=activation, name="conv2", **settings
        )
        # A block starts as the identity.
        gamma = "zeros" if shortcut else "ones"
        self.conv3 = ConvNorm(output_dim, gamma_initializer=gamma, name="conv3", **settings)
        self.drop_path = DropPath(drop_path_rate, dtype=self.dtype_policy, name="drop_path")

    def build(self, input_shape: Shape) -> None:
        for part in (self.conv1, self.conv2, self.conv3):
            part.build(input_shape)
            input_shape = part.compute_output_shape(input_shape)

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        if training:
            return self._rows(x, (True, True), training)
        # All rows at once would make two maps of `hidden_dim` channels: most of the memory.
        return backends.in_strips(self._rows, x, self.strides, x.shape[2] * self.hidden_dim)

    def _rows(self, x, edges, training=None):
        """The block of rows, which have one more above and below where there is no edge."""
        out = self.conv1(x, training=training)
        out = self.conv2(out, training=training, edges=edges)
        out = self.conv3(out, training=training)
        if not self.shortcut:
            return out
        inner = x[:, 0 if edges[0] else 1 : None if edges[1] else -1]
        out = inner + self.drop_path(out, training=training)
        return backends.activate(out, self.activation, training)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*self.conv2.compute_output_shape(input_shape)[:-1], self.output_dim)


@keras.saving.register_keras_serializable(package="keras_sam")
class OffsetBiasAttention(KeptArguments, keras.layers.Layer):
    """A norm, and self-attention in windows with a learned bias for each offset of two cells.

    The logits of a query and a key that lie `dy` rows and `dx` columns apart, in either direction,
    get the bias of `(dy, dx)`. The map is padded with zeros on the right and bottom to whole
    windows before the norm, of which the padding takes the bias; padded cells take part as keys.

    Args:
        num_heads: int. Number of heads, `D`.
        window_size: int. Side of a window.
        layer_norm_epsilon: float. Defaults to `1e-5`.
        initializer_range: see `MLP`. Defaults to the released code's `0.02`.

    Call arguments:
        x: float tensor `(B, h, w, channels)`.

    Returns:
        Float tensor `(B, h, w, channels)`.

    Raises:
        ValueError: if `num_heads` does not divide the channels.

    Source:
        Graham et al. 2021, https://arxiv.org/abs/2104.01136 (LeViT's attention biases); Wu et al.
        2022, https://arxiv.org/abs/2207.10666 (in windows).

    Example:

    ```python
    attention = keras_sam.layers.OffsetBiasAttention(num_heads=3, window_size=4)
    attention(np.zeros((1, 9, 11, 24), "float32")).shape  # (1, 9, 11, 24)
    ```
    """

    def __init__(
        self,
        num_heads: int,
        window_size: int,
        layer_norm_epsilon: float = 1e-5,
        initializer_range: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.keep_arguments(locals())
        policy = self.dtype_policy
        self.norm = LayerNormalization(epsilon=layer_norm_epsilon, dtype=policy, name="norm")

    def build(self, input_shape: Shape) -> None:
        channels = input_shape[-1]
        if channels % self.num_heads:
            raise ValueError(
                "`num_heads` must divide the input channels. "
                f"Received: num_heads={self.num_heads}, channels={channels}."
            )
        self.qkv = Dense(3 * channels, dtype=self.dtype_policy, name="qkv")
        self.projection = Dense(channels, dtype=self.dtype_policy, name="projection")
        self.norm.build(input_shape)
        for part in (self.qkv, self.projection):
            build_part(part, input_shape, self.initializer_range or _DENSE_RANGE)
        self.offset_bias = self.add_weight(
            name="offset_bias",
            shape=(self.num_heads, self.window_size**2),  # (dy, dx) in the order of rows
            initializer="zeros",
        )

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        h, w, channels = x.shape[1:]
        size, heads = self.window_size, self.num_heads
        rows, columns = -(-h // size), -(-w // size)
        if (h, w) != (rows * size, columns * size):
            x = ops.pad(x, [(0, 0), (0, rows * size - h), (0, columns * size - w), (0, 0)])
        # Windows before the projections: of all copies of the map, these are the smallest.
        x = ops.reshape(x, (-1, rows, size, columns, size, channels))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        x = ops.reshape(x, (-1, size * size, channels))  # (N, window cells, channels)
        qkv = self.qkv(self.norm(x, training=training))
        qkv = ops.reshape(qkv, (-1, size * size, heads, 3, channels // heads))
        query, key, value = (ops.transpose(qkv[..., i, :], (0, 2, 1, 3)) for i in range(3))
        out = backends.attend_with_bias(query, key, value, self._bias(), training)
        out = ops.reshape(ops.transpose(out, (0, 2, 1, 3)), (-1, size * size, channels))
        out = ops.reshape(self.projection(out), (-1, rows, columns, size, size, channels))
        out = ops.transpose(out, (0, 1, 3, 2, 4, 5))
        return ops.reshape(out, (-1, rows * size, columns * size, channels))[:, :h, :w]

    def _bias(self):
        """The bias of each pair of a window's cells, `(D, cells, cells)`."""
        n = np.arange(self.window_size)
        apart = np.abs(n[:, None] - n)
        index = apart[:, None, :, None] * self.window_size + apart[None, :, None, :]
        index = index.reshape(self.window_size**2, -1)
        # Along the first axis: along another, Keras on torch adds a step that ONNX has not.
        bias = ops.take(ops.transpose(self.offset_bias), index, axis=0)  # (cells, cells, D)
        return ops.transpose(bias, (2, 0, 1))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape


@keras.saving.register_keras_serializable(package="keras_sam")
class TinyViTBlock(KeptArguments, keras.layers.Layer):
    """Attention in windows, a depthwise convolution with batch norm across them, and an MLP.

    Args:
        intermediate_dim: int. Hidden channels of the MLP.
        num_heads: int. Attention heads, `D`.
        window_size: int. Side of an attention window.
        local_conv_size: int, odd. Side of the depthwise kernel. Defaults to `3`.
        layer_norm_epsilon: float. Defaults to `1e-5`.
        activation: str or callable. Activation of the MLP. Defaults to `"gelu"`, the exact one.
        dropout_rate: float. Dropout in the MLP.
        drop_path_rate: float. Chance that a residual branch is dropped.
        batch_norm_epsilon: see `ConvNorm`.
        batch_norm_momentum: see `ConvNorm`.
        initializer_range: see `MLP`. Defaults to the released code's `0.02` for dense layers.

    Call arguments:
        x: float tensor `(B, h, w, channels)`.

    Returns:
        Float tensor `(B, h, w, channels)`.

    Source:
        Wu et al. 2022, https://arxiv.org/abs/2207.10666.

    Example:

    ```python
    block = keras_sam.layers.TinyViTBlock(intermediate_dim=40, num_heads=3, window_size=4)
    block(np.zeros((1, 9, 11, 24), "float32")).shape  # (1, 9, 11, 24)
    ```
    """

    def __init__(
        self,
        intermediate_dim: int,
        num_heads: int,
        window_size: int,
        local_conv_size: int = 3,
        layer_norm_epsilon: float = 1e-5,
        activation: Activation = "gelu",
        dropout_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        batch_norm_epsilon: float = 1e-5,
        batch_norm_momentum: float = 0.9,
        initializer_range: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.keep_arguments(locals())
        policy = self.dtype_policy
        self.attention = OffsetBiasAttention(
            num_heads,
            window_size,
            layer_norm_epsilon=layer_norm_epsilon,
            initializer_range=initializer_range,
            dtype=policy,
            name="attention",
        )
        self.drop_path = DropPath(drop_path_rate, dtype=policy, name="drop_path")
        self.norm = LayerNormalization(epsilon=layer_norm_epsilon, dtype=policy, name="norm")

    def build(self, input_shape: Shape) -> None:
        channels = input_shape[-1]
        self.local_conv = ConvNorm(
            channels,
            self.local_conv_size,
            depthwise=True,
            batch_norm_epsilon=self.batch_norm_epsilon,
            batch_norm_momentum=self.batch_norm_momentum,
            initializer_range=self.initializer_range,
            dtype=self.dtype_policy,
            name="local_conv",
        )
        self.mlp = MLP(
            self.intermediate_dim,
            channels,
            num_layers=2,
            activation=self.activation,
            dropout_rate=self.dropout_rate,
            initializer_range=self.initializer_range or _DENSE_RANGE,
            dtype=self.dtype_policy,
            name="mlp",
        )
        for part in (self.attention, self.local_conv, self.norm, self.mlp):
            part.build(input_shape)

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        x = x + self.drop_path(self.attention(x, training=training), training=training)
        x = self.local_conv(x, training=training)
        out = self.mlp(self.norm(x, training=training), training=training)
        return x + self.drop_path(out, training=training)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape
