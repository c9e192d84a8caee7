"""SAM's training loss: focal, dice and predicted IoU, for the masks that a prompt trains."""

import dataclasses
from typing import Any, TypeAlias

from keras import ops

Tensor: TypeAlias = Any  # of the running backend

VOID = 255


def focal_loss(
    logits: Tensor, targets: Tensor, valid: Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Sigmoid focal loss, averaged over the pixels that count.

    Args:
        logits: float32 tensor `(..., L, L)`.
        targets: float32 tensor that broadcasts to it, 0 or 1.
        valid: float32 tensor that broadcasts to it, 0 for void pixels, otherwise 1.
        alpha: float. Weight of foreground pixels; background has `1 - alpha`.
        gamma: float. Higher values give pixels that are already right less weight.

    Returns:
        Float32 tensor `(...)`.

    Source:
        Lin et al. 2017, https://arxiv.org/abs/1708.02002.
    """
    logits, targets, valid = map(ops.convert_to_tensor, (logits, targets, valid))
    # log(sigmoid(x)) = -softplus(-x) keeps confident logits finite.
    cross_entropy = ops.softplus(logits) - logits * targets
    probability = ops.sigmoid(logits)
    miss = probability + targets - 2.0 * probability * targets  # 1 - p of the true class
    weight = alpha * targets + (1.0 - alpha) * (1.0 - targets)
    loss = weight * miss**gamma * cross_entropy * valid
    return _sum_pixels(loss) / ops.maximum(_sum_pixels(valid), 1.0)


def dice_loss(logits: Tensor, targets: Tensor, valid: Tensor, smooth: float = 1.0) -> Tensor:
    """One minus the dice coefficient of probabilities and target, over the pixels that count.

    Args:
        logits: float32 tensor `(..., L, L)`.
        targets: float32 tensor that broadcasts to it, 0 or 1.
        valid: float32 tensor that broadcasts to it, 0 for void pixels, otherwise 1.
        smooth: float. Added to numerator and denominator.

    Returns:
        Float32 tensor `(...)`.

    Source:
        Milletari et al. 2016, https://arxiv.org/abs/1606.04797.
    """
    logits, targets, valid = map(ops.convert_to_tensor, (logits, targets, valid))
    probability = ops.sigmoid(logits) * valid
    targets = targets * valid
    overlap = 2.0 * _sum_pixels(probability * targets)
    total = _sum_pixels(probability) + _sum_pixels(targets)
    return 1.0 - (overlap + smooth) / (total + smooth)


def mask_iou(logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Intersection over union of `logits > 0` with the target, over the pixels that count.

    The form for tensors; `keras_sam.masks.mask_iou` is the one for arrays.

    Args:
        logits: float tensor `(..., L, L)`.
        targets: float32 tensor that broadcasts to it, 0 or 1.
        valid: float32 tensor that broadcasts to it, 0 for void pixels, otherwise 1.

    Returns:
        Float32 tensor `(...)`; 1 where both are empty.
    """
    targets, valid = map(ops.convert_to_tensor, (targets, valid))
    predicted = ops.cast(logits > 0, "float32") * valid
    targets = targets * valid
    intersection = _sum_pixels(predicted * targets)
    union = _sum_pixels(predicted) + _sum_pixels(targets) - intersection
    return ops.where(union > 0, intersection / ops.maximum(union, 1.0), 1.0)


def lone_click(labels: Tensor, mask_given: Tensor | None = None) -> Tensor:
    """Whether each prompt set is one click and nothing else, the ambiguous prompt.

    Args:
        labels: int tensor `(B, P, T)`.
        mask_given: optional bool tensor `(B, P)`, or `(B, 0)` when no prompt set has a mask.

    Returns:
        Bool tensor `(B, P)`.
    """
    labels = ops.convert_to_tensor(labels)
    is_click = ops.logical_or(ops.equal(labels, 0), ops.equal(labels, 1))
    clicks = ops.sum(ops.cast(is_click, "int32"), axis=-1)
    corners = ops.sum(ops.cast(labels >= 2, "int32"), axis=-1)
    lone = ops.logical_and(ops.equal(clicks, 1), ops.equal(corners, 0))
    if mask_given is None or mask_given.shape[1] == 0:
        return lone
    if mask_given.shape[1] is None:  # may be 0 at run time: then no prompt set has a mask
        filled = ops.concatenate([mask_given, ops.zeros_like(lone)], axis=1)
        mask_given = filled[:, : ops.shape(lone)[1]]
    return ops.logical_and(lone, ops.logical_not(mask_given))


@dataclasses.dataclass(frozen=True)
class SAMLoss:
    """The loss that SAM was trained with.

    A lone click is ambiguous, so of its candidates, masks 1 to K - 1, only the one that fits the
    target best is trained. Any other prompt trains mask 0. The predicted IoU is trained for all
    candidates.

    Args:
        focal_weight: float. Defaults to `20.0`.
        dice_weight: float. Defaults to `1.0`.
        iou_weight: float. Weight of the squared error of the predicted IoU. Defaults to `1.0`.
        alpha: float, of the focal loss. Defaults to `0.25`.
        gamma: float, of the focal loss. Defaults to `2.0`.

    Source:
        Kirillov et al. 2023, https://arxiv.org/abs/2304.02643, appendix A.
    """

    focal_weight: float = 20.0
    dice_weight: float = 1.0
    iou_weight: float = 1.0
    alpha: float = 0.25
    gamma: float = 2.0

    def __call__(self, outputs: dict[str, Tensor], targets: Tensor, ambiguous: Tensor) -> Tensor:
        """The loss of every prompt set.

        Args:
            outputs: dict of `masks`, logits `(B, P, K, L, L)`, and `iou_pred` `(B, P, K)`.
            targets: tensor `(B, P, L, L)` of 0, 1 and 255 for void.
            ambiguous: bool tensor `(B, P)`, True for lone clicks.

        Returns:
            Float32 tensor `(B, P)`; 0 where the whole target is void.
        """
        logits = ops.cast(outputs["masks"], "float32")
        targets, valid = split_void(targets)
        shared = (ops.expand_dims(targets, 2), ops.expand_dims(valid, 2))  # (B, P, 1, L, L)
        focal = focal_loss(logits, *shared, self.alpha, self.gamma)  # (B, P, K)
        fit = self.focal_weight * focal + self.dice_weight * dice_loss(logits, *shared)
        candidates = candidate_masks(ambiguous, logits.shape[2])  # (B, P, K)
        best = ops.argmin(ops.where(candidates > 0, ops.stop_gradient(fit), 1e9), axis=-1)
        chosen = ops.one_hot(best, logits.shape[2], dtype="float32")
        iou = ops.stop_gradient(mask_iou(logits, *shared))
        error = self._iou_error(ops.cast(outputs["iou_pred"], "float32") - iou)
        error = ops.sum(error * candidates, -1) / ops.sum(candidates, -1)
        loss = ops.sum(fit * chosen, -1) + self.iou_weight * error
        return loss * _any_pixel(valid)

    def _iou_error(self, difference):
        return ops.square(difference)


@dataclasses.dataclass(frozen=True)
class SAM2Loss(SAMLoss):
    """The loss that SAM 2 was trained with: `SAMLoss`, and whether there is an object at all.

    A target without a pixel says that the object is not in the image: it trains the object score
    alone, by cross-entropy, and no mask. The error of the predicted IoU is absolute, not squared.

    Args:
        object_score_weight: float. Defaults to `1.0`.
        **kwargs: the arguments of `SAMLoss`.

    Source:
        Ravi et al. 2024, https://arxiv.org/abs/2408.00714, section 4 and its appendix on training.
    """

    object_score_weight: float = 1.0

    def __call__(self, outputs: dict[str, Tensor], targets: Tensor, ambiguous: Tensor) -> Tensor:
        """The loss of every prompt set.

        Args:
            outputs: dict as `SAMLoss` takes it, and `object_score` `(B, P)`.
            targets: this and `ambiguous` as for `SAMLoss`.
            ambiguous: see there.

        Returns:
            Float32 tensor `(B, P)`; 0 where the whole target is void.
        """
        target, valid = split_void(targets)
        present, counts = _any_pixel(target), _any_pixel(valid)
        score = ops.cast(outputs["object_score"], "float32")
        cross_entropy = ops.softplus(score) - score * present
        of_masks = super().__call__(outputs, targets, ambiguous)
        return of_masks * present + self.object_score_weight * cross_entropy * counts

    def _iou_error(self, difference):
        return ops.abs(difference)


def split_void(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Splits targets of 0, 1 and 255 into the float32 target and a float32 map of what counts."""
    valid = ops.cast(ops.not_equal(targets, VOID), "float32")
    return ops.cast(ops.equal(targets, 1), "float32"), valid


def candidate_masks(ambiguous: Tensor, num_masks: int) -> Tensor:
    """Which masks may answer each prompt set: 1 to K - 1 for a lone click, otherwise mask 0.

    Args:
        ambiguous: bool tensor `(B, P)`, True for lone clicks.
        num_masks: int, `K`.

    Returns:
        Float32 tensor `(B, P, K)` of 0 and 1.
    """
    first = ops.cast(ops.arange(num_masks) == 0, "float32")
    if num_masks == 1:
        return ops.broadcast_to(first, (*ops.shape(ambiguous), 1))
    ambiguous = ops.expand_dims(ops.cast(ambiguous, "float32"), -1)
    return ambiguous * (1.0 - first) + (1.0 - ambiguous) * first


def choose_mask(iou_pred: Tensor, ambiguous: Tensor) -> Tensor:
    """Which mask answers each prompt set: of its candidates the one with the highest score.

    The rule of `select_masks(..., "auto")` for tensors. A score of NaN never wins.

    Args:
        iou_pred: float tensor `(B, P, K)`.
        ambiguous: bool tensor `(B, P)`, True for lone clicks.

    Returns:
        Bool tensor `(B, P, K)`, True for one mask of each prompt set.
    """
    num_masks = iou_pred.shape[2]
    scores = ops.cast(iou_pred, "float32")
    scores = ops.where(ops.isnan(scores), -1e8, scores)
    scores = ops.where(candidate_masks(ambiguous, num_masks) > 0, scores, -1e9)
    return ops.one_hot(ops.argmax(scores, axis=-1), num_masks, dtype="bool")


def take_mask(values: Tensor, chosen: Tensor) -> Tensor:
    """The entries of the masks that `choose_mask` chose.

    Args:
        values: float tensor `(B, P, K, ...)`.
        chosen: bool tensor `(B, P, K)`.

    Returns:
        Float32 tensor `(B, P, ...)`.
    """
    chosen = ops.reshape(chosen, (*ops.shape(chosen), *[1] * (len(values.shape) - 3)))
    return ops.sum(ops.where(chosen, ops.cast(values, "float32"), 0.0), axis=2)


def selected_iou(
    outputs: dict[str, Tensor], targets: Tensor, ambiguous: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """How good the chosen mask is, and how well the model predicted that.

    Args:
        outputs: dict of `masks` `(B, P, K, L, L)` and `iou_pred` `(B, P, K)`.
        targets: tensor `(B, P, L, L)` of 0, 1 and 255 for void.
        ambiguous: bool tensor `(B, P)`, True for lone clicks.

    Returns:
        Tuple of float32 tensors `(B, P)`: the IoU with the target of the mask that `choose_mask`
        chooses, the absolute error of its predicted IoU, and 1 where the target counts. Where an
        `object_score` is not above 0, the mask counts as empty.
    """
    targets, valid = split_void(targets)
    chosen = choose_mask(outputs["iou_pred"], ambiguous)
    logits = take_mask(outputs["masks"], chosen)
    if "object_score" in outputs:
        present = ops.cast(outputs["object_score"] > 0, logits.dtype)[..., None, None]
        logits = ops.minimum(logits, present * 1e9)
    iou = mask_iou(logits, targets, valid)
    predicted = take_mask(outputs["iou_pred"], chosen)
    return iou, ops.abs(predicted - iou), _any_pixel(valid)


def _any_pixel(x: Tensor) -> Tensor:
    """1 where a map `(..., L, L)` has a pixel above 0, otherwise 0: float32 `(...)`."""
    return ops.cast(ops.any(x > 0, axis=(-2, -1)), "float32")


def _sum_pixels(x: Tensor) -> Tensor:
    return ops.sum(x, axis=(-2, -1))
