"""Targets as people have them, in the frame of the model's mask logits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_sam.geometry import ResizePlan
from keras_sam.masks.reading import read_mask, tell_of
from keras_sam.notices import notice
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

    `y["masks"]` is `(B, H0, W0)`, `(B, P, H0, W0)` or ragged lists, and `y["void"]`, if given, the
    number that is void. `counts` `(B,)` are the prompt sets that targets have to be for. `prompts`
    is `P`, by default the largest count, to the next power of two; where there is no target, all
    is void.
    """
    masks = y.get("masks") if isinstance(y, dict) else None
    if masks is None or len(masks) != len(plans):
        raise ValueError(
            '`y` must be {"masks": targets} with the targets of every image. Received: '
            f"{'no masks' if masks is None else f'targets of {len(masks)} images'} for "
            f"{len(plans)} images."
        )
    void = y.get("void", "auto")
    masks = [read_targets(m, p.original_size, void) for m, p in zip(masks, plans, strict=True)]
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


def with_image_axis(masks: Any, images: int) -> Any:
    """Targets with the axis of the images, where they are those of a single image without it."""
    if images != 1 or not hasattr(masks, "__len__"):
        return masks
    bare = getattr(masks, "ndim", None) == 2 or len(masks) != 1
    return [masks] if bare and len(masks) else masks


def read_targets(
    masks: Any, size: tuple[int, int] | None = None, void: int | str | None = "auto"
) -> np.ndarray:
    """The targets of one image as uint8 `(P, H0, W0)` of 0, 1 and 255, by `masks.reading`.

    `masks` is `(H0, W0)` or `(P, H0, W0)`, each perhaps with a last axis of 1, a list of targets,
    or empty; `size` is that of the image, if it is known.
    """
    if len(masks) == 0:
        return np.zeros((0, *(size or (0, 0))), "uint8")
    items = [] if hasattr(masks, "ndim") else [masks, *masks]
    path = next((x for x in items if isinstance(x, (str, os.PathLike))), None)
    if path is not None:
        raise ValueError(
            f"Target masks must be arrays. Received: {path!r:.200}. Read the file first, "
            "`np.asarray(PIL.Image.open(path))`, or train on a `keras_sam.training.MaskFolder`."
        )
    masks = to_numpy(masks) if hasattr(masks, "ndim") else np.stack([to_numpy(m) for m in masks])
    if masks.shape[-1] == 1 and (
        masks.ndim == 4 or masks.ndim == 3 and size in (None, masks.shape[:2])
    ):
        masks = masks[..., 0]
    masks = masks[None] if masks.ndim == 2 else masks
    if masks.ndim != 3 or 0 in masks.shape:
        return masks
    read = [_read_target(mask, void) for mask in masks]
    targets = np.stack([target for target, _ in read])
    if any(kind == "labels" and (target == VOID).any() for target, kind in read):
        for i, (_, kind) in enumerate(read):
            if kind == "black and white":  # as in the other targets, it is void
                targets[i] = np.where(targets[i] == 1, VOID, 0)
    elif any(kind == "black and white" for _, kind in read):
        notice(
            "Targets of 0 and 255 are read as black and white masks: 255 is the object. It is void "
            'in targets that have a 1, or with `y = {"masks": targets, "void": 255}`.',
            "black and white targets",
        )
    return targets


def _read_target(mask: np.ndarray, void: int | str | None) -> tuple[np.ndarray, str]:
    """A target of one object, uint8 `(H0, W0)`, and the kind of its mask."""
    if ((mask == 0) | (mask == 1)).all():
        return mask.astype("uint8"), "labels"
    if (mask == VOID).all():  # no target, in an array that has one for every prompt set
        return mask.astype("uint8"), "no target"
    try:
        reading = read_mask(mask, void)
    except ValueError as error:
        raise _bad_values(mask) from error
    if reading.labels.max() > 1:
        raise _bad_values(mask)
    tell_of(reading, "A target")
    return reading.target(), reading.kind


def _bad_values(mask: np.ndarray) -> ValueError:
    return ValueError(
        "Target masks must be bool, or 0, 1 and 255 for void, or black and white. "
        f"Received: {mask.dtype} with values {np.unique(mask)[:5].tolist()}. Make a mask of a "
        "label or of logits first: labels == 3, logits > 0."
    )


def target_to_frame(target: np.ndarray, plan: ResizePlan, mask_size: tuple[int, int]) -> np.ndarray:
    """A target `(H0, W0)` of 0, 1 and 255 in the frame of the model's mask logits, `(Lh, Lw)`.

    A pixel is void where at least half of it is, foreground where at least half of the rest is,
    and void in the padding, which is no part of the image.
    """
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
