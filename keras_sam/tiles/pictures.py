"""Large pictures, read by windows: arrays of any library, and what is in files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_sam.images import is_image_file, is_pillow_image
from keras_sam.tiles.grid import Box
from keras_sam.tiles.picture import Picture
from keras_sam.tiles.picture_files import (
    dimension_names,
    ome_zarr,
    open_path,
    rasterio_picture,
    whole,
)


def open_picture(
    source: Any,
    axes: str | None = None,
    channels: Sequence[int] | None = None,
) -> Picture:
    """Opens a picture to be read by windows; nothing of its pixels is read.

    Args:
        source: anything with `shape` and slicing, such as an array or memmap of numpy, a zarr or
            dask array, a data set of h5py; an OME-Zarr group; a data set of rasterio; or the path
            of a TIFF (BigTIFF, pyramids and OME, too), a `.zarr` folder, a `.npy` file, or of what
            pillow or, if it is installed, rasterio opens.
        axes: optional str, one letter per axis: `"YX"`, `"YXC"`, `"CYX"`, `"TCZYX"`; all but Y, X
            and C (or S) must have length 1. Needed where neither the file nor the shape says
            which axis holds the channels.
        channels: optional sequence of ints, counted from 0: which channels are red, green and blue,
            or one that is grey. Needed where there are not 1, 3 or 4 channels.

    Returns:
        A `Picture`.

    Raises:
        ValueError: if the axes or channels cannot be told, or a file is damaged.
        FileNotFoundError: if there is no such file.
        ImportError: if a package is missing that opens it; the message names the extra.

    Example:

    ```python
    satellite = np.zeros((5, 300, 400), "uint16")
    picture = keras_sam.tiles.open_picture(satellite, axes="CYX", channels=(3, 1, 0))
    picture.read((0, 0, 40, 30)).shape  # (30, 40, 3)
    ```
    """
    if isinstance(source, Picture):
        return source if channels is None else _choose(source, channels)
    about: dict[str, Any] = {"name": f"a picture, {type(source).__name__},"}
    if isinstance(source, (str, os.PathLike)):
        source, found_axes, about = open_path(Path(os.path.expanduser(source)))
    elif hasattr(source, "shape") and hasattr(source, "__getitem__"):
        found_axes = dimension_names(source)
    elif hasattr(source, "window_transform"):
        return _choose(rasterio_picture(source), channels)
    elif hasattr(source, "group_keys"):
        source, found_axes, more = ome_zarr(source)
        about |= more
    elif is_image_file(source) or is_pillow_image(source):
        source, found_axes = whole(source), None
    else:
        raise ValueError(
            "`image` must be an array with `shape` and slicing, a path, or a data set of rasterio. "
            f"Received: {type(source).__name__}."
        )
    if isinstance(source, Picture):
        return _choose(source, channels)
    return _of_array(source, axes or found_axes, channels, about)


# --- arrays ---


def _of_array(array: Any, axes: str | None, channels: Any, about: dict) -> Picture:
    shape = tuple(int(n) for n in array.shape)
    axes = _checked_axes(axes, shape, about["name"])
    size = (shape[axes.index("Y")], shape[axes.index("X")])
    if not min(size):
        raise ValueError(f"A picture must not be empty. Received: {about['name']} of {shape=}.")
    count = shape[axes.index("C")] if "C" in axes else 1

    def read(box):
        return _read_array(array, axes, box, range(count))

    picture = Picture(size, count, np.dtype(array.dtype), read=read, axes=axes, **about)
    return _choose(
        picture, channels, lambda chosen: lambda box: _read_array(array, axes, box, chosen)
    )


def _read_array(array: Any, axes: str, box: Box, channels: Sequence[int]) -> np.ndarray:
    x1, y1, x2, y2 = box
    places = {"Y": slice(y1, y2), "X": slice(x1, x2)}
    kept = [axis for axis in axes if axis in "YX"]

    def part(channel):
        index = tuple({**places, "C": channel}.get(axis, 0) for axis in axes)
        values = array[index]
        values = values if np.ma.isMaskedArray(values) else np.asarray(values)
        return values if kept == ["Y", "X"] else values.T

    if "C" not in axes:
        return part(0)[..., None]
    if axes[-1] == "C" and kept == ["Y", "X"]:  # side by side: read together
        first = min(channels)
        return part(slice(first, max(channels) + 1))[..., [n - first for n in channels]]
    parts = [part(channel) for channel in channels]
    return (np.ma.stack if np.ma.isMaskedArray(parts[0]) else np.stack)(parts, axis=-1)


def _checked_axes(axes: str | None, shape: tuple[int, ...], name: str) -> str:
    """The letters of the axes, with C for channels, told by the shape where that is clear."""
    if axes is None:
        if len(shape) == 2:
            return "YX"
        if len(shape) == 3 and (shape[-1] <= 4) != (shape[0] <= 4):
            return "YXC" if shape[-1] <= 4 else "CYX"
        if len(shape) == 3 and shape[0] not in (3, 4) and shape[-1] in (1, 3, 4):
            return "YXC"  # a picture of one or two rows
        raise ValueError(
            f"`axes` must be given where the shape does not tell them, such as axes='CYX' for "
            f"channels first. Received: {name} of shape={shape}, whose axes have no names."
        )
    letters = axes.upper().replace("S", "C")
    planes = [n for letter, n in zip(letters, shape) if letter not in "YXC"]
    counts = [letters.count(axis) for axis in "YXC"]
    usable = len(letters) == len(shape) and counts[:2] == [1, 1] and counts[2] < 2
    if not usable or max(planes, default=1) > 1:
        raise ValueError(
            "`axes` must have one letter per axis of the picture: Y and X once, C at most once, "
            "and others for axes of length 1, so select a plane first. Received: "
            f"axes={axes!r}, shape={shape}."
        )
    return letters


def _choose(picture: Picture, channels: Any, reader: Callable | None = None) -> Picture:
    """The picture with the channels that were chosen, 1, 3 or 4 of them."""
    count = picture.num_channels
    if channels is None:
        if count not in (1, 3, 4):
            raise ValueError(
                "`channels` must name one or three of the channels, such as channels=(0, 1, 2). "
                f"Received: None, and {picture.name} with {count} channels."
            )
        return picture
    chosen = tuple(int(n) for n in np.atleast_1d(channels))
    if len(chosen) not in (1, 3) or min(chosen) < 0 or max(chosen) >= count:
        raise ValueError(
            f"`channels` must be one or three of 0..{count - 1}, the channels of {picture.name}. "
            f"Received: {channels!r}."
        )
    if reader is None:
        whole = picture.read

        def read(box):
            return whole(box)[..., list(chosen)]
    else:
        read = reader(chosen)
    # Of the file's channels, where this is a choice of a choice.
    names = chosen if picture.channels is None else tuple(picture.channels[n] for n in chosen)
    return dataclasses.replace(picture, num_channels=len(chosen), read=read, channels=names)
