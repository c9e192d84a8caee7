"""SAM 2's mask decoder: finer features of the image, and whether there is an object at all."""

from typing import Any

import keras
from keras import ops

from keras_sam import backends
from keras_sam.layers.arguments import Shape
from keras_sam.layers.mask_decoder import SAMMaskDecoder
from keras_sam.layers.mask_upscaler import space_to_depth


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
        high_res_features_0: float tensor `(B, 4 Eh, 4 Ew, C / 8)`.
        high_res_features_1: float tensor `(B, 2 Eh, 2 Ew, C / 4)`.
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

    feature_names = ("high_res_features_0", "high_res_features_1")
    extra_outputs = ("object_score",)
    _image_names = ("image", "positions", "half", "full")

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

    def _own_tokens(self):
        return [self.object_score_token, *super()._own_tokens()]

    def _image_parts(self, image_embeddings, dense, positions, **features):
        parts = super()._image_parts(image_embeddings, dense, positions, **features)
        grid = positions.shape[1:3]
        for part, name in (("full", "high_res_features_0"), ("half", "high_res_features_1")):
            finer = ops.cast(features[name], self.compute_dtype)
            parts[part] = ops.expand_dims(space_to_depth(finer, grid), 1)  # (B, 1, pixels, c)
        return parts

    def _read_tokens(self, tokens, pixels, multimask_output, training):
        is_one = multimask_output is not None and not multimask_output
        has_choice = self.dynamic_multimask_via_stability and self.num_multimask_outputs
        if is_one and has_choice and not training:
            outputs = self._stable_mask(tokens[:, :, 1:], pixels)
        else:
            outputs = super()._read_tokens(tokens[:, :, 1:], pixels, multimask_output, training)
            outputs["iou_pred"] = ops.sigmoid(outputs["iou_pred"])
        outputs["object_score"] = self.object_score_head(tokens[:, :, 0])[..., 0]
        return outputs

    def _stable_mask(self, tokens, pixels):
        """Mask 0, or, where that is unstable, the candidate with the highest predicted IoU."""
        scores = ops.sigmoid(self.iou_prediction_head(tokens[:, :, 0]))
        weights = self._mask_weights(tokens[:, :, 1:], self._mask_numbers(None))
        # Not `one_hot`, for which torch looks at the numbers, which no recorded program may.
        best = ops.argmax(scores[..., 1:], axis=-1, keepdims=True)  # (B, P, 1)
        best = ops.cast(ops.equal(ops.arange(self.num_multimask_outputs), best), weights.dtype)
        best = ops.expand_dims(best, 2)  # (B, P, 1, K - 1)
        # The candidates that are not chosen are never multiplied with the pixels.
        weights = ops.stack([weights[..., 0], ops.sum(weights[..., 1:] * best, axis=-1)], axis=-1)
        scores = ops.stack(
            [scores[..., 0], ops.sum(scores[..., 1:] * best[:, :, 0], axis=-1)], axis=-1
        )
        products = backends.matmul(pixels, weights)  # (B, P, 16 Eh Ew, 2)
        stable = ops.expand_dims(self._is_stable(products[..., 0]), -1)  # (B, P, 1)
        return {
            "masks": ops.where(ops.expand_dims(stable, -1), products[..., :1], products[..., 1:]),
            "iou_pred": ops.where(stable, scores[..., :1], scores[..., 1:]),
        }

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
