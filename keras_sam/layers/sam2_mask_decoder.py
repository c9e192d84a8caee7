"""SAM 2's mask decoder: finer features of the image, and whether there is an object at all."""

import inspect
from typing import Any

import keras
from keras import ops

from keras_sam import backends
from keras_sam.layers.arguments import Shape, Tensor
from keras_sam.layers.mask_decoder import SAMMaskDecoder, first_of_best, to_masks
from keras_sam.layers.mask_upscaler import cells_of


@keras.saving.register_keras_serializable(package="keras_sam")
class SAM2MaskDecoder(SAMMaskDecoder):
    """Predicts masks, their quality, and whether the prompt's object is in the image.

    Differs from `SAMMaskDecoder` in four ways: finer features of the image are added while it is
    upscaled; one more token, the first, says whether there is an object; the predicted IoU goes
    through a sigmoid; and where one mask is asked for and mask 0 is unstable, the best candidate
    takes its place. A mask is unstable if few of the pixels above `-delta` are above `delta`.

    Args:
        dynamic_multimask_via_stability: bool. Whether the best candidate replaces an unstable
            mask 0. Never in training, nor where candidates are returned, too. Defaults to `True`.
        dynamic_multimask_stability_delta: float, logits. Defaults to `0.05`.
        dynamic_multimask_stability_thresh: float. From this part of the pixels on a mask is
            stable. Defaults to `0.98`.
        **kwargs: the arguments of `SAMMaskDecoder`.

    Call arguments:
        high_res_features_0: float tensor `(B, 4 Eh, 4 Ew, C / 8)`, or what `embed_features` made
            of it.
        high_res_features_1: float tensor `(B, 2 Eh, 2 Ew, C / 4)`, likewise.
        **kwargs: those of `SAMMaskDecoder`; the decoder's own tokens are `2 + K`.

    Returns:
        Dict as `SAMMaskDecoder` returns it, and `object_score` `(B, [P,])`, the logit of there
        being an object.

    Raises:
        ValueError: see `SAMMaskDecoder`, or if the finer features are missing.

    Source:
        Ravi et al. 2024, https://arxiv.org/abs/2408.00714, section 4;
        `modeling/sam/mask_decoder.py` of the package sam2 1.1.0.

    Example:

    ```python
    decoder = keras_sam.SAM2MaskDecoder(
        hidden_size=16, intermediate_dim=32, num_heads=2, iou_head_hidden_dim=16
    )
    outputs = decoder(
        image_embeddings=np.zeros((1, 4, 4, 16), "float32"),
        high_res_features_0=np.zeros((1, 16, 16, 2), "float32"),
        high_res_features_1=np.zeros((1, 8, 8, 4), "float32"),
        prompt_dense_positional_embeddings=np.zeros((1, 4, 4, 16), "float32"),
        prompt_sparse_embeddings=np.zeros((1, 2, 16), "float32"),
        prompt_dense_embeddings=np.zeros((1, 4, 4, 16), "float32"),
    )
    outputs["object_score"].shape  # (1,)
    ```
    """

    extra_outputs = ("object_score",)

    def __init__(
        self,
        *,
        dynamic_multimask_via_stability: bool = True,
        dynamic_multimask_stability_delta: float = 0.05,
        dynamic_multimask_stability_thresh: float = 0.98,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.dynamic_multimask_via_stability = dynamic_multimask_via_stability
        self.dynamic_multimask_stability_delta = dynamic_multimask_stability_delta
        self.dynamic_multimask_stability_thresh = dynamic_multimask_stability_thresh
        self.object_score_head = self._mlp(self.hidden_size, 1, 3, "object_score_head")

    def build(self, image_embeddings_shape: Shape | None = None, **shapes: Shape | None) -> None:
        super().build(image_embeddings_shape, **shapes)
        self.object_score_token = self._token_weights("object_score_token", 1)
        self.object_score_head.build((None, None, self.hidden_size))

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
        high_res_features_0: Tensor | None = None,
        high_res_features_1: Tensor | None = None,
    ) -> dict[str, Any]:
        if projected_image is None:
            projected_image = self._embed_image(
                image_embeddings,
                prompt_dense_embeddings,
                prompt_dense_positional_embeddings,
                (high_res_features_0, high_res_features_1),
            )
        return self._predict(
            projected_image,
            (prompt_sparse_embeddings, prompt_sparse_mask, attention_similarity, target_embedding),
            return_attentions,
            training,
            multimask_output=multimask_output,
        )

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        given = inspect.signature(self.call).bind(*args, **kwargs).arguments
        if given.get("projected_image") is None:
            _check_finer([given.get(f"high_res_features_{i}") for i in range(2)])
        return super().compute_output_spec(*args, **kwargs)

    def project_image(
        self,
        image_embeddings: Tensor,
        prompt_dense_embeddings: Tensor,
        prompt_dense_positional_embeddings: Tensor,
        high_res_features_0: Tensor | None = None,
        high_res_features_1: Tensor | None = None,
    ) -> dict[str, Any]:
        """`SAMMaskDecoder.project_image`, with the finer features."""
        image = self._embed_image(
            image_embeddings,
            prompt_dense_embeddings,
            prompt_dense_positional_embeddings,
            (high_res_features_0, high_res_features_1),
        )
        return self._add_projections(image)

    def embed_features(
        self, image_embeddings: Tensor, high_res_features_0: Tensor, high_res_features_1: Tensor
    ) -> dict[str, Tensor]:
        """The features in the order in which all prompts of an image add them, for `call`."""
        finer = self._finer_cells(
            (high_res_features_0, high_res_features_1), image_embeddings.shape[1:3]
        )
        return {
            "image_embeddings": image_embeddings,
            **{f"high_res_features_{i}": x for i, x in enumerate(finer)},
        }

    def feature_weights(self) -> list[keras.Variable]:
        """The variables that `embed_features` depends on: none."""
        return []

    def _finer_cells(self, finer, grid):
        """The two features, the finest first, as `cells_of` orders them, if they are not yet."""
        _check_finer(finer)
        finer = [ops.cast(x, self.compute_dtype) for x in finer]
        return [x if len(x.shape) == 3 else cells_of(x, grid) for x in finer]

    def _embed_image(self, embeddings, dense, positions, finer):
        image = super()._embed_image(embeddings, dense, positions)
        full, half = self._finer_cells(finer, self._grid(image))
        return {**image, "half": half, "full": full}

    def _own_tokens(self):
        return [self.object_score_token, *super()._own_tokens()]

    @property
    def num_own_tokens(self) -> int:
        return 1 + super().num_own_tokens

    def _upscale(self, image_tokens, image, training, finer=None):
        return super()._upscale(image_tokens, image, training, (image["half"], image["full"]))

    def _read_masks(self, tokens, pixels, image, training, multimask_output):
        is_one = multimask_output is not None and not multimask_output
        has_choice = self.dynamic_multimask_via_stability and self.num_multimask_outputs
        object_score = self.object_score_head(tokens[:, :, 0])[..., 0]  # (B, P)
        if is_one and has_choice and not training:
            products, scores = self._read_stable_mask(tokens, pixels)
        else:
            weights, scores = self._read_tokens(tokens, self._mask_numbers(multimask_output))
            products = backends.matmul(pixels, weights)
        masks = to_masks(products, self._grid(image))
        return {"masks": masks, "iou_pred": scores, "object_score": object_score}

    def _read_tokens(self, tokens, kept):
        weights, scores = super()._read_tokens(tokens[:, :, 1:], kept)
        return weights, ops.sigmoid(scores)

    def _read_stable_mask(self, tokens, pixels):
        """Mask 0, or, where that is unstable, the candidate with the highest predicted IoU.

        Products of unordered pixels `(B, P, 16 Eh Ew, 1)` and scores `(B, P, 1)`.
        """
        weights, scores = self._read_tokens(tokens, self._mask_numbers(None))
        best = ops.cast(ops.expand_dims(first_of_best(scores[..., 1:]), 2), weights.dtype)
        # The candidates that are not chosen are never multiplied with the pixels.
        weights = ops.stack([weights[..., 0], ops.sum(weights[..., 1:] * best, axis=-1)], axis=-1)
        products = backends.matmul(pixels, weights)  # (B, P, 16 Eh Ew, 2)
        stable = ops.expand_dims(self._is_stable(products[..., 0]), -1)  # (B, P, 1)
        return (
            ops.where(ops.expand_dims(stable, -1), products[..., :1], products[..., 1:]),
            ops.where(stable, scores[..., :1], ops.max(scores[..., 1:], axis=-1, keepdims=True)),
        )

    def _is_stable(self, logits):
        """Whether masks `(B, P, pixels)` hardly change if their threshold does: `(B, P)`."""
        delta = self.dynamic_multimask_stability_delta
        inner, outer = (
            ops.sum(ops.cast(logits > limit, "float32"), axis=-1) for limit in (delta, -delta)
        )
        stability = ops.where(outer > 0, inner / ops.maximum(outer, 1.0), 1.0)
        return stability >= self.dynamic_multimask_stability_thresh

    def get_config(self) -> dict[str, Any]:
        names = ("via_stability", "stability_delta", "stability_thresh")
        own = {f"dynamic_multimask_{n}": getattr(self, f"dynamic_multimask_{n}") for n in names}
        return {**super().get_config(), **own}


def _check_finer(finer):
    if any(x is None for x in finer):
        given = [f"high_res_features_{i}" for i, x in enumerate(finer) if x is not None]
        raise ValueError(
            "`high_res_features_0` and `high_res_features_1` must be given to SAM 2's decoder. "
            f"Received: {' and '.join(given) or 'neither'}. Its image encoder, `HieraBackbone`, "
            "returns them with `image_embeddings`."
        )
