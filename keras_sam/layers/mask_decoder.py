"""Embeddings to masks: tokens and image through the transformer, then one product per mask."""

import inspect
from typing import Any

import keras
from keras import ops

from keras_sam import backends
from keras_sam.layers.arguments import Activation, KeptArguments, Shape, Tensor
from keras_sam.layers.mask_upscaler import MaskUpscaler, depth_to_space
from keras_sam.layers.mlp import MLP
from keras_sam.layers.two_way_transformer import TwoWayTransformer


@keras.saving.register_keras_serializable(package="keras_sam")
class SAMMaskDecoder(KeptArguments, keras.layers.Layer):
    """Predicts masks and their quality from image and prompt embeddings.

    One learned token per mask and one for the quality join the prompt's tokens in the
    two-way transformer. Each mask token then becomes, through an MLP of its own, the
    weights of a product with the upscaled image features. Mask 0 is the one for
    unambiguous prompts, the others are candidates for ambiguous ones.

    Args:
        hidden_size: int. Channels `C`, a multiple of 8. Defaults to `256`.
        num_layers: int. Two-way blocks of the transformer. Defaults to `2`.
        intermediate_dim: int. Hidden channels of the transformer's MLPs. Defaults to `2048`.
        num_heads: int. Attention heads, `D`. Defaults to `8`.
        embedding_dim: optional int. Channels of the image embedding; equals `hidden_size`.
        num_multimask_outputs: int. Masks besides mask 0. Defaults to `3`.
        iou_head_depth: int. Dense layers of the quality head. Defaults to `3`.
        iou_head_hidden_dim: int. Its hidden channels. Defaults to `256`.
        activation: str or callable. Activation of the upscaling. Defaults to `"gelu"`.
        layer_norm_epsilon: float, of the upscaling. Defaults to `1e-6`.
        attention_downsample_rate: int. Defaults to `2`.
        skip_first_layer_pos_embedding: bool. Defaults to `True`.
        transformer_activation: str or callable. Activation of the transformer's MLPs.
            Defaults to `"relu"`.
        transformer_layer_norm_epsilon: float. Defaults to `1e-5`.
        dropout_rate: float. Dropout in the transformer; the paper trains with `0.1`.
        initializer_range: optional float. Standard deviation of the initial kernels and
            tokens; by default they start as in the released code.
        transformer: optional layer to use instead of a `TwoWayTransformer`. It is called
            as `transformer(image (B, P, Eh, Ew, C), positions (1, Eh, Ew, C),
            tokens (B, P, T, C), point_mask=(B, P, T))` and returns the tokens and the
            image `(B, P, Eh * Ew, C)`; the image's `P` is 1 while no prompt has a mask.

    Call arguments:
        image_embeddings: float tensor `(B, Eh, Ew, C)`; a batch of 1 serves all prompts.
        prompt_dense_positional_embeddings: float tensor `(1, Eh, Ew, C)`.
        prompt_sparse_embeddings: float tensor `(B, T, C)` or `(B, P, T, C)`.
        prompt_dense_embeddings: float tensor `(B, [P,] Eh, Ew, C)`; `P` may be 1.
        prompt_sparse_mask: optional bool tensor `(B, [P,] T)`, False where a token is padding.
        attention_similarity: optional float tensor that broadcasts to
            `(B, [P,] D, 1 + K + T, Eh * Ew)`: added to the logits of the blocks' attention
            from tokens to image (PerSAM).
        target_embedding: optional float tensor that broadcasts to
            `(B, [P,] 1 + K + T, C)`: added to the tokens before each block (PerSAM).
        return_attentions: bool. Also return the transformer's attention maps.
        projected_image: optional dict, what `project_image` returned, instead of
            `image_embeddings`, `prompt_dense_embeddings` and
            `prompt_dense_positional_embeddings`.
        multimask_output: optional bool. True makes the candidates alone, masks 1 to
            `num_multimask_outputs`, False mask 0 alone; by default all are made.

    Returns:
        Dict of `masks`, logits `(B, [P,] K, 4 Eh, 4 Ew)`, and `iou_pred` `(B, [P,] K)`, with
        `K = 1 + num_multimask_outputs`, or fewer by `multimask_output`; with
        `return_attentions=True` also `attentions`, see `TwoWayTransformer`.

    Raises:
        ValueError: if `embedding_dim` and `hidden_size` differ, or `hidden_size` is not a
            multiple of 8 and of `num_heads`.

    Source:
        Kirillov et al. 2023, https://arxiv.org/abs/2304.02643, figure 14.

    Example:

    ```python
    decoder = keras_sam.SAMMaskDecoder(
        hidden_size=16, intermediate_dim=32, num_heads=2, iou_head_hidden_dim=16
    )
    outputs = decoder(
        image_embeddings=np.zeros((1, 4, 4, 16), "float32"),
        prompt_dense_positional_embeddings=np.zeros((1, 4, 4, 16), "float32"),
        prompt_sparse_embeddings=np.zeros((1, 2, 16), "float32"),
        prompt_dense_embeddings=np.zeros((1, 4, 4, 16), "float32"),
    )
    outputs["masks"].shape  # (1, 4, 16, 16)
    ```
    """

    # Names of outputs `(B, [P,])` besides `masks` and `iou_pred`.
    extra_outputs: tuple[str, ...] = ()

    # Attributes that may be changed between calls, and are arguments of `call`.
    call_settings: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        hidden_size: int = 256,
        num_layers: int = 2,
        intermediate_dim: int = 2048,
        num_heads: int = 8,
        embedding_dim: int | None = None,
        num_multimask_outputs: int = 3,
        iou_head_depth: int = 3,
        iou_head_hidden_dim: int = 256,
        activation: Activation = "gelu",
        layer_norm_epsilon: float = 1e-6,
        attention_downsample_rate: int = 2,
        skip_first_layer_pos_embedding: bool = True,
        transformer_activation: Activation = "relu",
        transformer_layer_norm_epsilon: float = 1e-5,
        dropout_rate: float = 0.0,
        initializer_range: float | None = None,
        transformer: keras.layers.Layer | None = None,
        name: str = "mask_decoder",
        **kwargs: Any,
    ):
        super().__init__(name=name, **kwargs)
        if embedding_dim not in (None, hidden_size):
            raise ValueError(
                "`embedding_dim` must equal `hidden_size`: the image embedding is added to the "
                "prompt's. "
                f"Received: embedding_dim={embedding_dim}, hidden_size={hidden_size}."
            )
        embedding_dim = hidden_size
        self.keep_arguments(locals())
        self.num_mask_tokens = num_multimask_outputs + 1
        self.has_custom_transformer = transformer is not None
        self.transformer = transformer or TwoWayTransformer(
            num_layers=num_layers,
            hidden_size=hidden_size,
            num_heads=num_heads,
            intermediate_dim=intermediate_dim,
            activation=transformer_activation,
            attention_downsample_rate=attention_downsample_rate,
            skip_first_layer_pos_embedding=skip_first_layer_pos_embedding,
            layer_norm_epsilon=transformer_layer_norm_epsilon,
            dropout_rate=dropout_rate,
            initializer_range=initializer_range,
            dtype=self.dtype_policy,
            name="transformer",
        )
        self.output_upscaling = MaskUpscaler(
            hidden_size,
            activation=activation,
            layer_norm_epsilon=layer_norm_epsilon,
            initializer_range=initializer_range,
            dtype=self.dtype_policy,
            name="output_upscaling",
        )
        self.output_hypernetworks_mlps = [
            self._mlp(hidden_size, hidden_size // 8, 3, f"hypernetwork_{k}")
            for k in range(self.num_mask_tokens)
        ]
        self.iou_prediction_head = self._mlp(
            iou_head_hidden_dim, self.num_mask_tokens, iou_head_depth, "iou_prediction_head"
        )

    def _mlp(self, hidden_dim, output_dim, num_layers, name):
        return MLP(
            hidden_dim,
            output_dim,
            num_layers,
            initializer_range=self.initializer_range,
            dtype=self.dtype_policy,
            name=name,
        )

    def build(self, image_embeddings_shape: Shape | None = None, **shapes: Shape | None) -> None:
        self.iou_token = self._token_weights("iou_token", 1)
        self.mask_tokens = self._token_weights("mask_tokens", self.num_mask_tokens)
        tokens_shape = (None, None, self.hidden_size)
        if not self.transformer.built:
            self._build_transformer(image_embeddings_shape)
        self.output_upscaling.build()
        for head in (*self.output_hypernetworks_mlps, self.iou_prediction_head):
            head.build(tokens_shape)

    def _build_transformer(self, image_shape):
        """Makes its variables now: files are loaded before the first call would make them."""
        if isinstance(self.transformer, TwoWayTransformer):
            self.transformer.build((None, None, self.hidden_size))
        elif image_shape is not None:
            image, positions, tokens = self._transformer_specs((None, None), image_shape[1:3])
            mask = keras.KerasTensor(tokens.shape[:-1], dtype="bool")
            self.transformer(image, positions, tokens, point_mask=mask)

    def _transformer_specs(self, lead, grid, count=None):
        """Symbols of the image, its positions and `count` tokens, with leading axes `lead`."""
        shapes = ((*lead, *grid), (1, *grid), (*lead, count))
        return [keras.KerasTensor((*s, self.hidden_size), self.compute_dtype) for s in shapes]

    def _token_weights(self, name, count):
        stddev = 1.0 if self.initializer_range is None else self.initializer_range
        # One initializer per variable: used twice, it draws the same values twice.
        initializer = keras.initializers.RandomNormal(stddev=stddev)
        return self.add_weight(name=name, shape=(count, self.hidden_size), initializer=initializer)

    def call(
        self,
        image_embeddings: Tensor | None = None,
        prompt_dense_positional_embeddings: Tensor | None = None,
        prompt_sparse_embeddings: Tensor | None = None,
        prompt_dense_embeddings: Tensor | None = None,
        prompt_sparse_mask: Tensor | None = None,
        attention_similarity: Tensor | None = None,
        target_embedding: Tensor | None = None,
        return_attentions: bool = False,
        projected_image: dict[str, Tensor] | None = None,
        multimask_output: bool | None = None,
        training: bool | None = None,
    ) -> dict[str, Any]:
        if projected_image is None:
            projected_image = self._embed_image(
                image_embeddings, prompt_dense_embeddings, prompt_dense_positional_embeddings
            )
        return self._predict(
            projected_image,
            (prompt_sparse_embeddings, prompt_sparse_mask, attention_similarity, target_embedding),
            return_attentions,
            training,
            multimask_output=multimask_output,
        )

    def _embed_image(self, image_embeddings, prompt_dense_embeddings, positions):
        """What the masks need of the image, by name: the start of `project_image`."""
        dense = prompt_dense_embeddings
        dense = dense if len(dense.shape) == 5 else ops.expand_dims(dense, 1)
        image = ops.expand_dims(image_embeddings, 1) + dense  # (B, P, Eh, Ew, C)
        return {"image": image, "positions": positions}

    def _predict(self, image, per_prompt, return_attentions, training, **choices):
        """`call` with an image from `_embed_image` or `project_image`."""
        single_object = len(per_prompt[0].shape) == 3
        sparse, sparse_mask, similarity, target = (
            map(_add_prompt_axis, per_prompt) if single_object else per_prompt
        )
        tokens, token_mask = self._join_tokens(sparse, sparse_mask)
        tokens, image_tokens, *attentions = self.transformer(
            image["image"],
            image["positions"],
            tokens,
            point_mask=token_mask,
            **_present(
                attention_similarity=similarity,
                target_embedding=target,
                return_attentions=return_attentions or None,
                projected=image.get("transformer"),
            ),
            training=training,
        )
        pixels = self._upscale(image_tokens, image, training)
        outputs = self._read_masks(tokens, pixels, image, training, **choices)
        if single_object:
            outputs = {name: x[:, 0] for name, x in outputs.items()}
        if return_attentions:
            outputs["attentions"] = attentions[0]
        return outputs

    def _read_masks(self, tokens, pixels, image, training, multimask_output):
        """The masks and scores that the tokens ask of pixels `(B, P, 16 Eh Ew, C / 8)`."""
        weights, scores = self._read_tokens(tokens, self._mask_numbers(multimask_output))
        masks = to_masks(backends.matmul(pixels, weights), self._grid(image))
        return {"masks": masks, "iou_pred": scores}

    def _read_tokens(self, tokens, kept):
        """The weights `(B, P, C / 8, K)` and scores `(B, P, K)` of the masks with these numbers."""
        weights = [self.output_hypernetworks_mlps[k](tokens[:, :, 1 + k]) for k in kept]
        scores = self.iou_prediction_head(tokens[:, :, 0])
        return ops.stack(weights, axis=-1), scores[:, :, kept.start : kept.stop]

    def num_masks(self, multimask_output: bool | None = None) -> int:
        """How many masks `call` makes of a prompt with this `multimask_output`."""
        return len(self._mask_numbers(multimask_output))

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        bound = inspect.signature(self.call).bind(*args, **kwargs)
        given = {**bound.arguments, **bound.kwargs}
        *lead, count, _ = given["prompt_sparse_embeddings"].shape
        image = (given.get("projected_image") or {}).get("image", given.get("image_embeddings"))
        eh, ew = grid = image.shape[-3:-1]
        shape = (*lead, self.num_masks(given.get("multimask_output")))
        outputs = {
            "masks": keras.KerasTensor((*shape, 4 * eh, 4 * ew), dtype=self.compute_dtype),
            "iou_pred": keras.KerasTensor(shape, dtype=self.compute_dtype),
            **{n: keras.KerasTensor(lead, self.compute_dtype) for n in self.extra_outputs},
        }
        if given.get("return_attentions"):
            lead = (*lead, 1)[:2]  # the maps keep the axis P
            count = count and count + self.num_own_tokens
            specs = self._transformer_specs(lead, grid, count)
            *_, outputs["attentions"] = self.transformer.compute_output_spec(
                *specs, return_attentions=True
            )
        return outputs

    def project_image(
        self,
        image_embeddings: Tensor,
        prompt_dense_embeddings: Tensor,
        prompt_dense_positional_embeddings: Tensor,
    ) -> dict[str, Tensor]:
        """What all prompts without a mask have in common, to be computed once per image.

        Only with the decoder's own transformer. `prompt_dense_embeddings` `(B, 1, Eh, Ew, C)` are
        those of no mask. Returns a dict for the call argument `projected_image`.
        """
        image = self._embed_image(
            image_embeddings, prompt_dense_embeddings, prompt_dense_positional_embeddings
        )
        return self._add_projections(image)

    def _add_projections(self, image):
        projected = self.transformer.project_image(image["image"], image["positions"])
        return {**image, "transformer": projected}

    def _join_tokens(self, sparse, sparse_mask):
        """The decoder's own tokens, then the prompt's; and which of them are real."""
        own = ops.concatenate(self._own_tokens(), axis=0)
        lead = ops.shape(sparse)[:2]
        own = ops.broadcast_to(own, (*lead, *own.shape))
        tokens = ops.concatenate([own, ops.cast(sparse, own.dtype)], axis=2)  # (B, P, T', C)
        if sparse_mask is None:
            return tokens, None
        real = ops.ones((*lead, own.shape[2]), dtype="bool")
        return tokens, ops.concatenate([real, sparse_mask], axis=2)

    def _own_tokens(self):
        """The learned tokens, `(count, C)` each: the quality's, then the masks'."""
        return [self.iou_token, self.mask_tokens]

    @property
    def num_own_tokens(self) -> int:
        """How many learned tokens come before a prompt's."""
        return 1 + self.num_mask_tokens

    @staticmethod
    def _grid(image):
        """`(Eh, Ew)` of an image from `_embed_image`."""
        return image["positions"].shape[1:3]

    def _mask_numbers(self, multimask_output):
        numbers = range(self.num_mask_tokens)
        if multimask_output is None:
            return numbers
        return numbers[1:] if multimask_output else numbers[:1]

    def _upscale(self, image_tokens, image, training, finer=None):
        """Image tokens `(B, P, Eh * Ew, C)` to pixels `(B, P, 16 Eh Ew, C / 8)`, unordered."""
        eh, ew = self._grid(image)
        lead = ops.shape(image_tokens)[:2]
        x = ops.reshape(image_tokens, (-1, eh, ew, self.hidden_size))
        pixels = self.output_upscaling.upscale_unordered(x, training, finer)
        return ops.reshape(pixels, (*lead, 16 * eh * ew, self.hidden_size // 8))

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return config if self.has_custom_transformer else {**config, "transformer": None}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SAMMaskDecoder":
        config = dict(config)
        if config.get("transformer") is not None:
            # Without `build_config`: the decoder builds it, whose name starts its variables' paths.
            transformer = {k: v for k, v in config["transformer"].items() if k != "build_config"}
            config["transformer"] = keras.layers.deserialize(transformer)
        return cls(**config)


def _add_prompt_axis(x):
    return None if x is None else ops.expand_dims(x, 1)


def _present(**options):
    """The options that are used: a custom transformer need not know the others."""
    return {name: value for name, value in options.items() if value is not None}


def to_masks(products: Tensor, grid: tuple[int, int]) -> Tensor:
    """Products of unordered pixels and weights `(B, P, 16 Eh Ew, K)` to `(B, P, K, 4 Eh, 4 Ew)`."""
    (eh, ew), lead, count = grid, ops.shape(products)[:2], products.shape[-1]
    masks = depth_to_space(ops.reshape(products, (-1, 16 * eh * ew, count)), grid)
    return ops.reshape(ops.transpose(masks, (0, 3, 1, 2)), (*lead, count, 4 * eh, 4 * ew))


def first_of_best(scores: Tensor) -> Tensor:
    """1 for the highest score, of equal ones the first, and 0 for the others of `(B, P, K)`.

    By comparisons alone: LiteRT lacks an operator of Keras's `argmax` on TensorFlow, and for
    `one_hot` torch looks at the numbers, which no recorded program may.
    """
    count = scores.shape[-1]
    numbers = ops.arange(count)
    highest = ops.equal(scores, ops.max(scores, axis=-1, keepdims=True))
    first = ops.min(ops.where(highest, numbers, count), axis=-1, keepdims=True)
    return ops.cast(ops.equal(numbers, first), scores.dtype)
