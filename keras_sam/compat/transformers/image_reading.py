"""Images and sizes as transformers takes them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_sam.compat.tensors import channels_first, channels_last
from keras_sam.images import is_pillow_image, load_image
from keras_sam.prompts.nested import to_numpy

FIRST, LAST = "channels_first", "channels_last"


def longest_edge(size: Any) -> dict[str, int]:
    """A size as `{"longest_edge": int}`."""
    if isinstance(size, dict) and "longest_edge" not in size:
        raise ValueError(f'`size` must be {{"longest_edge": int}}. Received: {size}.')
    return dict(size) if isinstance(size, dict) else {"longest_edge": int(size)}


def height_width(size: Any) -> dict[str, int]:
    """A size as `{"height": int, "width": int}`."""
    if isinstance(size, dict):
        return {"height": size["height"], "width": size["width"]}
    height, width = size if isinstance(size, Sequence) else (size, size)
    return {"height": int(height), "width": int(width)}


def _format_of(image, data_format):
    """`"channels_first"` or `"channels_last"`, as it is said, or else read off the shape."""
    if data_format is not None:
        return FIRST if str(getattr(data_format, "value", data_format)).endswith("first") else LAST
    if image.shape[0] in (1, 3) and image.shape[-1] not in (1, 3):
        return FIRST
    if image.shape[-1] in (1, 3, 4):
        return LAST
    raise ValueError(
        "An image must have its channels, 1 or 3, first or last. Received: shape="
        f"{image.shape}. Pass `input_data_format`."
    )


def in_format(image: Any, given: str | None, wanted: str | None, function: Callable) -> np.ndarray:
    """Applies a function of channels-last images to an image of any format."""
    image = to_numpy(image)
    given = _format_of(image, given)
    made = function(channels_last(image) if given == FIRST else image)
    return channels_first(made) if _format_of(made, wanted or given) == FIRST else made


def as_list(images: Any, rank: int) -> Sequence[Any]:
    """One image of this rank, several in one array, or a list of them, as a list."""
    if isinstance(images, (list, tuple)):
        return images
    is_batch = not is_pillow_image(images) and getattr(images, "ndim", 0) == rank + 1
    return list(images) if is_batch else [images]


def read_pixels(image: Any, convert_rgb: bool, data_format: str | None) -> tuple[np.ndarray, str]:
    """The pixels `(h, w, C)`, and in which format they came."""
    if isinstance(image, (str, os.PathLike)):
        return load_image(image), LAST
    if is_pillow_image(image):
        # Not turned upright by EXIF, as in transformers.
        image = np.asarray(image.convert("RGB") if convert_rgb else image)
        return image if image.ndim == 3 else image[..., None], LAST
    array = to_numpy(image)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or not array.size:
        raise ValueError(
            "An image must have shape (height, width, channels) or (channels, height, width), and "
            f"a pixel. Received: shape={array.shape}."
        )
    layout = _format_of(array, data_format)
    array = channels_last(array) if layout == FIRST else array
    if convert_rgb and array.shape[-1] in (1, 4):
        array = np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array[..., :3]
    return array, layout
