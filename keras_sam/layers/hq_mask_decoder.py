"""SAM-HQ's mask decoder: one more token, which reads finer image features."""

import inspect
from typing import Any

import keras
from keras import ops

from keras_sam import backends
from keras_sam.layers.arguments import Activation, KeptArguments, Shape, Tensor
from keras_sam.layers.dense import LayerNormalization
from keras_sam.layers.initialization import build_part
from keras_sam.layers.mask_decoder import SAMMaskDecoder, first_of_best, to_masks
from keras_sam.layers.mask_upscaler import MaskUpscaler, depth_to_space


@keras.saving.register_keras_serializable(package="keras_sam")
class SAMHQMaskDecoder(SAMMaskDecoder):
    """`SAMMaskDecoder` with SAM-HQ's token, whose mask refines those of the others.

    The token's mask is a product with features of three sources: the upscaled image that the
    other masks are read from, after two more convolutions, the image embedding, and early features
    of the image encoder, which still have the edges. It is added to each of the other masks. The
    scores are those of the masks before.

    With `multimask_output=True` one mask is made, as in the released code: of the candidates, the
    one with the highest score.

    Args:
        early_dim: int. Channels of `early_features`: for a `ViTDetBackbone`, its `hidden_size`.
        hq_token_only: bool. Whether the token's mask alone is returned, in the place of each sum.
            Defaults to `False`.
        **kwargs: the arguments of `SAMMaskDecoder`.

    Call arguments:
        image_embeddings: this and the others that are not named here as in `SAMMaskDecoder`, with
            `2 + K + T` tokens in place of `1 + K + T`.
        early_features: float tensor `(B, Eh, Ew, early_dim)`, needed unless there is
            `hq_features` or `projected_image`.
        hq_features: optional float tensor, what `embed_features` returned, instead of
            `early_features`.
        hq_token_only: optional bool. Defaults to the constructor's.
        multimask_output: optional bool. True makes one mask, the best of the candidates by their
            scores, False mask 0 alone; by default all are made.

    Returns:
        Dict of `masks`, logits `(B, [P,] K, 4 Eh, 4 Ew)`, and `iou_pred` `(B, [P,] K)`, with
        `K = 1 + num_multimask_outputs`, or 1 with a `multimask_output`; `attentions` as in
        `SAMMaskDecoder`.

    Raises:
        ValueError: as in `SAMMaskDecoder`, and if `early_features` are missing.

    Source:
        Ke et al. 2023, https://arxiv.org/abs/2306.01567, section 3.2.

    Example:

    ```python
    decoder = keras_sam.SAMHQMaskDecoder(
        early_dim=12, hidden_size=16, intermediate_dim=32, num_heads=2, iou_head_hidden_dim=16
    )
    outputs = decoder(
        image_embeddings=np.zeros((1, 4, 4, 16), "float32"),
        early_features=np.zeros((1, 4, 4, 12), "float32"),
        prompt_dense_positional_embeddings=np.zeros((1, 4, 4, 16), "float32"),
        prompt_sparse_embeddings=np.zeros((1, 2, 16), "float32"),
        prompt_dense_embeddings=np.zeros((1, 4, 4, 16), "float32"),
    )
    outputs["masks"].shape  # (1, 4, 16, 16)
    ```
    """

    call_settings = ("hq_token_only",)

    def __init__(self, *, early_dim: int, hq_token_only: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.early_dim = early_dim
        self.hq_token_only = hq_token_only
        size = self.hidden_size
        self.hq_mlp = self._mlp(size, size // 8, 3, "hq_mlp")
        self.early_upscaling = self._upscaler("early_upscaling", early_dim, size)
        self.embedding_upscaling = self._upscaler("embedding_upscaling", size, size // 4)
        self.mask_refinement = MaskRefinement(
            size // 8,
            activation=self.activation,
            layer_norm_epsilon=self.layer_norm_epsilon,
            initializer_range=self.initializer_range,
            dtype=self.dtype_policy,
            name="mask_refinement",
        )

    def _upscaler(self, name, input_dim, inner_dim):
        return MaskUpscaler(
            self.hidden_size,
            activation=self.activation,
            layer_norm_epsilon=self.layer_norm_epsilon,
            initializer_range=self.initializer_range,
            input_dim=input_dim,
            inner_dim=inner_dim,
            activates_output=False,
            dtype=self.dtype_policy,
            name=name,
        )

    def hq_weights(self) -> list[keras.Variable]:
        """The variables that SAM's decoder lacks, which are what SAM-HQ trained."""
        layers = (self.hq_mlp, self.early_upscaling, self.embedding_upscaling, self.mask_refinement)
        return [self.hq_token, *(v for layer in layers for v in layer.weights)]

    def build(self, image_embeddings_shape: Shape | None = None, **shapes: Shape | None) -> None:
        super().build(image_embeddings_shape, **shapes)
        self.hq_token = self._token_weights("hq_token", 1)
        self.hq_mlp.build((None, None, self.hidden_size))
        for layer in (self.early_upscaling, self.embedding_upscaling, self.mask_refinement):
            layer.build()

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
        early_features: Tensor | None = None,
        hq_features: Tensor | None = None,
        hq_token_only: bool | None = None,
    ) -> dict[str, Any]:
        if projected_image is None:
            projected_image = self._embed_image(
                image_embeddings,
                prompt_dense_embeddings,
                prompt_dense_positional_embeddings,
                early_features,
                hq_features,
                training,
            )
        return self._predict(
            projected_image,
            (prompt_sparse_embeddings, prompt_sparse_mask, attention_similarity, target_embedding),
            return_attentions,
            training,
            multimask_output=multimask_output,
            hq_token_only=self.hq_token_only if hq_token_only is None else hq_token_only,
        )

    def project_image(
        self,
        image_embeddings: Tensor,
        prompt_dense_embeddings: Tensor,
        prompt_dense_positional_embeddings: Tensor,
        early_features: Tensor | None = None,
        hq_features: Tensor | None = None,
    ) -> dict[str, Any]:
        """`SAMMaskDecoder.project_image`, and what is the image's of the token's features."""
        image = self._embed_image(
            image_embeddings,
            prompt_dense_embeddings,
            prompt_dense_positional_embeddings,
            early_features,
            hq_features,
        )
        return self._add_projections(image)

    def embed_features(
        self, image_embeddings: Tensor, early_features: Tensor, training: bool | None = None
    ) -> dict[str, Tensor]:
        """What the token's mask needs of an image alone, to be computed once for all its prompts.

        Returns a dict of `image_embeddings` and `hq_features` `(B, 16 Eh Ew, C / 8)`, arguments of
        `call`.
        """
        self._check_early(early_features)
        early = self.early_upscaling.upscale_unordered(early_features, training)
        late = self.embedding_upscaling.upscale_unordered(image_embeddings, training)
        return {"image_embeddings": image_embeddings, "hq_features": early + late}

    def feature_weights(self) -> list[keras.Variable]:
        """The variables that `embed_features` depends on."""
        return [*self.early_upscaling.weights, *self.embedding_upscaling.weights]

    def _embed_image(
        self, embeddings, dense, positions, early_features, hq_features=None, training=None
    ):
        image = super()._embed_image(embeddings, dense, positions)
        if hq_features is None:
            hq_features = self.embed_features(embeddings, early_features, training)["hq_features"]
        return {**image, "hq_features": ops.expand_dims(hq_features, 1)}

    def _check_early(self, early_features):
        """Raises unless these are features of as many channels as the decoder is made for."""
        if early_features is None:
            raise ValueError(
                "`early_features` must be given to SAM-HQ's decoder, of shape "
                f"(B, Eh, Ew, {self.early_dim}). Received: None. An image encoder that is made "
                "with `early_features=True` returns them."
            )
        if early_features.shape[-1] != self.early_dim:
            raise ValueError(
                "`early_features` must have as many channels as `early_dim` of SAM-HQ's decoder, "
                f"here {self.early_dim}. Received: shape={tuple(early_features.shape)}. A decoder "
                "is for one width of image encoders."
            )

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        given = inspect.signature(self.call).bind(*args, **kwargs).arguments
        if given.get("projected_image") is None and given.get("hq_features") is None:
            self._check_early(given.get("early_features"))
        return super().compute_output_spec(*args, **kwargs)

    def _own_tokens(self):
        return [*super()._own_tokens(), self.hq_token]

    @property
    def num_own_tokens(self) -> int:
        return 1 + super().num_own_tokens

    def num_masks(self, multimask_output: bool | None = None) -> int:
        return super().num_masks() if multimask_output is None else 1

    def _read_masks(self, tokens, pixels, image, training, multimask_output, hq_token_only):
        grid = self._grid(image)
        weights, scores = self._read_tokens(tokens, self._mask_numbers(multimask_output))
        if multimask_output:
            is_best = first_of_best(scores)
            weights = ops.sum(weights * ops.expand_dims(is_best, 2), axis=-1, keepdims=True)
            scores = ops.sum(scores * is_best, axis=-1, keepdims=True)
        masks = self._read_hq_mask(tokens, pixels, image["hq_features"], grid, training)
        if hq_token_only:
            masks = ops.repeat(masks, scores.shape[-1], axis=2)
        else:
            masks = masks + to_masks(backends.matmul(pixels, weights), grid)
        return {"masks": masks, "iou_pred": scores}

    def _read_hq_mask(self, tokens, pixels, features, grid, training):
        """The mask `(B, P, 1, 4 Eh, 4 Ew)` of the token, which is the last of the decoder's own."""
        weights = ops.expand_dims(self.hq_mlp(tokens[:, :, self.num_own_tokens - 1]), -1)
        ordered = depth_to_space(ops.reshape(pixels, (-1, *pixels.shape[2:])), grid)
        flat = ops.reshape(weights, (-1, weights.shape[2]))
        refined = self.mask_refinement.read(ordered, flat, training)
        mask = to_masks(backends.matmul(features, weights), grid)
        return mask + ops.reshape(refined, ops.shape(mask))

    def get_config(self) -> dict[str, Any]:
        own = {"early_dim": self.early_dim, "hq_token_only": self.hq_token_only}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="keras_sam")
class MaskRefinement(KeptArguments, keras.layers.Layer):
    """Two convolutions of 3 x 3 pixels, with a norm and an activation between them.

    Args:
        filters: int. Channels of the input and the output; there are twice as many between them.
        activation, layer_norm_epsilon, initializer_range: those of `SAMMaskDecoder`.

    Call arguments:
        x: float tensor `(B, 4 Eh, 4 Ew, filters)`.

    Returns:
        Float tensor of the same shape.
    """

    def __init__(
        self,
        filters: int,
        activation: Activation = "gelu",
        layer_norm_epsilon: float = 1e-6,
        initializer_range: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.keep_arguments(locals())
        policy = self.dtype_policy
        self.conv1 = keras.layers.Conv2D(2 * filters, 3, padding="same", dtype=policy, name="conv1")
        self.norm1 = LayerNormalization(epsilon=layer_norm_epsilon, dtype=policy, name="norm1")
        self.conv2 = keras.layers.Conv2D(filters, 3, padding="same", dtype=policy, name="conv2")

    def build(self, input_shape: Shape | None = None) -> None:
        inner = (None, None, None, 2 * self.filters)
        build_part(self.conv1, (None, None, None, self.filters), self.initializer_range)
        self.norm1.build(inner)
        build_part(self.conv2, inner, self.initializer_range)

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        return self.conv2(self._features(x, training))

    def read(self, x: Tensor, weights: Tensor, training: bool | None = None) -> Tensor:
        """The products `(B, 4 Eh, 4 Ew)` of what `call` returns and `weights` `(B, filters)`.

        The weights are multiplied with the second convolution's kernel: one output channel in place
        of `filters`, and so half of the layer's multiplications. The nine products of a pixel then
        go to its neighbours.
        """
        x = self._features(x, training)
        h, w, channels = x.shape[1:]
        kernel = ops.reshape(ops.cast(self.conv2.kernel, x.dtype), (9 * channels, self.filters))
        kernel = ops.matmul(weights, ops.transpose(kernel))  # (B, 9 * channels)
        # Not -1, which LiteRT's converter would take for a length.
        kernel = ops.reshape(kernel, (ops.shape(weights)[0], 9, channels))
        kernel = ops.transpose(kernel, (0, 2, 1))
        bias = ops.matmul(weights, ops.cast(self.conv2.bias, x.dtype))  # (B,)
        products = backends.matmul(ops.reshape(x, (-1, h * w, channels)), kernel)  # (B, h w, 9)
        products = ops.reshape(ops.transpose(products, (0, 2, 1)), (-1, 9, h, w))
        products = ops.pad(products, [(0, 0), (0, 0), (1, 1), (1, 1)])
        moved = [products[:, 3 * i + j, i : i + h, j : j + w] for i in range(3) for j in range(3)]
        return sum(moved, ops.reshape(bias, (-1, 1, 1)))

    def _features(self, x, training):
        kernel, bias = (ops.convert_to_tensor(v) for v in (self.conv1.kernel, self.conv1.bias))
        x = backends.convolve(x, kernel, bias, training=training)  # one pass, bias included
        x = self.norm1(x, training=training)
        return backends.activate(x, self.activation, training)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)
