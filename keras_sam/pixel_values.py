"""Which numbers of an image become 0..255: by their type, by percentiles, or by a range.

Numpy only.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_sam.notices import notice

# Numbers that stand for "no value" in rasters, beside NaN.
_NODATA = (-9999, -32768, np.finfo("float32").min)


def check_value_range(value_range: Any) -> str | tuple[float, float] | None:
    """A setting of `value_range` as it is stored, checked."""
    if value_range is None or (
        isinstance(value_range, str) and value_range in ("auto", "percentile")
    ):
        return value_range
    try:
        low, high = (float(value) for value in value_range)
        usable = -np.inf < low < high < np.inf
    except (TypeError, ValueError):
        usable = False
    if isinstance(value_range, str) or not usable:
        raise ValueError(
            '`value_range` must be "auto", "percentile", or two numbers (low, high), the values '
            f"that become 0 and 255. Received: {value_range!r}."
        )
    return low, high


def to_pixel_values(array: np.ndarray, value_range: Any, name: str = "an array") -> np.ndarray:
    """uint8 or float32, 0..255, of any numbers, the masked ones 0; with None the array as it is.

    `name` is what notices call the image. They are given once for each kind of image: another one
    that needs another range is told of, too.
    """
    array, masked = np.ma.getdata(array), np.ma.getmask(array)
    if array.dtype.kind not in "iuf":
        raise ValueError(
            "An image must be uint8, uint16, or numbers within 0..255. Received: "
            f"dtype={array.dtype}. Convert it with `(image * 255).astype('uint8')`."
            if array.dtype.kind == "b"
            else f"An image must hold numbers within 0..255. Received: dtype={array.dtype}."
        )
    if value_range is None:
        return np.ma.array(array, mask=masked) if masked.any() else array
    if value_range == "auto":
        array = np.where(masked, 0, array).astype(array.dtype) if masked.any() else array
        return _by_type(array, name)
    if array.dtype == np.uint8 and value_range != "percentile":
        return np.where(masked, 0, array).astype("uint8") if masked.any() else array
    return _stretched(array, masked | np.isnan(array), value_range)


def _by_type(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        top = int(array.max())
        if 0 < top < 2**14:
            notice(
                f"A uint16 image has values up to {top}, nearly black when 16 bits are taken to "
                f"0..255 (0..{top // 257}): {name}. If they are all of its range, say so with "
                f"`SAMImageConverter(value_range=(0, {2 ** top.bit_length() - 1}))`, or use "
                '"percentile".',
                f"{top.bit_length()} bits",
            )
        return array.astype("float32") / np.float32(257)
    if array.dtype.kind in "iu":
        if array.min() < 0 or array.max() > 255:
            raise ValueError(
                f"An image of {array.dtype} must have values within 0..255. Received: "
                f"{array.min()}..{array.max()}. Pass 16-bit images as uint16; for others say with "
                "`SAMImageConverter(value_range=(low, high))` which values become 0 and 255, or "
                'use "percentile".'
            )
        return array.astype("uint8")
    with np.errstate(over="ignore"):
        array = array.astype("float32")
    check_finite(array)
    return _float_pixels(array, float(array.min()), float(array.max()), name)


def check_finite(array: np.ndarray) -> None:
    """Raises if an image holds NaN or infinity."""
    if not np.isfinite(array).all():
        raise ValueError(
            "An image must be finite. Received: "
            f"{int((~np.isfinite(array)).sum())} values that are NaN or infinite. "
            "Replace them first, for instance with `np.nan_to_num`, or use "
            "`SAMImageConverter(value_range=(low, high))`, in which NaN is black."
        )


def _float_pixels(array: np.ndarray, low: float, high: float, name: str) -> np.ndarray:
    if low >= 0 and 0 < high <= 1:
        notice(
            f"A float image lies within 0..1 and is multiplied by 255: {name}. If it is nearly "
            "black, say so with `SAMImageConverter(value_range=(0, 255))`.",
            "unit range",
        )
        return array * np.float32(255)
    if low < 0 and high <= 4:
        notice(
            f"A float image lies within {low:.3g}..{high:.3g} and looks normalised, but images "
            f"are 0..255, and the model normalises them itself: {name}. Pass the image before "
            "that, or say with `SAMImageConverter(value_range=(low, high))` which values become 0 "
            "and 255.",
            "normalised",
        )
    elif low < -16 or high > 271:
        # The margin is the overshoot of filters with negative lobes.
        notice(
            f"A float image has values of {low:.6g}..{high:.6g}, far outside 0..255: {name}. Say "
            "with `SAMImageConverter(value_range=(low, high))` which values become 0 and 255, or "
            'use "percentile".',
            f"far outside by {int(max(-low, high)).bit_length()} bits",
        )
    return array


def percentile_range(values: np.ndarray) -> tuple[float, float]:
    """Which of an image's values become 0 and 255 by `"percentile"`, of float32 values."""
    known = values[np.isfinite(values)]
    known = known[~np.isin(known, np.float32(_NODATA))]
    return tuple(np.percentile(known, (0.5, 99.5)).tolist()) if known.size else (0.0, 1.0)


def _stretched(array: np.ndarray, missing: np.ndarray, value_range: Any) -> np.ndarray:
    """float32 0..255 of the values in a range, black where values are missing."""
    with np.errstate(over="ignore"):
        values = array.astype("float32")
    if missing.all():
        raise ValueError("An image must have at least one value that is not NaN or masked.")
    if value_range == "percentile":
        value_range = percentile_range(values[~missing])
    low, high = np.float32(value_range)
    with np.errstate(over="ignore"):
        values = np.clip((values - low) * (255 / max(high - low, 1e-30)), 0, 255)
    values[missing] = 0
    return values
