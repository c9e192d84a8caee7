"""Images as one numpy array, read from arrays, tensors, pillow images and files.

Numpy and pillow only.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np

from keras_sam.prompts.nested import to_numpy

# Mean and standard deviation of RGB in 0..255 that every released checkpoint was trained with.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

# What cameras, scanners and the web make; other files of a folder are not taken for images.
IMAGE_ENDINGS: tuple[str, ...] = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".heic", ".heif", ".bmp"),
    *(".gif", ".tif", ".tiff", ".jp2", ".ppm", ".pgm"),
)


def load_image(image: Any, *args: Any, **kwargs: Any) -> np.ndarray:
    """`read_image`, with a warning if floats do not look like 0..255."""
    loaded = read_image(image, *args, **kwargs)
    warn_of_range([loaded])
    return loaded


def read_image(
    image: Any,
    channel_order: str = "rgb",
    num_channels: int = 3,
    convert_rgb: bool = True,
    data_format: str = "channels_last",
) -> np.ndarray:
    """Reads one image as uint8 or float32 `(H0, W0, num_channels)`, RGB, which may share memory.

    `image` is an array or tensor `(H0, W0, C)` or `(H0, W0)`, a pillow image, or a path. Values
    are 0..255: uint8 unchanged, uint16 divided by 257, other integers if they are within 0..255,
    floats unchanged. Pillow images and files are turned upright by their EXIF orientation;
    `channel_order` and `data_format` are those of arrays. `convert_rgb` repeats a grey channel and
    drops alpha where the model takes three channels.
    """
    check_choice(channel_order, "channel_order", ("rgb", "bgr"))
    check_choice(data_format, "data_format", ("channels_last", "channels_first"))
    if isinstance(image, (str, bytes, os.PathLike)):
        array = _read_file(os.fsdecode(image), convert_rgb and num_channels == 3)
    elif is_pillow_image(image):
        array = _read_pillow(image, convert_rgb and num_channels == 3)
    else:
        array = _to_array(image)
        if array.ndim == 3 and data_format == "channels_first":
            array = np.moveaxis(array, 0, -1)
        array = _to_pixel_values(array)
        array = _match_channels(array, num_channels, convert_rgb)
        return array[..., ::-1] if channel_order == "bgr" and num_channels == 3 else array
    return _match_channels(_to_pixel_values(array), num_channels, convert_rgb)


def warn_of_range(images: Iterable[np.ndarray]) -> None:
    """Warns, once for all images of a call, if floats do not look like 0..255."""
    extremes = [(i.min(), i.max()) for i in images if i.dtype.kind == "f"]
    if any(low >= 0 and 0 < high <= 1 for low, high in extremes):
        warnings.warn(
            "A float image lies within 0..1. Images are always 0..255 and never rescaled: this "
            "one is nearly black. Multiply it by 255 if it is not.",
            stacklevel=3,
        )
    elif any(low < -16 or high > 271 for low, high in extremes):
        # The margin is the overshoot of filters with negative lobes.
        warnings.warn(
            "A float image lies far outside 0..255. Images are always 0..255: the model "
            "normalises them itself.",
            stacklevel=3,
        )


def is_pillow_image(image: Any) -> bool:
    """Whether the object is a pillow image."""
    from PIL import Image

    return isinstance(image, Image.Image)


def check_choice(value: Any, name: str, choices: tuple[str, ...]) -> None:
    """Raises unless `value` is one of the strings."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {choices}. Received: {value!r}.")


def _read_file(path: str, convert_rgb: bool) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return _read_pillow(image, convert_rgb)
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no image file at {path!r}.") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        # Some of pillow's decoders raise SyntaxError for a broken file.
        raise ValueError(
            f"The file must be an image that pillow can read. Received: {path!r} ({error}). "
            "Open it yourself and pass an array (height, width, channels)."
        ) from error


def _read_pillow(image: Any, convert_rgb: bool) -> np.ndarray:
    from PIL import ImageOps

    # Before the transposition, which makes a new image without its file's format.
    sixteen_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    if 0 in image.size:
        raise _empty_error((image.size[1], image.size[0]))
    image = ImageOps.exif_transpose(image)
    if sixteen_bits:
        return np.asarray(image).astype("uint16")
    if image.mode in ("I", "F"):
        return np.asarray(image)
    if image.mode in ("P", "PA", "La", "RGBa"):
        # Palettes and premultiplied colours must be resolved before alpha can be dropped.
        image = image.convert("LA" if image.mode == "La" else "RGBA")
        image = image if convert_rgb else image.convert("RGB")
    elif image.mode == "1":
        image = image.convert("L")
    if convert_rgb and image.mode != "RGB":
        image = image.convert("RGB")
    return np.asarray(image)


def _to_array(image: Any) -> np.ndarray:
    try:
        return to_numpy(image)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`image` must be an array (height, width, channels), a pillow image or a path. "
            f"Received: {type(image).__name__} ({error})."
        ) from error


def _to_pixel_values(array: np.ndarray) -> np.ndarray:
    """`(H0, W0, C)` uint8 or float32, 0..255."""
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3:
        raise ValueError(
            "An image must have shape (height, width, channels) or (height, width). "
            f"Received: shape={array.shape}."
        )
    if array.size == 0:
        raise _empty_error(array.shape)
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return array.astype("float32") / np.float32(257)
    if array.dtype.kind in "iu":
        if array.min() < 0 or array.max() > 255:
            raise ValueError(
                f"An image of {array.dtype} must have values within 0..255. Received: "
                f"{array.min()}..{array.max()}. Pass 16-bit images as uint16; scale others first."
            )
        return array.astype("uint8")
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            array = array.astype("float32")
        if not np.isfinite(array).all():
            raise ValueError(
                "An image must be finite. Received: "
                f"{int((~np.isfinite(array)).sum())} values that are NaN or infinite. "
                "Replace them first, for instance with `np.nan_to_num`."
            )
        return array
    raise ValueError(
        "An image must be uint8, uint16, or numbers within 0..255. Received: "
        f"dtype={array.dtype}. Convert it with `(image * 255).astype('uint8')`."
        if array.dtype.kind == "b"
        else f"An image must hold numbers within 0..255. Received: dtype={array.dtype}."
    )


def _match_channels(array: np.ndarray, num_channels: int, convert_rgb: bool) -> np.ndarray:
    channels = array.shape[-1]
    if channels == num_channels:
        return array
    if convert_rgb and num_channels == 3 and channels == 1:
        return np.repeat(array, 3, axis=-1)
    if convert_rgb and num_channels == 3 and channels == 4:
        return array[..., :3]
    remedy = "Select or convert the channels first."
    if array.shape[0] == num_channels:
        remedy = 'Use `data_format="channels_first"` if the channels come first.'
    accepted = f"{num_channels} channels" + (
        ", or 1 (grey), or 4 (with alpha)" if convert_rgb and num_channels == 3 else ""
    )
    raise ValueError(
        f"An image must have {accepted}, in shape (height, width, channels). "
        f"Received: shape={array.shape}. {remedy}"
    )


def _empty_error(shape: tuple[int, ...]) -> ValueError:
    return ValueError(
        f"An image must have at least one pixel. Received: an empty image of shape={shape}."
    )
