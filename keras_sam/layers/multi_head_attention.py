"""Multi-head attention between few tokens and many, in the order of products that costs least."""

import keras
from keras import ops

from keras_sam import backends
from keras_sam.layers.dense import Dense
from keras_sam.layers.initialization import build_part

# Far below every logit, yet finite: exp() of it is exactly 0, so a masked key has no influence.
_MASKED_LOGIT = -1e9


@keras.saving.register_keras_serializable(package="keras_sam")
class MultiHeadAttentionWithDownsampling(keras.layers.Layer):
    """Multi-head attention whose heads may be narrower than its inputs.

    Queries, keys and values are projected from `C = num_heads * key_dim` channels to
    `C / downsample_rate`, attended over, and projected back. The leading axes of the
    query and of key and value broadcast, so prompts can share one image.

    Args:
        num_heads: int. Number of heads, `D`.
        key_dim: int. Channels per head before downsampling.
        downsample_rate: int. Divides `key_dim`; of a smaller `key_dim` one channel is left.
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
        projected: optional dict of what `project` returned for one `query`, or for one `value` and
            `key`, that all prompts share: saves projecting it for each of them.

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
        **kwargs,
    ):
        super().__init__(**kwargs)
        if key_dim % downsample_rate and key_dim > downsample_rate:
            raise ValueError(
                "`downsample_rate` must divide `key_dim`. "
                f"Received: key_dim={key_dim}, downsample_rate={downsample_rate}."
            )
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.downsample_rate = downsample_rate
        self.initializer_range = initializer_range
        inner = self._inner_channels
        self.query_proj = Dense(inner, dtype=self.dtype_policy, name="query_proj")
        self.key_proj = Dense(inner, dtype=self.dtype_policy, name="key_proj")
        self.value_proj = Dense(inner, dtype=self.dtype_policy, name="value_proj")
        self.out_proj = Dense(num_heads * key_dim, dtype=self.dtype_policy, name="out_proj")

    @property
    def _inner_channels(self):
        return self.num_heads * max(self.key_dim // self.downsample_rate, 1)

    def build(self, query_shape=None, value_shape=None, key_shape=None):
        outer = (None, self.num_heads * self.key_dim)
        inner = (None, self._inner_channels)
        for dense in (self.query_proj, self.key_proj, self.value_proj):
            build_part(dense, outer, self.initializer_range)
        build_part(self.out_proj, inner, self.initializer_range)

    def call(
        self,
        query,
        value,
        key,
        key_mask=None,
        attention_bias=None,
        return_attention=False,
        projected=None,
    ):
        if key_mask is not None:
            key_mask = ops.expand_dims(ops.expand_dims(key_mask, -2), -2)  # (B, [P,] 1, 1, Tk)
        projected = projected or {}
        attend = self._cheapest_form(query, key, attention_bias, projected)
        out, attention = attend(query, value, key, key_mask, attention_bias, projected)
        return (out, attention) if return_attention else out

    def project(self, query=None, value=None, key=None):
        """Projects what all prompts share, for `projected`.

        Args:
            query: optional float tensor `(B, 1, Tq, C)`.
            value: optional float tensor `(B, 1, Tk, C)`.
            key: optional float tensor `(B, 1, Tk, C)`.

        Returns:
            Dict of tensors, `query` `(B, 1, Tq, D * c)`, `value` and `key` `(B, 1, D, Tk, c)`, as
            far as they are given.
        """
        projected = {}
        if query is not None:
            projected["query"] = self.query_proj(query)
        if value is not None:
            projected["value"] = self._split_heads(self.value_proj(value))
        if key is not None:
            projected["key"] = self._split_heads(self.key_proj(key))
        return projected

    def _cheapest_form(self, query, key, attention_bias, projected=()):
        """One of three ways to the same numbers.

        A click has some 7 tokens, the image 4096. To multiply the tokens of all heads with the
        kernels, and the image with those products, takes half of what projecting the image takes,
        and no head of the image is ever moved in memory. Not if the image is the same for several
        prompts: it is projected once then.
        """
        few = self._inner_channels // self.num_heads  # tokens of all heads < inner channels
        queries, keys = query.shape[-2], key.shape[-2]
        projections = (self.query_proj, self.key_proj, self.value_proj, self.out_proj)
        if any(dense.quantization_mode for dense in projections):
            return self._project_all  # integer kernels multiply in their own layers alone
        if None in (queries, keys):
            return self._project_all
        is_shared = "key" in projected or _is_shared(key, query)
        if queries < min(few, keys) and not is_shared:
            return self._few_queries
        if keys < min(few, queries) and attention_bias is None:
            return self._few_keys
        return self._project_all

    def _project_all(self, query, value, key, key_mask, attention_bias, projected):
        if "query" not in projected:
            projected = {**self.project(query=query), **projected}
        if "key" not in projected:
            projected = {**self.project(value=value, key=key), **projected}
        query = self._split_heads(projected["query"])  # (B, [P,] D, Tq, c)
        key, value = projected["key"], projected["value"]  # (B, [P,] D, Tk, c)
        logits = ops.matmul(query * self._scale, _transposed(key))
        attention = _masked_softmax(logits, key_mask, attention_bias)
        return self.out_proj(_join_heads(ops.matmul(attention, value))), attention

    def _few_queries(self, query, value, key, key_mask, attention_bias, projected):
        query = self._split_heads(self.query_proj(query)) * self._scale  # (B, [P,] D, Tq, c)
        kernel, bias = self._kernel_by_head(self.key_proj, query)  # (D, C, c), (D, 1, c)
        products = ops.matmul(query, _transposed(kernel))  # (B, [P,] D, Tq, C)
        logits = backends.matmul_transposed(_merge(products, -3), key)
        # The bias adds the same to all logits of a query: nothing, but it has a gradient.
        logits = _split(logits, -2, self.num_heads) + ops.sum(query * bias, axis=-1, keepdims=True)
        attention = _masked_softmax(logits, key_mask, attention_bias)  # (B, [P,] D, Tq, Tk)
        kernel, bias = self._kernel_by_head(self.value_proj, query)
        seen = _split(backends.matmul(_merge(attention, -3), value), -2, self.num_heads)
        # A query's attention sums to 1, so its values' bias arrives whole.
        out = ops.matmul(seen, kernel) + bias  # (B, [P,] D, Tq, c)
        return self.out_proj(_join_heads(out)), attention

    def _few_keys(self, query, value, key, key_mask, attention_bias, projected):
        key = self._split_heads(self.key_proj(key)) * self._scale  # (B, [P,] D, Tk, c)
        value = self._split_heads(self.value_proj(value))
        if "query" in projected or _is_shared(query, key):
            shared = projected.get("query")
            shared = self.query_proj(query) if shared is None else shared
            # Each head's keys at its own channels, zeros elsewhere: (B, P, D, Tk, D, c).
            own = ops.reshape(ops.eye(self.num_heads, dtype=key.dtype), (self.num_heads, 1, -1, 1))
            products = _merge(ops.expand_dims(key, -2) * own, -2)
            logits = backends.matmul_transposed(_merge(products, -3), shared)
            logits = _split(logits, -2, self.num_heads)
        else:
            kernel, bias = self._kernel_by_head(self.query_proj, key)
            products = ops.matmul(key, _transposed(kernel))  # (B, [P,] D, Tk, C)
            logits = backends.matmul_transposed(_merge(products, -3), query)
            biases = ops.sum(key * bias, axis=-1, keepdims=True)
            logits = _split(logits, -2, self.num_heads) + biases
        # (B, [P,] D, Tk, Tq): the sums over keys run along the many queries.
        mask = None if key_mask is None else _transposed(key_mask)
        attention = _masked_softmax(logits, mask, None, axis=-2)
        kernel = _split(ops.cast(self.out_proj.kernel, value.dtype), 0, self.num_heads)
        # Each head's attention sums to 1, so an equal part of the bias in every product arrives
        # whole: added to few tokens instead of the many queries.
        bias = ops.cast(self.out_proj.bias, value.dtype) / self.num_heads
        products = _merge(ops.matmul(value, kernel) + bias, -3)  # (B, [P,] D * Tk, C)
        out = backends.matmul(_transposed(_merge(attention, -3)), products)  # (B, [P,] Tq, C)
        return out, _transposed(attention)

    @property
    def _scale(self):
        return (self._inner_channels // self.num_heads) ** -0.5

    def _kernel_by_head(self, dense, like):
        """A projection's kernel `(D, C, c)` and bias `(D, 1, c)`."""
        kernel = _split(ops.cast(dense.kernel, like.dtype), 1, self.num_heads)  # (C, D, c)
        bias = ops.reshape(ops.cast(dense.bias, like.dtype), (self.num_heads, 1, -1))
        return ops.transpose(kernel, (1, 0, 2)), bias

    def _split_heads(self, x):
        return ops.swapaxes(_split(x, -1, self.num_heads), -2, -3)

    def compute_output_shape(self, query_shape, value_shape=None, key_shape=None):
        return (*query_shape[:-1], self.num_heads * self.key_dim)

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "key_dim": self.key_dim,
            "downsample_rate": self.downsample_rate,
            "initializer_range": self.initializer_range,
        }


def _is_shared(x, other):
    """Whether all prompts of an image have one `x`, of what each has its own `other`."""
    return len(x.shape) == 4 and x.shape[1] == 1 and other.shape[1] != 1


def _transposed(x):
    return ops.swapaxes(x, -1, -2)


def _masked_softmax(logits, key_mask, attention_bias, axis=-1):
    if attention_bias is not None:
        logits = logits + ops.cast(attention_bias, logits.dtype)
    if key_mask is not None:
        logits = ops.where(key_mask, logits, ops.cast(_MASKED_LOGIT, logits.dtype))
    return backends.softmax_float32(logits, axis)


def _split(x, axis, parts):
    """Splits an axis into two, the first of size `parts`."""
    axis %= len(x.shape)
    shape = ops.shape(x)
    return ops.reshape(x, (*shape[:axis], parts, x.shape[axis] // parts, *shape[axis + 1 :]))


def _merge(x, axis):
    """Merges an axis and the next, the inverse of `_split`."""
    axis %= len(x.shape)
    shape = ops.shape(x)
    return ops.reshape(x, (*shape[:axis], x.shape[axis] * x.shape[axis + 1], *shape[axis + 2 :]))


def _join_heads(x):
    """`(..., D, T, c)` to `(..., T, D * c)`."""
    return _merge(ops.swapaxes(x, -2, -3), -2)
