"""The transformer block of SAM 2's image encoder: attention in windows, with pooled queries.

Maps are `(B, n, h, w, C)` here: `n` windows of a map, or with `n = 1` the map itself. Everything
but attention treats cells alone, so a map is cut into windows once, for as many blocks as use them.
"""

from typing import Any

import keras
from keras import ops

from keras_sam import backends
from keras_sam.layers.arguments import Activation, KeptArguments, Shape, Tensor
from keras_sam.layers.dense import Dense, LayerNormalization
from keras_sam.layers.initialization import build_part
from keras_sam.layers.mlp import MLP
from keras_sam.layers.rematerialization import rematerialized
from keras_sam.layers.window_attention import DropPath


def to_windows(x: Tensor, size: int) -> Tensor:
    """A map `(B, 1, h, w, C)`, whose sides `size` divides, as `(B, n, size, size, C)`."""
    h, w, channels = x.shape[2:]
    if (h, w) == (size, size):
        return x
    x = ops.reshape(x, (-1, h // size, size, w // size, size, channels))
    x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
    return ops.reshape(x, (-1, h * w // size**2, size, size, channels))


def from_windows(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """The inverse of `to_windows`, for a map of `grid` cells."""
    (h, w), (_, count, size_h, size_w, channels) = grid, x.shape
    if count == 1:
        return x
    x = ops.reshape(x, (-1, h // size_h, w // size_w, size_h, size_w, channels))
    x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
    return ops.reshape(x, (-1, 1, h, w, channels))


def pool(x: Tensor) -> Tensor:
    """The largest of each 2 x 2 cells: `(B, n, h, w, C)` to `(B, n, h / 2, w / 2, C)`."""
    count, h, w, channels = x.shape[1:]
    x = ops.reshape(x, (-1, 2, w, channels))  # few axes: LiteRT cannot slice seven
    x = ops.reshape(ops.maximum(x[:, 0], x[:, 1]), (-1, 2, channels))
    x = ops.maximum(x[:, 0], x[:, 1])
    return ops.reshape(x, (-1, count, h // 2, w // 2, channels))


@keras.saving.register_keras_serializable(package="keras_sam")
class HieraAttention(KeptArguments, keras.layers.Layer):
    """Multi-head self-attention in windows, whose queries may be pooled, 2 x 2 cells to one.

    A map that does not divide into windows is filled up on the right and bottom. These cells have
    the projection's bias as query, key and value, and do take part as keys: the checkpoints were
    trained so.

    Args:
        num_heads: int. Number of heads, `D`.
        output_dim: int. Channels of queries, keys and values, and of the output.
        window_size: int. Side of a window, or `0` where all cells of a map attend to each other.
        pools_queries: bool. Whether the output has half the sides.
        initializer_range: see `MLP`.

    Call arguments:
        x: float tensor `(B, n, h, w, C)`: windows of `window_size`, or the map itself, `n = 1`.

    Returns:
        Float tensor `(B, n, h, w, output_dim)`, or with half of `h` and `w`.

    Raises:
        ValueError: if `num_heads` does not divide `output_dim`.

    Source:
        Ryali et al. 2023, https://arxiv.org/abs/2306.00989, and the package sam2 1.1.0,
        modeling/backbones/hieradet.py.
    """

    def __init__(
        self,
        num_heads: int,
        output_dim: int,
        window_size: int = 0,
        pools_queries: bool = False,
        initializer_range: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if output_dim % num_heads:
            raise ValueError(
                "`num_heads` must divide the channels of every stage. "
                f"Received: num_heads={num_heads}, channels={output_dim}."
            )
        self.keep_arguments(locals())
        self.qkv = Dense(3 * output_dim, dtype=self.dtype_policy, name="qkv")
        self.projection = Dense(output_dim, dtype=self.dtype_policy, name="projection")

    def build(self, input_shape: Shape) -> None:
        build_part(self.qkv, input_shape, self.initializer_range)
        build_part(self.projection, (None, self.output_dim), self.initializer_range)

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        qkv, size = self.qkv(x, training=training), self.window_size
        count, h, w, channels = qkv.shape[1:]
        is_cut = bool(size) and (h, w) != (size, size)
        if is_cut:
            qkv = to_windows(self._filled(qkv), size)
        elif not size:
            qkv = ops.reshape(qkv, (-1, 1, count * h, w, channels))
        windows, rows, columns = qkv.shape[1:4]
        qkv = ops.reshape(qkv, (-1, windows, rows, columns, 3, self.output_dim))
        query, key, value = (qkv[..., i, :] for i in range(3))
        if self.pools_queries:
            query, rows, columns, h, w = pool(query), rows // 2, columns // 2, h // 2, w // 2
        query, key, value = map(self._split_heads, (query, key, value))  # (N, D, cells, c)
        out = backends.attend(query, key, value, None, (rows, columns), training)
        out = ops.reshape(
            ops.transpose(out, (0, 2, 1, 3)), (-1, windows, rows, columns, self.output_dim)
        )
        if is_cut:
            side = size // 2 if self.pools_queries else size
            out = from_windows(out, (-(-h // side) * side, -(-w // side) * side))[:, :, :h, :w]
        elif not size:
            out = ops.reshape(out, (-1, count, h, w, self.output_dim))
        return self.projection(out, training=training)

    def _filled(self, qkv):
        """A map `(B, 1, h, w, 3 C)` with rows and columns of bias, up to whole windows."""
        h, w, channels = qkv.shape[2:]
        right, bottom = -w % self.window_size, -h % self.window_size
        batch, bias = ops.shape(qkv)[0], ops.cast(self.qkv.bias, qkv.dtype)
        if right:
            columns = ops.broadcast_to(bias, (batch, 1, h, right, channels))
            qkv = ops.concatenate([qkv, columns], axis=3)
        if bottom:
            rows = ops.broadcast_to(bias, (batch, 1, bottom, w + right, channels))
            qkv = ops.concatenate([qkv, rows], axis=2)
        return qkv

    def _split_heads(self, x):
        """`(B, n, h, w, D c)` to `(B n, D, h w, c)`."""
        cells, channels = x.shape[2] * x.shape[3], x.shape[4]
        x = ops.reshape(x, (-1, cells, self.num_heads, channels // self.num_heads))
        return ops.transpose(x, (0, 2, 1, 3))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, count, h, w, _ = input_shape
        if self.pools_queries:
            h, w = h // 2, w // 2
        return (batch, count, h, w, self.output_dim)


@keras.saving.register_keras_serializable(package="keras_sam")
class HieraBlock(KeptArguments, keras.layers.Layer):
    """One block of SAM 2's image encoder: attention and an MLP, each after a norm.

    Args:
        num_heads: see `HieraAttention`.
        output_dim: int. Channels of the output. Where they differ from the input's, another
            projection of the normalised input takes the input's place in the sum.
        intermediate_dim: int. Hidden channels of the MLP.
        window_size: see `HieraAttention`.
        pools_queries: bool. Whether the output has half the sides; the channels must change then.
        layer_norm_epsilon: float. Defaults to `1e-6`.
        activation: str or callable. Activation of the MLP. Defaults to `"gelu"`, the exact one.
        drop_path_rate: float. Chance that a residual branch is dropped.
        initializer_range: see `MLP`.

    Call arguments:
        x: float tensor `(B, n, h, w, C)`, see `HieraAttention`.

    Returns:
        Float tensor `(B, n, h, w, output_dim)`, or with half of `h` and `w`.
    """

    def __init__(
        self,
        num_heads: int,
        output_dim: int,
        intermediate_dim: int,
        window_size: int = 0,
        pools_queries: bool = False,
        layer_norm_epsilon: float = 1e-6,
        activation: Activation = "gelu",
        drop_path_rate: float = 0.0,
        initializer_range: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.keep_arguments(locals())
        policy = self.dtype_policy
        self.norm1 = LayerNormalization(epsilon=layer_norm_epsilon, dtype=policy, name="norm1")
        self.attention = HieraAttention(
            num_heads,
            output_dim,
            window_size=window_size,
            pools_queries=pools_queries,
            initializer_range=initializer_range,
            dtype=policy,
            name="attention",
        )
        self.drop_path = DropPath(drop_path_rate, dtype=policy, name="drop_path")
        self.norm2 = LayerNormalization(epsilon=layer_norm_epsilon, dtype=policy, name="norm2")
        self.mlp = MLP(
            intermediate_dim,
            output_dim,
            num_layers=2,
            activation=activation,
            initializer_range=initializer_range,
            dtype=policy,
            name="mlp",
        )
        # See `WindowedTransformerEncoder`.
        self.rematerialize = False

    def build(self, input_shape: Shape) -> None:
        self.shortcut = None
        if input_shape[-1] != self.output_dim:
            self.shortcut = Dense(self.output_dim, dtype=self.dtype_policy, name="shortcut")
            build_part(self.shortcut, input_shape, self.initializer_range)
        self.norm1.build(input_shape)
        self.attention.build(input_shape)
        output_shape = (*input_shape[:-1], self.output_dim)
        self.norm2.build(output_shape)
        self.mlp.build(output_shape)

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        if self.rematerialize and training:
            return rematerialized(self, self._run)(x)
        return self._run(x, training)

    def _run(self, x, training=True):
        # `training` by name: what is rematerialized runs outside of Keras's call.
        normalized = self.norm1(x, training=training)
        if self.shortcut is not None:
            x = self.shortcut(normalized, training=training)
            x = pool(x) if self.pools_queries else x
        out = self.attention(normalized, training=training)
        x = x + self.drop_path(out, training=training)
        out = self.mlp(self.norm2(x, training=training), training=training)
        return x + self.drop_path(out, training=training)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return self.attention.compute_output_shape(input_shape)
