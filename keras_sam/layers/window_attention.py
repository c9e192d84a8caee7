"""The transformer block of the image encoder: attention in windows or over the whole image."""

from typing import Any

import keras
from keras import ops

from keras_sam import backends
from keras_sam.layers.arguments import Activation, KeptArguments, Shape, Tensor
from keras_sam.layers.dense import Dense, LayerNormalization
from keras_sam.layers.initialization import build_part
from keras_sam.layers.mlp import MLP
from keras_sam.layers.rematerialization import rematerialized


@keras.saving.register_keras_serializable(package="keras_sam")
class DropPath(KeptArguments, keras.layers.Layer):
    """Drops a residual branch `(B, ...)` for whole samples in training (stochastic depth).

    The branches that stay are divided by the chance to stay, so that the expectation does not
    change: Huang et al. 2016, https://arxiv.org/abs/1603.09382.
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"`rate` must lie in [0, 1). Received: rate={rate}.")
        self.keep_arguments(locals())
        if rate:
            self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True  # without it `quantize` refuses a model that was never trained

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        if not training or not self.rate:
            return x
        shape = (ops.shape(x)[0],) + (1,) * (len(x.shape) - 1)
        keep = 1.0 - self.rate
        uniform = keras.random.uniform(shape, dtype="float32", seed=self.seed_generator)
        return x * ops.cast(uniform < keep, x.dtype) / keep

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape


@keras.saving.register_keras_serializable(package="keras_sam")
class WindowAttention(KeptArguments, keras.layers.Layer):
    """Multi-head self-attention over a grid, in windows, with decomposed relative positions.

    The logits of query `q` and key `k` are `q k / sqrt(c) + q (R_h[dy] + R_w[dx])`:
    the bias uses the unscaled query and one learned table per axis, which start at
    zero. The map is padded on the right and bottom to whole windows. Padded tokens
    have the projection's bias as query, key and value, and do take part as keys:
    the checkpoints were trained so.

    Args:
        num_heads: int. Number of heads, `D`.
        window_size: int. Side of a window, or `0` for one window over the whole map.
        use_bias: bool. Whether the fused query-key-value projection has a bias.
        use_rel_pos: bool. Whether to use relative positions.
        attention_dropout_rate: float. Dropout of the attention map in training.
        initializer_range: see `MLP`.

    Call arguments:
        x: float tensor `(B, Eh, Ew, C)`.
        return_attention: bool. Also return the attention map.

    Returns:
        Float tensor `(B, Eh, Ew, C)`; with `return_attention=True`, a tuple of it and
        the map `(B * windows, D, tokens, tokens)`, where `tokens` counts one window's
        cells, padding included.

    Raises:
        ValueError: if `num_heads` does not divide `C`.

    Source:
        Li et al. 2022, https://arxiv.org/abs/2203.16527 (windows in a plain ViT);
        Li et al. 2021, https://arxiv.org/abs/2112.01526 (decomposed positions).

    Example:

    ```python
    attention = keras_sam.WindowAttention(num_heads=3, window_size=4)
    attention(np.zeros((1, 9, 11, 24), "float32")).shape  # (1, 9, 11, 24)
    ```
    """

    def __init__(
        self,
        num_heads: int,
        window_size: int = 0,
        use_bias: bool = True,
        use_rel_pos: bool = True,
        attention_dropout_rate: float = 0.0,
        initializer_range: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.keep_arguments(locals())
        self.dropout = keras.layers.Dropout(
            attention_dropout_rate, dtype=self.dtype_policy, name="dropout"
        )

    def build(self, input_shape: Shape) -> None:
        _, h, w, channels = input_shape
        if channels % self.num_heads:
            raise ValueError(
                "`num_heads` must divide the input channels. "
                f"Received: num_heads={self.num_heads}, channels={channels}."
            )
        self.grid = (h, w)
        self.qkv = Dense(3 * channels, use_bias=self.use_bias, dtype=self.dtype_policy, name="qkv")
        self.projection = Dense(channels, dtype=self.dtype_policy, name="projection")
        build_part(self.qkv, input_shape, self.initializer_range)
        build_part(self.projection, input_shape, self.initializer_range)
        if self.use_rel_pos:
            window_h, window_w = self.window_grid
            c = channels // self.num_heads
            self.rel_pos_h = self.add_weight(
                name="rel_pos_h", shape=(2 * window_h - 1, c), initializer="zeros"
            )
            self.rel_pos_w = self.add_weight(
                name="rel_pos_w", shape=(2 * window_w - 1, c), initializer="zeros"
            )

    @property
    def window_grid(self) -> tuple[int, int]:
        """Cells `(h, w)` that attend to each other."""
        return (self.window_size, self.window_size) if self.window_size else self.grid

    def call(
        self, x: Tensor, return_attention: bool = False, training: bool | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        h, w = self.grid
        window_h, window_w = self.window_grid
        padded_h, padded_w = -(-h // window_h) * window_h, -(-w // window_w) * window_w
        # Padding comes after norm1, so projecting it would only give the bias:
        # project the real tokens and pad with the bias.
        qkv = self._pad_with_bias(self.qkv(x), padded_h - h, padded_w - w)
        # (N, D, window cells, c) each
        query, key, value = backends.split_windows_and_heads(qkv, self.window_grid, self.num_heads)
        rel_pos_bias = None
        if self.use_rel_pos:
            rel_pos_bias = backends.decomposed_rel_pos(
                query, self.rel_pos_h, self.rel_pos_w, self.window_grid
            )
        attention = None
        if return_attention or (training and self.attention_dropout_rate):
            attention = backends.attention_map(query, key, rel_pos_bias, self.window_grid)
            out = ops.matmul(self.dropout(attention, training=training), value)
        else:
            out = backends.attend(query, key, value, rel_pos_bias, self.window_grid, training)
        out = self._join_windows_and_heads(out, padded_h, padded_w)[:, :h, :w]
        out = self.projection(out)
        return (out, attention) if return_attention else out

    def _pad_with_bias(self, qkv, bottom, right):
        """Appends rows and columns that hold the projection's bias."""
        if not bottom and not right:
            return qkv
        h, w, channels = qkv.shape[1:]
        batch = ops.shape(qkv)[0]
        bias = self.qkv.bias if self.use_bias else ops.zeros((channels,))
        bias = ops.cast(bias, qkv.dtype)
        if right:
            columns = ops.broadcast_to(bias, (batch, h, right, channels))
            qkv = ops.concatenate([qkv, columns], axis=2)
        if bottom:
            rows = ops.broadcast_to(bias, (batch, bottom, w + right, channels))
            qkv = ops.concatenate([qkv, rows], axis=1)
        return qkv

    def _join_windows_and_heads(self, out, h, w):
        """`(N, D, window cells, c)` to `(B, h, w, D c)`, in one transpose."""
        window_h, window_w = self.window_grid
        _, heads, _, c = out.shape
        out = ops.reshape(out, (-1, w // window_w, heads, window_h, window_w, c))
        out = ops.transpose(out, (0, 3, 1, 4, 2, 5))
        return ops.reshape(out, (-1, h, w, heads * c))

    def compute_output_spec(
        self, x: Tensor, return_attention: bool = False, training: bool | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        out = keras.KerasTensor(x.shape, dtype=self.compute_dtype)
        if not return_attention:
            return out
        window_h, window_w = self.window_grid
        tokens = window_h * window_w
        shape = (None, self.num_heads, tokens, tokens)
        return out, keras.KerasTensor(shape, dtype=self.compute_dtype)


@keras.saving.register_keras_serializable(package="keras_sam")
class WindowedTransformerEncoder(KeptArguments, keras.layers.Layer):
    """One block of the image encoder: windowed attention and an MLP, each after a norm.

    Args:
        intermediate_dim: int. Hidden channels of the MLP.
        num_heads: int. Number of attention heads, `D`.
        window_size: int. Side of an attention window, or `0` for global attention.
        use_bias: bool. Whether the query-key-value projection has a bias.
        use_rel_pos: bool. Whether attention uses relative positions.
        layer_norm_epsilon: float. Defaults to `1e-6`.
        activation: str or callable. Activation of the MLP. Defaults to `"gelu"`, the exact one.
        dropout_rate: float. Dropout in the MLP and after the attention.
        attention_dropout_rate: float. Dropout of the attention map.
        drop_path_rate: float. Chance that a residual branch is dropped.
        initializer_range: see `MLP`.

    Call arguments:
        x: float tensor `(B, Eh, Ew, C)`.
        return_attention: bool. Also return the attention map, see `WindowAttention`.

    Returns:
        Float tensor `(B, Eh, Ew, C)`, or a tuple of it and the attention map.

    Source:
        Li et al. 2022, https://arxiv.org/abs/2203.16527, section 3.

    Example:

    ```python
    block = keras_sam.WindowedTransformerEncoder(intermediate_dim=40, num_heads=3, window_size=4)
    block(np.zeros((1, 9, 11, 24), "float32")).shape  # (1, 9, 11, 24)
    ```
    """

    def __init__(
        self,
        intermediate_dim: int,
        num_heads: int,
        window_size: int = 0,
        use_bias: bool = True,
        use_rel_pos: bool = True,
        layer_norm_epsilon: float = 1e-6,
        activation: Activation = "gelu",
        dropout_rate: float = 0.0,
        attention_dropout_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        initializer_range: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.keep_arguments(locals())
        policy = self.dtype_policy
        self.norm1 = LayerNormalization(epsilon=layer_norm_epsilon, dtype=policy, name="norm1")
        self.attention = WindowAttention(
            num_heads,
            window_size=window_size,
            use_bias=use_bias,
            use_rel_pos=use_rel_pos,
            attention_dropout_rate=attention_dropout_rate,
            initializer_range=initializer_range,
            dtype=policy,
            name="attention",
        )
        self.dropout = keras.layers.Dropout(dropout_rate, dtype=policy, name="dropout")
        self.drop_path = DropPath(drop_path_rate, dtype=policy, name="drop_path")
        self.norm2 = LayerNormalization(epsilon=layer_norm_epsilon, dtype=policy, name="norm2")
        # Whether the block is computed again for gradients, instead of keeping its activations.
        # Changes no result, so not part of the config: `SAMImageSegmenter.checkpoint_gradients`.
        self.rematerialize = False

    def build(self, input_shape: Shape) -> None:
        self.mlp = MLP(
            self.intermediate_dim,
            input_shape[-1],
            num_layers=2,
            activation=self.activation,
            dropout_rate=self.dropout_rate,
            initializer_range=self.initializer_range,
            dtype=self.dtype_policy,
            name="mlp",
        )
        for part in (self.norm1, self.attention, self.norm2, self.mlp):
            part.build(input_shape)

    def call(
        self, x: Tensor, return_attention: bool = False, training: bool | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        if self.rematerialize and training and not return_attention:
            return rematerialized(self, self._run)(x)
        return self._run(x, return_attention, training)

    def _run(self, x, return_attention=False, training=True):
        # `training` by name: what is rematerialized runs outside of Keras's call.
        out = self.norm1(x, training=training)
        out = self.attention(out, return_attention=return_attention, training=training)
        out, attention = out if return_attention else (out, None)
        if self.dropout_rate:
            out = self.dropout(out, training=training)
        x = x + self.drop_path(out, training=training)
        out = self.mlp(self.norm2(x, training=training), training=training)
        x = x + self.drop_path(out, training=training)
        return (x, attention) if return_attention else x

    def compute_output_spec(
        self, x: Tensor, return_attention: bool = False, training: bool | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        return self.attention.compute_output_spec(x, return_attention=return_attention)
