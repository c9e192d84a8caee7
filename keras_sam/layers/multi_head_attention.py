"""Multi-head attention; `attention_orders` has the cheaper forms for few tokens."""

from typing import Any

import keras
from keras import ops

from keras_sam.layers import attention_orders as orders
from keras_sam.layers.arguments import KeptArguments, Shape, Tensor
from keras_sam.layers.dense import Dense
from keras_sam.layers.initialization import build_part


@keras.saving.register_keras_serializable(package="keras_sam")
class MultiHeadAttentionWithDownsampling(KeptArguments, keras.layers.Layer):
    """Multi-head attention whose heads may be narrower than its inputs.

    Queries, keys and values are projected from `C = num_heads * key_dim` channels to
    `C / downsample_rate`, attended over, and projected back. The leading axes of the
    query and of key and value broadcast, so prompts can share one image.

    Args:
        num_heads: int. Number of heads, `D`.
        key_dim: int. Channels per head before downsampling.
        downsample_rate: int. Divides `key_dim`; a smaller `key_dim` becomes one channel.
            Defaults to `1`.
        initializer_range: optional float. Standard deviation of the initial
            kernels; by default they start as in the released code.

    Call arguments:
        query: float tensor `(B, Tq, C)`, or `(B, P, Tq, C)`.
        value: float tensor `(B, Tk, C)`, or `(B, P, Tk, C)`.
        key: float tensor, shaped as `value`.
        key_mask: optional bool tensor `(B, Tk)` or `(B, P, Tk)`, False where a key is padding.
        attention_bias: optional float tensor that broadcasts to the logits
            `(B, [P,] D, Tq, Tk)` and is added to them.
        return_attention: bool. Also return the attention map.
        projected: optional dict, what `project` returned for a `query`, or for `value` and `key`,
            that all prompts share: it is then not projected for each of them.

    Returns:
        Float tensor `(B, [P,] Tq, C)`, in the layer's compute dtype; with
        `return_attention=True`, a tuple of it and the map `(B, [P,] D, Tq, Tk)`.

    Raises:
        ValueError: if `downsample_rate` does not divide a larger `key_dim`.

    Source:
        Kirillov et al. 2023, https://arxiv.org/abs/2304.02643, appendix A.

    Example:

    ```python
    attention = keras_sam.MultiHeadAttentionWithDownsampling(
        num_heads=2, key_dim=8, downsample_rate=2
    )
    tokens, image = np.zeros((1, 7, 16), "float32"), np.zeros((1, 99, 16), "float32")
    attention(query=tokens, value=image, key=image).shape  # (1, 7, 16)
    ```
    """

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        downsample_rate: int = 1,
        initializer_range: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if key_dim % downsample_rate and key_dim > downsample_rate:
            raise ValueError(
                "`downsample_rate` must divide `key_dim`. "
                f"Received: key_dim={key_dim}, downsample_rate={downsample_rate}."
            )
        self.keep_arguments(locals())
        inner = self._inner_channels
        self.query_proj = Dense(inner, dtype=self.dtype_policy, name="query_proj")
        self.key_proj = Dense(inner, dtype=self.dtype_policy, name="key_proj")
        self.value_proj = Dense(inner, dtype=self.dtype_policy, name="value_proj")
        self.out_proj = Dense(num_heads * key_dim, dtype=self.dtype_policy, name="out_proj")

    @property
    def _inner_channels(self):
        return self.num_heads * max(self.key_dim // self.downsample_rate, 1)

    def build(self, input_shape: Shape | None = None, **shapes: Shape | None) -> None:
        outer = (None, self.num_heads * self.key_dim)
        inner = (None, self._inner_channels)
        for dense in (self.query_proj, self.key_proj, self.value_proj):
            build_part(dense, outer, self.initializer_range)
        build_part(self.out_proj, inner, self.initializer_range)

    def call(
        self,
        query: Tensor,
        value: Tensor,
        key: Tensor,
        key_mask: Tensor | None = None,
        attention_bias: Tensor | None = None,
        return_attention: bool = False,
        projected: dict[str, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if key_mask is not None:
            key_mask = ops.expand_dims(ops.expand_dims(key_mask, -2), -2)  # (B, [P,] 1, 1, Tk)
        projected = projected or {}
        order = self._order(query, key, attention_bias, projected)
        if order == orders.FEW_QUERIES:
            out, attention = self._attend_from_few(query, value, key, key_mask, attention_bias)
        elif order == orders.FEW_KEYS:
            out, attention = self._attend_to_few(query, value, key, key_mask, projected)
        else:
            query, value, key = self._project_missing(query, value, key, projected)
            logits = ops.matmul(orders.scaled(query), orders.transposed(key))
            attention = orders.masked_softmax(logits, key_mask, attention_bias)
            out = self.out_proj(orders.join_heads(ops.matmul(attention, value)))
        return (out, attention) if return_attention else out

    def project(
        self,
        query: Tensor | None = None,
        value: Tensor | None = None,
        key: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Projects what all prompts share, `(B, 1, T, C)`, for `projected`.

        Returns a dict of what is given: `query` `(B, 1, Tq, D * c)`, `value` and `key`
        `(B, 1, D, Tk, c)`.
        """
        projected = {}
        if query is not None:
            projected["query"] = self.query_proj(query)
        if value is not None:
            projected["value"] = orders.split_heads(self.value_proj(value), self.num_heads)
        if key is not None:
            projected["key"] = orders.split_heads(self.key_proj(key), self.num_heads)
        return projected

    def _project_missing(self, query, value, key, projected):
        """Queries, values and keys by head, those of `projected` as they are."""
        if "query" not in projected:
            projected = {**projected, **self.project(query=query)}
        if "key" not in projected:
            projected = {**projected, **self.project(value=value, key=key)}
        query = orders.split_heads(projected["query"], self.num_heads)
        return query, projected["value"], projected["key"]  # (B, [P,] D, T, c) each

    def _order(self, query, key, attention_bias, projected):
        projections = (self.query_proj, self.key_proj, self.value_proj, self.out_proj)
        if any(dense.quantization_mode for dense in projections):
            return orders.PROJECT_ALL  # only its own layer can multiply with an integer kernel
        return orders.cheapest_order(
            query.shape,
            key.shape,
            self._inner_channels // self.num_heads,
            has_bias=attention_bias is not None,
            key_is_projected="key" in projected,
        )

    def _attend_from_few(self, query, value, key, key_mask, attention_bias):
        query = orders.split_heads(self.query_proj(query), self.num_heads)
        key_weights = self._weights_by_head(self.key_proj, query.dtype)
        value_weights = self._weights_by_head(self.value_proj, query.dtype)
        out, attention = orders.attend_from_few_queries(
            query, key, value, key_weights, value_weights, key_mask, attention_bias
        )
        return self.out_proj(orders.join_heads(out)), attention

    def _attend_to_few(self, query, value, key, key_mask, projected):
        few, weights = self.project(value=value, key=key), None
        if "query" in projected:
            query = projected["query"]
        elif orders.is_shared(query.shape, key.shape):
            query = self.query_proj(query)
        else:
            weights = self._weights_by_head(self.query_proj, few["key"].dtype)
        out_weights = (self.out_proj.kernel, self.out_proj.bias)
        return orders.attend_to_few_keys(
            query, few["key"], few["value"], weights, out_weights, key_mask
        )

    def _weights_by_head(self, dense, dtype):
        return orders.weights_by_head(dense.kernel, dense.bias, self.num_heads, dtype)

    def compute_output_shape(
        self, query_shape: Shape, value_shape: Shape | None = None, key_shape: Shape | None = None
    ) -> Shape:
        return (*query_shape[:-1], self.num_heads * self.key_dim)
