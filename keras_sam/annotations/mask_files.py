"""One mask from an image file of any kind that pillow reads, or of TIFF tifffile."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image, ImageOps

from keras_sam.images import PILLOW_ERRORS, is_tiff, needs_tifffile, read_tiff
from keras_sam.masks.reading import MaskReading, read_mask


def read_mask_file(path: str | os.PathLike, void: int | str | None = "auto") -> MaskReading:
    """Reads a mask by the rule of `keras_sam.masks.reading`, turned upright by its own EXIF."""
    name, reason, pixels, lossy = f"{os.fspath(path)!r}", None, None, False
    try:
        with Image.open(path) as picture:
            if not needs_tifffile(picture, to_rgb=True):
                pixels, lossy = _pixels_of(picture), picture.format in ("JPEG", "MPO")
    except PILLOW_ERRORS as error:
        if isinstance(error, FileNotFoundError) or not is_tiff(path):
            raise _no_mask(path, error) from error
        reason = error
    if pixels is None:
        pixels = np.ma.getdata(read_tiff(path, name, True, reason))
    try:
        return read_mask(pixels, void, lossy)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)} cannot be read as a mask. {error}") from error


def _no_mask(path: str | os.PathLike, error: Exception) -> ValueError:
    return ValueError(
        f"The mask must be an image that pillow can read. Received: {os.fspath(path)} ({error}). "
        "For HEIC, install pillow-heif and call `pillow_heif.register_heif_opener()`; save other "
        "formats as PNG."
    )


def _pixels_of(picture: Image.Image) -> np.ndarray:
    # Before the transposition, which makes a new image without its file's format.
    is_png = picture.format == "PNG"
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16") or (picture.mode == "I" and is_png):
        return np.asarray(picture).astype("uint16")
    if picture.mode == "P" and "transparency" not in picture.info:
        colours = np.asarray(picture.convert("RGB"))
        is_grey = (colours == colours[..., :1]).all()
        # As in PASCAL VOC, indices from a black background on are a label map.
        return colours if is_grey or any(picture.getpalette("RGB")[:3]) else np.asarray(picture)
    if picture.mode in ("P", "PA", "RGBa"):
        picture = picture.convert("RGBA")
    elif picture.mode == "La":
        picture = picture.convert("LA")
    elif picture.mode not in ("1", "L", "I", "F", "LA", "RGB", "RGBA"):
        picture = picture.convert("RGB")
    return np.asarray(picture)
