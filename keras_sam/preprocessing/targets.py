"""Targets as people have them, in the frame of the model's mask logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_sam.geometry import ResizePlan
from keras_sam.prompts import VOID
from keras_sam.prompts.nested import next_power_of_two, to_numpy


def targets_to_frames(
    y: Any,
    plans: Sequence[ResizePlan],
    mask_size: tuple[int, int],
    counts: Sequence[int] | None = None,
    prompts: int | None = None,
) -> np.ndarray:
    """The targets of a batch in the model frame: uint8 `(B, P, Lh, Lw)` of 0, 1 and 255.

    `y["masks"]` is `(B, H0, W0)`, `(B, P, H0, W0)` or ragged lists. `counts` `(B,)` are the prompt
    sets that targets have to be for. `prompts` is `P`, by default the largest count, to the next
    power of two; where there is no target, all is void.
    """
    masks = y.get("masks") if isinstance(y, dict) else None
    if masks is None or len(masks) != len(plans):
        raise ValueError(
            '`y` must be {"masks": targets} with the targets of every image. Received: '
            f"{'no masks' if masks is None else f'targets of {len(masks)} images'} for "
            f"{len(plans)} images."
        )
    none = [np.zeros((0, *plan.original_size), "uint8") for plan in plans]
    masks = [to_numpy(m) if len(m) else empty for m, empty in zip(masks, none, strict=True)]
    masks = [m[None] if m.ndim == 2 else m for m in masks]  # one array, a list of them, or none
    counts = [len(of_image) for of_image in masks] if counts is None else counts
    prompts = next_power_of_two(max(counts)) if prompts is None else prompts
    targets = np.full((len(plans), prompts, *mask_size), VOID, "uint8")
    for image, (of_image, plan, count) in enumerate(zip(masks, plans, counts, strict=True)):
        if of_image.ndim != 3 or len(of_image) != count or of_image.shape[1:] != plan.original_size:
            raise ValueError(
                f"`y['masks']` of image {image} must have shape ({count}, "
                f"{plan.original_size[0]}, {plan.original_size[1]}): one target per prompt set, "
                f"the size of the image. Received: shape={of_image.shape}."
            )
        for prompt, target in enumerate(of_image):
            targets[image, prompt] = target_to_frame(target, plan, mask_size)
    return targets


def target_to_frame(target: np.ndarray, plan: ResizePlan, mask_size: tuple[int, int]) -> np.ndarray:
    """A target `(H0, W0)` of 0, 1 and 255 in the frame of the model's mask logits, `(Lh, Lw)`.

    A pixel is void where at least half of it is, foreground where at least half of the rest is,
    and void in the padding, which is no part of the image.
    """
    values = np.unique(target)
    if target.dtype.kind not in "biu" or not np.isin(values, (0, 1, VOID)).all():
        raise ValueError(
            "Target masks must be bool, or integers 0, 1 and 255 for void. "
            f"Received: {target.dtype} with values {values[:5].tolist()}."
        )
    foreground = plan.masks_to_model(target == 1, mask_size, pad_value=0.0)
    void = plan.masks_to_model(target == VOID, mask_size, pad_value=1.0)
    is_foreground = (foreground > 0) & (foreground >= 0.5 * (1.0 - void))
    return np.where(void >= 0.5, VOID, is_foreground).astype("uint8")


def prompt_weights(weights: Any, batch: int, prompts: int) -> np.ndarray:
    """Sample weights `(B,)` or `(B, up to P)` as float32 `(B, P)`; anything else is an error."""
    weights = to_numpy(weights).astype("float32")
    if weights.ndim == 1 and len(weights) == batch:
        return np.repeat(weights[:, None], prompts, axis=1)
    if weights.ndim != 2 or len(weights) != batch or weights.shape[1] > prompts:
        raise ValueError(
            f"`sample_weight` must have shape (B,) or (B, P), here ({batch},) or "
            f"({batch}, up to {prompts}). Received: shape={weights.shape}."
        )
    return np.pad(weights, [(0, 0), (0, prompts - weights.shape[1])])
