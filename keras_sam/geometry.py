"""Coordinates: how one image is scaled and padded and the way back, and box formats.

Numpy (and pillow for pixels) only. Sizes are `(height, width)`, points `(x, y)`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from keras_sam.enlarging import AxisWeights, axis_weights, enlarge_masks

__all__ = ["ResizePlan", "xywh_to_xyxy", "xyxy_to_xywh"]

# Logit of 0.001: "certainly outside" for mask prompts, also in the padding.
OUTSIDE_LOGIT = -math.log(999.0)

# How each image of a batch was scaled, int arrays `(B, 2)`.
SIZES = ("original_sizes", "scaled_sizes")
# Whether each image of a batch was stretched, bool `(B,)`; missing where none was.
STRETCHED = "stretched"

RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # pillow's codes 0..5


@dataclasses.dataclass(frozen=True)
class ResizePlan:
    """How one image is scaled and padded for the model, and the way back.

    The image keeps its proportions: it is scaled by
    `min(H / H0, W / W0)`, each side rounded half up as the released
    checkpoints' code does, and padded at the right and the bottom. Points
    and boxes scale by `scaled / original` of their own axis, which is not
    the same number on both after rounding. `scaled_size` is the image's
    `(height, width)` before padding.

    Args:
        original_size: pair of ints `(H0, W0)`, pixels of the user's image.
        model_size: int or pair of ints `(H, W)`, pixels of the model's
            input; an int is a square. Defaults to `(1024, 1024)`.
        pad_only: bool. Pads without scaling; the image must fit.
            Defaults to `False`.
        fit_size: int or pair of ints. Scales the image to fit into this size
            and pads the rest up to `model_size`. Defaults to `model_size`.
        stretch: bool. Scales each side to the model's, as SAM 2 does, so that
            proportions change and nothing is padded. Masks then go to the
            original image in one step. Defaults to `False`.

    Raises:
        ValueError: if the image is empty, if a side would be rounded to no
            pixel at all, if `pad_only` and the image does not fit, or if
            `stretch` comes with `pad_only` or `fit_size`.

    Source:
        `ResizeLongestSide` and `Sam.postprocess_masks`,
        facebookresearch/segment-anything@dca509f.

    Example:

    >>> plan = keras_sam.ResizePlan((1200, 1800))
    >>> plan.scaled_size
    (683, 1024)
    >>> plan.to_model([[1800, 1200]]).tolist()
    [[1024.0, 683.0]]
    """

    original_size: tuple[int, int]
    model_size: tuple[int, int] = (1024, 1024)
    pad_only: bool = False
    fit_size: tuple[int, int] | None = None
    stretch: bool = False
    scaled_size: tuple[int, int] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        original = size_pair(self.original_size, "original_size", square=False)
        model = size_pair(self.model_size, "model_size")
        fit = model if self.fit_size is None else size_pair(self.fit_size, "fit_size")
        if self.stretch and (self.pad_only or fit != model):
            raise ValueError(
                "`stretch` must come without `pad_only` and `fit_size`: a stretched image has no "
                f"padding. Received: pad_only={self.pad_only}, fit_size={self.fit_size}."
            )
        if self.pad_only:
            scaled = original
        elif self.stretch:
            scaled = model
        else:
            scale = min(fit[0] / original[0], fit[1] / original[1])
            scaled = (int(original[0] * scale + 0.5), int(original[1] * scale + 0.5))
        if min(scaled) < 1:
            raise ValueError(
                "The image is too long and thin: scaled to the model's size, a side of it is "
                f"rounded to 0 pixels. Received: original_size={original}, model_size={model}. "
                "Crop the image or pad its short side first."
            )
        if scaled[0] > model[0] or scaled[1] > model[1]:
            raise ValueError(
                f"The image must fit into `model_size` as it is scaled, to {scaled}. Received: "
                f"original_size={original}, model_size={model}, pad_only={self.pad_only}, "
                f"fit_size={self.fit_size}. Without `pad_only` and `fit_size` every image fits."
            )
        object.__setattr__(self, "original_size", original)
        object.__setattr__(self, "model_size", model)
        object.__setattr__(self, "pad_only", bool(self.pad_only))
        object.__setattr__(self, "fit_size", None if fit == model else fit)
        object.__setattr__(self, "stretch", bool(self.stretch))
        object.__setattr__(self, "scaled_size", scaled)

    # --- images ---

    def scale_image(self, image: ArrayLike, resample: str | int = "bilinear") -> np.ndarray:
        """Scales an image of the original size, with antialiasing.

        Args:
            image: array `(H0, W0)` or `(H0, W0, C)`, any number of channels.
                uint8 stays uint8 and equals pillow's result bit by bit;
                anything else is computed and returned as float32.
            resample: str or int. A pillow filter: `"nearest"`, `"lanczos"`,
                `"bilinear"`, `"bicubic"`, `"box"`, `"hamming"` or its code.

        Returns:
            Array of `scaled_size`, channels as in `image`.
        """
        image = self._image_of(image, self.original_size, "original_size")
        return resize_image(image, self.scaled_size, resample)

    def unscale_image(self, image: ArrayLike, resample: str | int = "bilinear") -> np.ndarray:
        """Scales an image of `scaled_size` back to the original size."""
        image = self._image_of(image, self.scaled_size, "scaled_size")
        return resize_image(image, self.original_size, resample)

    def pad_image(self, image: ArrayLike, value: float | Sequence[float] = 0) -> np.ndarray:
        """Pads an image of `scaled_size` at the right and the bottom to `model_size`.

        Args:
            image: array `(h, w)` or `(h, w, C)` of `scaled_size`.
            value: number, or one number per channel. An integer image
                padded with a fraction comes back as float32.

        Returns:
            Array `(H, W)` or `(H, W, C)`.
        """
        image = self._image_of(image, self.scaled_size, "scaled_size")
        fill = np.asarray(value)
        dtype = image.dtype
        if np.issubdtype(dtype, np.integer) and not np.array_equal(fill.astype(dtype), fill):
            dtype = np.dtype("float32")
        padded = np.empty(self.model_size + image.shape[2:], dtype)
        padded[...] = fill
        padded[: image.shape[0], : image.shape[1]] = image
        return padded

    def unpad_image(self, image: ArrayLike) -> np.ndarray:
        """Cuts the padding off an image of `model_size`."""
        image = self._image_of(image, self.model_size, "model_size")
        return image[: self.scaled_size[0], : self.scaled_size[1]]

    # --- points and boxes ---

    def to_model(self, points: ArrayLike) -> np.ndarray:
        """Maps points `(..., 2)`, x y in original pixels, to float32 model pixels."""
        return self._scale_points(points, self.original_size, self.scaled_size, "points", 2)

    def to_original(self, points: ArrayLike) -> np.ndarray:
        """Maps points `(..., 2)`, x y in model pixels, to float32 original pixels."""
        return self._scale_points(points, self.scaled_size, self.original_size, "points", 2)

    def boxes_to_model(self, boxes: ArrayLike) -> np.ndarray:
        """Maps boxes `(..., 4)`, x1 y1 x2 y2 in original pixels, to float32 model pixels."""
        return self._scale_points(boxes, self.original_size, self.scaled_size, "boxes", 4)

    def boxes_to_original(self, boxes: ArrayLike) -> np.ndarray:
        """Maps boxes `(..., 4)`, x1 y1 x2 y2 in model pixels, to float32 original pixels."""
        return self._scale_points(boxes, self.scaled_size, self.original_size, "boxes", 4)

    # --- masks ---

    def masks_to_model(
        self,
        masks: ArrayLike,
        mask_size: int | tuple[int, int],
        pad_value: float = OUTSIDE_LOGIT,
    ) -> np.ndarray:
        """Maps mask logits of the original image to the model's mask frame.

        Each pixel of the mask frame covers the same part of the model's
        frame that it covers on the way back; where that is larger than a
        pixel of the image, the pixels under it are averaged (antialiased
        bilinear).

        Args:
            masks: float array `(..., H0, W0)`, logits in original pixels.
            mask_size: int or pair `(Lh, Lw)`, the model's mask frame.
            pad_value: float. Logit of the padding. Defaults to that of a
                probability of 0.001.

        Returns:
            float32 array `(..., Lh, Lw)`.
        """
        masks = np.asarray(masks)
        mask_size = size_pair(mask_size, "mask_size")
        if masks.shape[-2:] != self.original_size:
            raise ValueError(
                f"`masks` must have shape (..., {self.original_size[0]}, {self.original_size[1]}), "
                f"the size of the original image. Received: shape={masks.shape}."
            )
        sizes = (self.original_size, self.scaled_size, self.model_size, mask_size)
        rows, columns = (_mask_reduction(*along) for along in zip(*sizes, strict=True))
        mapped = np.full(masks.shape[:-2] + mask_size, pad_value, "float32")
        mapped[..., : len(rows), : len(columns)] = rows @ masks.astype("float32") @ columns.T
        return mapped

    def masks_to_original(
        self, masks: ArrayLike, mask_threshold: float | None = None
    ) -> np.ndarray:
        """Maps low-resolution mask logits to the original image, as floats.

        Bilinear to the model's frame, padding cut off, bilinear to the
        original size, both without antialiasing and with half-pixel centres:
        two linear, separable steps, hence one small matrix per axis. Logits of
        a stretched image take the second step alone. A threshold comes after
        that.

        Args:
            masks: float array `(..., Lh, Lw)`, logits of the model's whole
                frame at any resolution.
            mask_threshold: optional float. Return which logits are above it; the logits of a
                whole mask are then never held in memory.

        Returns:
            float32 array `(..., H0, W0)`, bool with a threshold.
        """
        masks = np.asarray(masks)
        if masks.ndim < 2 or 0 in masks.shape[-2:]:
            raise ValueError(
                "`masks` must have shape (..., Lh, Lw), mask logits of the model's frame. "
                f"Received: shape={masks.shape}."
            )
        return enlarge_masks(masks, *mask_axes(self, masks.shape[-2:]), mask_threshold)

    # --- inside ---

    def _image_of(self, image: ArrayLike, size: tuple[int, int], name: str) -> np.ndarray:
        image = np.asarray(image)
        if image.ndim not in (2, 3) or image.shape[:2] != size:
            raise ValueError(
                f"`image` must have shape (height, width) or (height, width, channels) with the "
                f"plan's {name}={size}. Received: shape={image.shape}."
            )
        return image

    def _scale_points(
        self,
        points: ArrayLike,
        from_size: tuple[int, int],
        to_size: tuple[int, int],
        name: str,
        length: int,
    ) -> np.ndarray:
        points = np.asarray(points, "float64")
        if points.ndim < 1 or points.shape[-1] != length:
            raise ValueError(
                f"`{name}` must have shape (..., {length}), in pixels. "
                f"Received: shape={points.shape}."
            )
        # In float64 and rounded once, as the released code computes it.
        scale = [to_size[1] / from_size[1], to_size[0] / from_size[0]]
        return (points * (scale * (length // 2))).astype("float32")


def sizes_of(plans: Sequence[ResizePlan]) -> dict[str, np.ndarray]:
    """The sizes `(H0, W0)` of images, and those that they are scaled to, int32 `(B, 2)` each."""
    return {
        "original_sizes": np.array([plan.original_size for plan in plans], "int32"),
        "scaled_sizes": np.array([plan.scaled_size for plan in plans], "int32"),
    }


def plan_of_sizes(
    original: Sequence[int], scaled: Sequence[int], model: Any, stretch: bool = False
) -> ResizePlan:
    """The plan by which an image of one size is scaled to another and padded to the model's.

    With `stretch` an image that is scaled to the model's size was stretched.
    """
    (h0, w0), (h, w) = original, scaled
    if stretch and (h, w) == size_pair(model, "model"):
        return ResizePlan((h0, w0), model, stretch=True)
    if (h0, w0) == (h, w):
        return ResizePlan((h0, w0), model, pad_only=True)
    # One side is as long as the frame allows, the other is rounded.
    by_height = int(w0 * (h / h0) + 0.5) == w
    fit = (h, max(w, w0 * h)) if by_height else (max(h, h0 * w), w)
    return ResizePlan((h0, w0), model, fit_size=fit)


def check_not_swapped(original_sizes: Any, scaled_sizes: Any) -> None:
    """Raises for (width, height) in place of (height, width) where the proportions are known.

    Args:
        original_sizes: ints `(B, 2)`.
        scaled_sizes: ints `(B, 2)`, what the images were scaled to, or None.
    """
    if scaled_sizes is None:
        return
    for (h0, w0), (h, w) in zip(original_sizes, np.asarray(scaled_sizes).tolist(), strict=True):
        # Both sides were rounded, by half a pixel at most.
        right, swapped = abs(h * w0 - w * h0), abs(h * h0 - w * w0)
        if right > max(h0, w0) >= swapped:
            raise ValueError(
                "`original_sizes` must be the (height, width) of each image. Received: "
                f"{(h0, w0)} for an image that was scaled to {h} x {w}, height x width. That looks "
                "like (width, height), which is what pillow's `image.size` is: pass "
                "`image.size[::-1]`."
            )


def mask_axes(plan: ResizePlan, mask_size: tuple[int, int]) -> tuple[AxisWeights, AxisWeights]:
    """The weights of `plan.masks_to_original` for heights and widths, from masks `(Lh, Lw)`."""
    if plan.stretch:  # in one step: as if the mask frame were the model's
        sizes = (plan.original_size, mask_size, mask_size, mask_size)
    else:
        sizes = (plan.original_size, plan.scaled_size, plan.model_size, mask_size)
    rows, columns = (axis_weights(*along) for along in zip(*sizes, strict=True))
    return rows, columns


def resize_image(
    image: np.ndarray, size: tuple[int, int], resample: str | int = "bilinear"
) -> np.ndarray:
    """Resizes an image `(h, w)` or `(h, w, C)` of any number of channels with pillow, antialiased.

    uint8 stays uint8; anything else becomes float32.
    """
    from PIL import Image

    code = resampling_code(resample)
    if image.dtype != np.uint8:
        image = image.astype("float32")
    size_xy = (size[1], size[0])
    if image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8):
        return np.array(Image.fromarray(np.ascontiguousarray(image)).resize(size_xy, code))
    # One channel at a time: pillow has no images of arbitrary depth, and would multiply the
    # colours of a four-channel image by its "alpha".
    channels = [
        np.asarray(Image.fromarray(np.ascontiguousarray(image[..., c])).resize(size_xy, code))
        for c in range(image.shape[2])
    ]
    return np.stack(channels, axis=-1)  # (height, width, C)


def resampling_code(resample: str | int) -> int:
    """Pillow's code for a resampling filter given by name or code."""
    if isinstance(resample, str) and resample.lower() in RESAMPLING:
        return RESAMPLING.index(resample.lower())
    if isinstance(resample, numbers.Integral) and 0 <= resample < len(RESAMPLING):
        return int(resample)
    raise ValueError(
        f"`resample` must be one of {RESAMPLING} or pillow's code of it. Received: {resample!r}."
    )


def size_pair(size: Any, name: str, square: bool = True) -> tuple[int, int]:
    """Reads a size, `(height, width)` or one number for a square, as a pair of ints."""
    if square and isinstance(size, numbers.Integral):
        size = (size, size)
    try:
        pair = tuple(int(n) for n in size)
        whole = all(int(n) == n for n in size)
    except (TypeError, ValueError):
        pair, whole = (), False
    if len(pair) != 2 or not whole or min(pair) < 1:
        raise ValueError(
            f"`{name}` must be two positive integers, (height, width) in pixels"
            f"{' (or one for a square)' if square else '; an image must not be empty'}. "
            f"Received: {size!r}."
        )
    return pair


@functools.lru_cache(maxsize=16)
def _mask_reduction(original: int, scaled: int, model: int, mask: int) -> np.ndarray:
    """`(filled, original)` weights of an antialiased bilinear resize to the mask frame.

    `filled` is how many of the mask frame's pixels have their centre on the image.
    """
    filled = max(1, int(scaled * mask / model + 0.5))
    step = model / mask * original / scaled  # image pixels per pixel of the mask frame
    centres = (np.arange(filled) + 0.5) * step
    distances = np.abs(np.arange(original) + 0.5 - centres[:, None])  # (filled, original)
    weights = np.maximum(1 - distances / max(step, 1), 0)
    matrix = (weights / weights.sum(axis=1, keepdims=True)).astype("float32")
    matrix.setflags(write=False)
    return matrix


# --- box formats ---


def xyxy_to_xywh(boxes: ArrayLike) -> np.ndarray:
    """`(..., 4)` boxes x1 y1 x2 y2 to x1 y1 width height."""
    boxes = _boxes_array(boxes)
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def xywh_to_xyxy(boxes: ArrayLike) -> np.ndarray:
    """`(..., 4)` boxes x1 y1 width height to x1 y1 x2 y2."""
    boxes = _boxes_array(boxes)
    return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def _boxes_array(boxes: ArrayLike) -> np.ndarray:
    boxes = np.asarray(boxes)
    if boxes.ndim < 1 or boxes.shape[-1] != 4:
        raise ValueError(f"`boxes` must have shape (..., 4). Received: shape={boxes.shape}.")
    # Unsigned pixels would wrap around when subtracted.
    return boxes.astype("int64") if boxes.dtype.kind in "bu" else boxes
