"""The mask decoder's transformer: tokens and image attend to each other, both ways."""

from typing import Any

import keras
from keras import ops

from keras_sam.layers.arguments import Activation, KeptArguments, Shape, Tensor
from keras_sam.layers.dense import LayerNormalization
from keras_sam.layers.mlp import MLP
from keras_sam.layers.multi_head_attention import MultiHeadAttentionWithDownsampling


@keras.saving.register_keras_serializable(package="keras_sam")
class TwoWayMultiHeadAttention(KeptArguments, keras.layers.Layer):
    """One two-way block: attention among tokens, from tokens to image, and from image to tokens.

    Four steps, each with a residual connection and a layer norm: self-attention of the
    tokens, attention from tokens to image, an MLP on the tokens, attention from image to
    tokens.

    Args:
        num_heads: int. Number of heads, `D`.
        key_dim: int. Channels per head before downsampling.
        intermediate_dim: int. Hidden channels of the MLP.
        skip_first_layer_pos_embedding: bool. Whether the self-attention runs without
            positional encoding and without residual connection, as in the first block.
        attention_downsample_rate: int. Narrows the heads of the two cross-attentions.
            Defaults to `2`.
        activation: str or callable. Activation of the MLP. Defaults to `"relu"`.
        layer_norm_epsilon: float. Defaults to `1e-5`.
        dropout_rate: float. Dropout of every residual branch in training.
        initializer_range: see `MultiHeadAttentionWithDownsampling`.

    Call arguments:
        queries: float tensor `(B, [P,] T, C)`, the tokens.
        keys: float tensor `(B, [P,] Eh * Ew, C)`, the image; `P` may be 1 while the
            prompts still share it.
        query_pos_embedding: float tensor, shaped as `queries`.
        key_pos_embedding: float tensor that broadcasts to `keys`.
        query_mask: optional bool tensor `(B, [P,] T)`, False where a token is padding.
        attention_similarity: optional float tensor that broadcasts to
            `(B, [P,] D, T, Eh * Ew)`, added to the logits of the attention from tokens
            to image.
        return_attention: bool. Also return the three attention maps.
        projected: optional dict, what `project_image` returned for these `keys`.

    Returns:
        Tuple of the updated `queries` and `keys`; with `return_attention=True` also a
        dict of the maps `self_attention`, `token_to_image`, `image_to_token`.

    Source:
        Kirillov et al. 2023, https://arxiv.org/abs/2304.02643, figure 14.

    Example:

    ```python
    block = keras_sam.TwoWayMultiHeadAttention(
        num_heads=2, key_dim=8, intermediate_dim=20, skip_first_layer_pos_embedding=False
    )
    tokens, image = np.zeros((1, 7, 16), "float32"), np.zeros((1, 99, 16), "float32")
    queries, keys = block(tokens, image, tokens, image)
    keys.shape  # (1, 99, 16)
    ```
    """

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        intermediate_dim: int,
        skip_first_layer_pos_embedding: bool,
        attention_downsample_rate: int = 2,
        activation: Activation = "relu",
        layer_norm_epsilon: float = 1e-5,
        dropout_rate: float = 0.0,
        initializer_range: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.keep_arguments(locals())
        self.self_attention = self._attention(1, "self_attention")
        self.layer_norm1 = self._norm("layer_norm1")
        self.cross_attention_token_to_image = self._attention(
            attention_downsample_rate, "cross_attention_token_to_image"
        )
        self.layer_norm2 = self._norm("layer_norm2")
        self.mlp = MLP(
            intermediate_dim,
            num_heads * key_dim,
            num_layers=2,
            activation=activation,
            initializer_range=initializer_range,
            dtype=self.dtype_policy,
            name="mlp",
        )
        self.layer_norm3 = self._norm("layer_norm3")
        self.cross_attention_image_to_token = self._attention(
            attention_downsample_rate, "cross_attention_image_to_token"
        )
        self.layer_norm4 = self._norm("layer_norm4")
        self.dropout = keras.layers.Dropout(dropout_rate, dtype=self.dtype_policy, name="dropout")

    def _attention(self, downsample_rate, name):
        return MultiHeadAttentionWithDownsampling(
            self.num_heads,
            self.key_dim,
            downsample_rate,
            initializer_range=self.initializer_range,
            dtype=self.dtype_policy,
            name=name,
        )

    def _norm(self, name):
        return LayerNormalization(
            epsilon=self.layer_norm_epsilon, dtype=self.dtype_policy, name=name
        )

    def build(self, input_shape: Shape | None = None, **shapes: Shape | None) -> None:
        shape = (None, None, self.num_heads * self.key_dim)
        self.self_attention.build(shape)
        self.cross_attention_token_to_image.build(shape)
        self.cross_attention_image_to_token.build(shape)
        self.mlp.build(shape)
        for norm in (self.layer_norm1, self.layer_norm2, self.layer_norm3, self.layer_norm4):
            norm.build(shape)

    def call(
        self,
        queries: Tensor,
        keys: Tensor,
        query_pos_embedding: Tensor,
        key_pos_embedding: Tensor,
        query_mask: Tensor | None = None,
        attention_similarity: Tensor | None = None,
        return_attention: bool = False,
        projected: dict[str, Tensor] | None = None,
        training: bool | None = None,
    ) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, dict[str, Tensor]]:
        # Of the image, one attention takes keys and values, the other queries.
        projected = projected or {}
        projected_keys = {name: x for name, x in projected.items() if name != "query"}
        projected_query = {name: x for name, x in projected.items() if name == "query"}
        positioned = queries
        if not self.skip_first_layer_pos_embedding:
            positioned = queries + query_pos_embedding
        out, self_map = self.self_attention(
            positioned, queries, positioned, key_mask=query_mask, return_attention=True
        )
        out = self._drop(out, training)
        queries = self.layer_norm1(out if self.skip_first_layer_pos_embedding else queries + out)

        positioned_keys = keys + key_pos_embedding
        out, token_map = self.cross_attention_token_to_image(
            queries + query_pos_embedding,
            keys,
            positioned_keys,
            attention_bias=attention_similarity,
            return_attention=True,
            projected=projected_keys,
        )
        queries = self.layer_norm2(queries + self._drop(out, training))

        out = self.mlp(queries, training=training)
        queries = self.layer_norm3(queries + self._drop(out, training))

        out, image_map = self.cross_attention_image_to_token(
            positioned_keys,
            queries,
            queries + query_pos_embedding,
            key_mask=query_mask,
            return_attention=True,
            projected=projected_query,
        )
        keys = self.layer_norm4(keys + self._drop(out, training))
        if not return_attention:
            return queries, keys
        # In alphabetical order, as Keras has them in the specs of symbolic calls.
        maps = {
            "image_to_token": image_map,
            "self_attention": self_map,
            "token_to_image": token_map,
        }
        return queries, keys, maps

    def project_image(self, keys: Tensor, key_pos_embedding: Tensor) -> dict[str, Tensor]:
        """Projects an image for the two cross-attentions: the part that no token changes.

        The image `(B, 1, Eh * Ew, C)` is one that all prompts share.
        """
        positioned = keys + key_pos_embedding
        return {
            **self.cross_attention_token_to_image.project(value=keys, key=positioned),
            **self.cross_attention_image_to_token.project(query=positioned),
        }

    def _drop(self, x, training):
        return self.dropout(x, training=training) if self.dropout_rate else x


@keras.saving.register_keras_serializable(package="keras_sam")
class TwoWayTransformer(KeptArguments, keras.layers.Layer):
    """The decoder's transformer: two-way blocks, then attention from the tokens to the image.

    Positional encodings are added to the image whenever it takes part in attention, and
    the original tokens are added back to the queries likewise.

    Args:
        num_layers: int. Number of two-way blocks. Defaults to `2`.
        hidden_size: int. Channels `C`. Defaults to `256`.
        num_heads: int. Number of heads, `D`. Defaults to `8`.
        intermediate_dim: int. Hidden channels of the blocks' MLPs. Defaults to `2048`.
        activation: str or callable. Activation of the MLPs. Defaults to `"relu"`.
        attention_downsample_rate: int. See `TwoWayMultiHeadAttention`. Defaults to `2`.
        skip_first_layer_pos_embedding: bool. Whether the first block's self-attention
            runs without positional encoding and residual. Defaults to `True`.
        layer_norm_epsilon: float. Defaults to `1e-5`.
        dropout_rate: float. Dropout of every residual branch in training; the paper
            trains with `0.1`.
        initializer_range: see `MultiHeadAttentionWithDownsampling`.

    Call arguments:
        image_embedding: float tensor `(B, Eh, Ew, C)`, or `(B, P, Eh, Ew, C)` where `P`
            may be 1 while all prompts of an image share it.
        image_positional_embeddings: float tensor `(1, Eh, Ew, C)` or `(B, Eh, Ew, C)`.
        point_embedding: float tensor `(B, T, C)`, or `(B, P, T, C)`, the tokens.
        point_mask: optional bool tensor `(B, T)` or `(B, P, T)`, False where a token is
            padding.
        attention_similarity: optional float tensor, see `TwoWayMultiHeadAttention`.
        target_embedding: optional float tensor that broadcasts to `point_embedding`,
            added to the tokens before every block (PerSAM's target-semantic prompting).
        return_attentions: bool. Also return all attention maps.
        projected: optional dict, what `project_image` returned for this image.

    Returns:
        Tuple of the tokens `(B, [P,] T, C)` and the image `(B, [P,] Eh * Ew, C)`; with
        `return_attentions=True` also a list with one dict of maps per block, and one for
        the last attention.

    Raises:
        ValueError: if `num_heads` does not divide `hidden_size`.

    Source:
        Kirillov et al. 2023, https://arxiv.org/abs/2304.02643, appendix A;
        Zhang et al. 2023, https://arxiv.org/abs/2305.03048 (the two PerSAM hooks).

    Example:

    ```python
    transformer = keras_sam.TwoWayTransformer(hidden_size=16, num_heads=2, intermediate_dim=20)
    grid = np.zeros((1, 9, 11, 16), "float32")
    tokens, image = transformer(grid, grid, np.zeros((1, 7, 16), "float32"))
    image.shape  # (1, 99, 16)
    ```
    """

    def __init__(
        self,
        *,
        num_layers: int = 2,
        hidden_size: int = 256,
        num_heads: int = 8,
        intermediate_dim: int = 2048,
        activation: Activation = "relu",
        attention_downsample_rate: int = 2,
        skip_first_layer_pos_embedding: bool = True,
        layer_norm_epsilon: float = 1e-5,
        dropout_rate: float = 0.0,
        initializer_range: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if hidden_size % num_heads:
            raise ValueError(
                "`num_heads` must divide `hidden_size`. "
                f"Received: hidden_size={hidden_size}, num_heads={num_heads}."
            )
        self.keep_arguments(locals())
        key_dim = hidden_size // num_heads
        self.blocks = [
            TwoWayMultiHeadAttention(
                num_heads,
                key_dim,
                intermediate_dim,
                skip_first_layer_pos_embedding=skip_first_layer_pos_embedding and i == 0,
                attention_downsample_rate=attention_downsample_rate,
                activation=activation,
                layer_norm_epsilon=layer_norm_epsilon,
                dropout_rate=dropout_rate,
                initializer_range=initializer_range,
                dtype=self.dtype_policy,
                name=f"layer_{i}",
            )
            for i in range(num_layers)
        ]
        self.final_attention_token_to_image = MultiHeadAttentionWithDownsampling(
            num_heads,
            key_dim,
            attention_downsample_rate,
            initializer_range=initializer_range,
            dtype=self.dtype_policy,
            name="final_attention_token_to_image",
        )
        self.final_layer_norm = LayerNormalization(
            epsilon=layer_norm_epsilon, dtype=self.dtype_policy, name="final_layer_norm"
        )
        self.dropout = keras.layers.Dropout(dropout_rate, dtype=self.dtype_policy, name="dropout")

    def build(self, input_shape: Shape | None = None, **shapes: Shape | None) -> None:
        shape = (None, None, self.hidden_size)
        for block in self.blocks:
            block.build(shape)
        self.final_attention_token_to_image.build(shape)
        self.final_layer_norm.build(shape)

    def call(
        self,
        image_embedding: Tensor,
        image_positional_embeddings: Tensor,
        point_embedding: Tensor,
        point_mask: Tensor | None = None,
        attention_similarity: Tensor | None = None,
        target_embedding: Tensor | None = None,
        return_attentions: bool = False,
        projected: dict[str, Tensor] | None = None,
        training: bool | None = None,
    ) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
        keys = _flatten_grid(image_embedding)  # (B, [P,] Eh * Ew, C)
        key_positions = _flatten_grid(image_positional_embeddings)
        if len(keys.shape) == 4:
            key_positions = ops.expand_dims(key_positions, 1)
        if target_embedding is not None:
            # PerSAM adds the target to the tokens themselves before the first block, so the
            # tokens that serve as their positional encoding carry it too.
            target_embedding = ops.cast(target_embedding, point_embedding.dtype)
            point_embedding = point_embedding + target_embedding
        queries = point_embedding
        attentions = []
        for i, block in enumerate(self.blocks):
            if target_embedding is not None and i > 0:
                queries = queries + target_embedding
            queries, keys, maps = block(
                queries,
                keys,
                point_embedding,
                key_positions,
                query_mask=point_mask,
                attention_similarity=attention_similarity,
                return_attention=True,
                projected=projected if i == 0 else None,
                training=training,
            )
            attentions.append(maps)
        out, final_map = self.final_attention_token_to_image(
            queries + point_embedding, keys, keys + key_positions, return_attention=True
        )
        if self.dropout_rate:
            out = self.dropout(out, training=training)
        queries = self.final_layer_norm(queries + out)
        if not return_attentions:
            return queries, keys
        return queries, keys, [*attentions, {"token_to_image": final_map}]

    def project_image(
        self, image_embedding: Tensor, image_positional_embeddings: Tensor
    ) -> dict[str, Tensor]:
        """`TwoWayMultiHeadAttention.project_image` of the first block."""
        positions = ops.expand_dims(_flatten_grid(image_positional_embeddings), 1)
        return self.blocks[0].project_image(_flatten_grid(image_embedding), positions)


def _flatten_grid(x):
    """`(..., Eh, Ew, C)` to `(..., Eh * Ew, C)`."""
    return ops.reshape(x, (*ops.shape(x)[:-3], x.shape[-3] * x.shape[-2], x.shape[-1]))
