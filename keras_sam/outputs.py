"""What models predict, masks and scores: choosing among them, taking them to the images.

Numpy only.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_sam.geometry import (
    STRETCHED,
    ResizePlan,
    check_not_swapped,
    plan_of_sizes,
    size_pair,
)
from keras_sam.prompts.nested import describe_value, to_numpy
from keras_sam.prompts.spellings import refuses_unknown_arguments


@refuses_unknown_arguments
def select_masks(outputs: dict[str, Any], multimask_output: bool | str = "auto") -> dict[str, Any]:
    """Picks which of a segmenter's masks answer a prompt.

    Mask 0 is the model's answer to an unambiguous prompt. Masks 1 to K - 1 are its
    candidates for an ambiguous one: whole, part and subpart.

    Args:
        outputs: dict with `masks` `(..., K, Lh, Lw)`, `iou_pred` `(..., K)` and, for
            `"auto"`, `lone_click` `(...)`, as `predict` and `decode` return it.
        multimask_output: `True` for masks 1 to K - 1, `False` for mask 0, or `"auto"`: a
            lone click is ambiguous and gets the one of masks 1 to K - 1 with the highest
            predicted IoU, any other prompt gets mask 0. A box, or a click with a mask, is
            no lone click. Training follows the same rule (`losses.choose_mask`).

    Returns:
        Dict with all entries of `outputs`, `masks` and `iou_pred` cut down to
        `(..., K', Lh, Lw)` and `(..., K')` with `K' = K - 1` for `True`, otherwise 1.

    Raises:
        ValueError: if `outputs` is no such dict, or `multimask_output` is another value, is `True`
            for a model without candidates, or `"auto"` for outputs without `lone_click`.

    Source:
        Kirillov et al. 2023, https://arxiv.org/abs/2304.02643, section 3 and appendix A.
    """
    masks, scores = _masks_and_scores(outputs)
    if multimask_output is None:
        raise _not_a_choice(multimask_output)
    check_choice(multimask_output, scores.shape[-1])
    if multimask_output != "auto":
        kept = slice(1, None) if multimask_output else slice(0, 1)
        return {**outputs, "masks": masks[..., kept, :, :], "iou_pred": scores[..., kept]}
    if scores.shape[-1] == 1:
        return dict(outputs)
    if "lone_click" not in outputs:
        raise ValueError(
            '`multimask_output="auto"` needs `lone_click` in `outputs`, as `predict` and `decode` '
            f"return it. Received: the keys {sorted(outputs)}. Use True or False for outputs of "
            "the model called directly."
        )
    ambiguous = to_numpy(outputs["lone_click"]).astype(bool)
    index = np.where(ambiguous, 1 + best_index(scores[..., 1:]), 0)
    return {**outputs, **take_masks(masks, scores, index)}


def check_choice(multimask_output: bool | str | None, masks: int) -> None:
    """Raises a ValueError if a model with this many masks, mask 0 included, lacks the chosen ones.

    `multimask_output` is as in `select_masks`, or None for all masks.
    """
    if isinstance(multimask_output, (bool, np.bool_)):
        if multimask_output and masks == 1:
            raise ValueError(
                "`multimask_output=True` needs more masks than mask 0. Received: one mask per "
                'prompt. Use `multimask_output=False` or "auto".'
            )
    elif multimask_output not in (None, "auto"):
        raise _not_a_choice(multimask_output)


def _not_a_choice(multimask_output: Any) -> ValueError:
    return ValueError(
        f'`multimask_output` must be True, False or "auto". Received: {multimask_output!r}.'
    )


def best_mask(outputs: dict[str, Any]) -> dict[str, Any]:
    """Keeps the mask with the highest predicted IoU, among those in `outputs`.

    Args:
        outputs: dict with `masks` `(..., K, Lh, Lw)` and `iou_pred` `(..., K)`, such as
            `select_masks` returns.

    Returns:
        Dict with all entries of `outputs`, `masks` being `(..., 1, Lh, Lw)` and
        `iou_pred` `(..., 1)`.

    Raises:
        ValueError: if `outputs` is no such dict.
    """
    masks, scores = _masks_and_scores(outputs)
    return {**outputs, **take_masks(masks, scores, best_index(scores))}


def _masks_and_scores(outputs):
    if not isinstance(outputs, dict) or not {"masks", "iou_pred"} <= outputs.keys():
        received = sorted(outputs) if isinstance(outputs, dict) else describe_value(outputs)
        raise ValueError(
            "`outputs` must be a dict with `masks` and `iou_pred`, as `predict` and `decode` "
            f"return it: scores choose among masks. Received: {received}."
        )
    return to_numpy(outputs["masks"]), to_numpy(outputs["iou_pred"])


def best_index(scores: np.ndarray) -> np.ndarray:
    """Index `(...)` of the highest of scores `(..., K)`. NaN, the score of padding, never wins."""
    return np.argmax(np.where(np.isnan(scores), -np.inf, scores), axis=-1)


def take_masks(masks: np.ndarray, scores: np.ndarray, index: np.ndarray) -> dict[str, np.ndarray]:
    """Of masks `(..., K, Lh, Lw)` and scores `(..., K)` those with these numbers `(...)`."""
    index = index[..., None]
    return {
        "masks": np.take_along_axis(masks, index[..., None, None], axis=-3),
        "iou_pred": np.take_along_axis(scores, index, axis=-1),
    }


@refuses_unknown_arguments
def restore_masks(
    logits: Any,
    original_sizes: Any = None,
    model_size: int | tuple[int, int] | None = None,
    mask_threshold: float = 0.0,
    binarize: bool = True,
    pad_only: bool = False,
    stretch: bool = False,
) -> np.ndarray | list[np.ndarray]:
    """Maps the model's mask logits to masks of the original images.

    Padding is cut off and the logits are resized as floats (see
    `ResizePlan.masks_to_original`); only then the threshold is applied.

    Args:
        logits: what `predict` or `decode` returned, or `select_masks` or
            `best_mask` of that; or float array or tensor `(B, K, Lh, Lw)` or
            `(B, P, K, Lh, Lw)`.
        original_sizes: int array `(B, 2)` or list of pairs `(H0, W0)`; the
            preprocessor's output has it, and that of `predict`. Of a pillow
            image it is `image.size[::-1]`.
        model_size: int or pair of ints, the model's input `(H, W)`. Needed
            with an array, as `original_sizes` is.
        mask_threshold: float. A logit above it is inside. Defaults to `0.0`.
        binarize: bool. Off: the resized logits. Defaults to `True`.
        pad_only: bool. The images were padded without scaling.
        stretch: bool. The images were stretched, as for SAM 2. What `predict`
            returned says so itself.

    Returns:
        bool or float32 array `(B, K, H0, W0)` or `(B, P, K, H0, W0)` if all
        images have one size and, in what `predict` returned, as many prompts;
        otherwise a list of one array per image, without `B`, whose `P` are its
        own prompts.

    Raises:
        ValueError: if the shapes do not fit together, or `original_sizes` are
            (width, height) of the images in what `predict` returned.
        TypeError: if there is another argument.

    Example:

    >>> x = {"images": image, "boxes": [9, 9, 40, 40]}
    >>> masks = keras_sam.restore_masks(tiny_segmenter.predict(x, verbose=0))
    >>> masks.shape == (1, 4, *image.shape[:2])
    True
    >>> logits = np.ones((2, 3, 256, 256), "float32")
    >>> [m.shape for m in keras_sam.restore_masks(logits, [(30, 40), (50, 20)], 1024)]
    [(3, 30, 40), (3, 50, 20)]
    """
    scaled_sizes = num_prompts = known_sizes = None
    if isinstance(logits, dict):
        names = ("original_sizes", "scaled_sizes", "model_sizes")
        given = [logits.get(name) for name in names]
        if original_sizes is None and all(sizes is not None for sizes in given):
            original_sizes, scaled_sizes = given[0], to_numpy(given[1]).tolist()
            model_size = tuple(to_numpy(given[2])[0].tolist())
        stretch = stretch or bool(np.any(to_numpy(logits.get(STRETCHED, False))))
        num_prompts = logits.get("num_prompts")
        known_sizes = None if given[1] is None else to_numpy(given[1])
        logits = logits.get("masks")
    if original_sizes is None or model_size is None:
        raise ValueError(
            "`original_sizes` and `model_size` must be given, unless `logits` is what `predict` "
            f"returned. Received: original_sizes={original_sizes}, model_size={model_size}."
        )
    logits = to_numpy(logits)
    sizes = np.asarray(to_numpy(original_sizes))
    if logits.ndim not in (4, 5):
        raise ValueError(
            "`logits` must have shape (B, K, Lh, Lw) or (B, P, K, Lh, Lw), as the model returns "
            f"them. Received: shape={logits.shape}."
        )
    if sizes.shape != (len(logits), 2):
        raise ValueError(
            "`original_sizes` must have one (height, width) per image, shape "
            f"({len(logits)}, 2). Received: shape={sizes.shape}."
        )
    model_size = size_pair(model_size, "model_size")
    if scaled_sizes is None:
        # Of a stretched image only the frame's proportions are known.
        check_not_swapped(sizes.tolist(), None if stretch else known_sizes)
        plans = [
            ResizePlan(tuple(size), model_size, pad_only, stretch=stretch)
            for size in sizes.tolist()
        ]
    else:
        both = zip(sizes.tolist(), scaled_sizes, strict=True)
        plans = [plan_of_sizes(*of_image, model_size, stretch) for of_image in both]
    of_images = list(logits)
    if num_prompts is not None and logits.ndim == 5:  # the others are padding
        of_images = [x[:count] for x, count in zip(logits, to_numpy(num_prompts), strict=True)]
    dtype = bool if binarize else "float32"
    shapes = [(*x.shape[:-2], *plan.original_size) for x, plan in zip(of_images, plans)]
    if len(set(shapes)) == 1:
        restored = np.empty((len(plans), *shapes[0]), dtype)
    else:
        restored = [np.empty(shape, dtype) for shape in shapes]
    for plan, image_logits, target in zip(plans, of_images, restored, strict=True):
        target[...] = plan.masks_to_original(image_logits, mask_threshold if binarize else None)
    return restored
