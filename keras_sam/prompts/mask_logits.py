"""Binary masks as mask prompts. Numpy only."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_sam.geometry import OUTSIDE_LOGIT, ResizePlan, resize_image, size_pair
from keras_sam.masks.reading import read_mask, tell_of
from keras_sam.notices import notice
from keras_sam.prompts.nested import to_numpy
from keras_sam.prompts.spellings import refuses_unknown_arguments


@refuses_unknown_arguments
def mask_to_logits(
    mask: Any,
    model_size: Any = 1024,
    mask_size: int | tuple[int, int] | None = None,
) -> np.ndarray:
    """Turns a binary mask of the original image into mask-prompt logits.

    The binary mask is scaled to the mask frame with antialiasing, binarised
    again at one half, padded, and written as logits of the probabilities 0.999
    and 0.001: +6.9 inside, -6.9 outside and in the padding.

    Args:
        mask: bool or two-valued array `(H0, W0)`, `(H0, W0, 1)`,
            `(P, H0, W0)` or `(P, H0, W0, 1)` in original pixels; whatever is
            not 0 is inside.
        model_size: the `SAMImageSegmenter`; or an int or pair of ints, the
            model's input `(H, W)`. Defaults to `1024`.
        mask_size: int or pair of ints `(Lh, Lw)`. Defaults to the segmenter's,
            or a quarter of `model_size`, which holds for patches of 16 pixels.

    Returns:
        float32 array `(Lh, Lw, 1)`, or `(P, Lh, Lw, 1)` if `mask` has a `P`
        axis. As a prompt of the first image: `masks=logits[None, None]` or
        `masks=logits[None]`.

    Raises:
        ValueError: if the mask is empty, not two-valued or of another shape.

    Example:

    >>> mask = np.zeros((480, 640), bool)
    >>> mask[100:300, 200:400] = True
    >>> keras_sam.mask_to_logits(mask).shape
    (256, 256, 1)
    """
    array = to_numpy(mask)
    if array.ndim in (3, 4) and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(
            "`mask` must have shape (H0, W0), (H0, W0, 1), (P, H0, W0) or (P, H0, W0, 1) and must "
            f"not be empty. Received: shape={np.shape(mask)}."
        )
    values = np.unique(array)
    if len(values) > 2 or (len(values) == 2 and 0 not in values) or not np.isfinite(values).all():
        raise ValueError(
            "`mask` must be binary: 0 outside and one other value inside. Received: "
            f"{len(values)} values from {values[0]} to {values[-1]}. Pass `labels == k` for a "
            "label map, `probability > 0.5` for probabilities; logits go into `masks` as they are."
        )
    if mask_size is None:
        of_model = getattr(model_size, "mask_size", None)
        mask_size = of_model or tuple(n // 4 for n in size_pair(model_size, "model_size"))
    frame = size_pair(mask_size, "mask_size")
    scale = min(frame[0] / array.shape[-2], frame[1] / array.shape[-1])
    size = tuple(max(1, int(n * scale + 0.5)) for n in array.shape[-2:])
    planes = array.reshape((-1, *array.shape[-2:])) != 0
    logits = np.stack([_logits(plane, size, frame) for plane in planes])
    return logits if array.ndim == 3 else logits[0]


def read_plane(mask: np.ndarray) -> np.ndarray:
    """A mask prompt `(h, w)` as float logits, or bool where it is a binary mask of any type."""
    if mask.dtype == bool:
        return mask
    if mask.dtype.kind == "f":
        top = mask.max(initial=0)
        if top not in (1, 255) or not ((mask == 0) | (mask == top)).all() or mask.all():
            return mask
        notice(
            f"A mask prompt of floats that are only 0 and {top:g} is read as a binary mask, since "
            "logits have other values. Logits of a binary mask are `mask_to_logits(mask)`."
        )
        return mask > 0
    try:
        reading = read_mask(mask)
    except ValueError as error:
        raise ValueError(
            f"`masks` must be float logits, as the model returns them, bool, or black and white. "
            f"Received: dtype={mask.dtype}. {error}"
        ) from error
    if len(numbers := reading.numbers) > 1:
        raise ValueError(
            "`masks` must hold one object each. Received: a label map of the numbers "
            f"{numbers[:5].tolist()}. Pass that of one object, such as `labels == {numbers[0]}`."
        )
    tell_of(reading, "A mask prompt")
    return reading.labels > 0


def binary_to_logits(mask: np.ndarray, plan: ResizePlan, mask_size: tuple[int, int]) -> np.ndarray:
    """`mask_to_logits` for a bool mask of an image that is scaled by a plan, or of `mask_size`."""
    if mask.shape == mask_size:
        return _logits(mask, mask_size, mask_size)
    scaled, frame = plan.scaled_size, plan.model_size
    size = tuple(
        max(1, int(n * m / f + 0.5)) for n, m, f in zip(scaled, mask_size, frame, strict=True)
    )
    return _logits(mask, size, mask_size)


def _logits(mask: np.ndarray, size: tuple[int, int], frame: tuple[int, int]) -> np.ndarray:
    """Logits `(Lh, Lw, 1)` of a bool mask that is scaled to `size` and padded to `frame`."""
    logits = np.full((*frame, 1), OUTSIDE_LOGIT, "float32")
    logits[: size[0], : size[1], 0][resize_image(mask, size) >= 0.5] = -OUTSIDE_LOGIT
    return logits
