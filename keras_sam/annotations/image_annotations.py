"""The masks of one image, as all formats read and write them, and their conversion."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_sam.geometry import size_pair
from keras_sam.masks import compress_rle, encode_rle, polygons_to_mask


@dataclasses.dataclass(frozen=True)
class ImageAnnotations:
    """The masks of one image: what every writer takes and every reader returns.

    Args:
        file_name: str. The image's file, as named in the annotations.
        size: pair of ints `(H0, W0)`, pixels. None only for a mask folder without masks.
        records: list of dicts, one per mask, as `SAMAutomaticMaskGenerator` makes them:
            `segmentation` (binary mask, run lengths or COCO polygons) and optional entries: `area`,
            `bbox`, `predicted_iou`, `stability_score`, `point_coords`, `crop_box`, `category_id`.
        image_id: int. Defaults to `None`: chosen by the writer.

    Raises:
        ValueError: if `size` is not a size.

    Example:

    >>> records = [{"segmentation": np.array([[0, 1, 1], [0, 1, 1]])}]
    >>> image = keras_sam.annotations.ImageAnnotations("photo.jpg", (2, 3), records)
    >>> keras_sam.annotations.write_sa1b("photo.json", image)
    >>> keras_sam.annotations.read_sa1b("photo.json").records[0]["area"]
    4
    """

    file_name: str
    size: tuple[int, int] | None
    records: Sequence[dict] = ()
    image_id: int | None = None

    def __post_init__(self) -> None:
        if self.size is not None:
            object.__setattr__(self, "size", size_pair(self.size, "size", square=False))

    def known_size(self) -> tuple[int, int]:
        """`size`, for formats that need one."""
        if self.size is None:
            raise ValueError(f"{self.file_name!r} must have a size. Received: size=None.")
        return self.size


def segmentation_to_rle(segmentation: Any, size: Sequence[int]) -> dict:
    """Turns a segmentation of any format into compressed run lengths.

    Args:
        segmentation: binary mask `(H0, W0)`, run-length dict, or COCO
            polygons, a list of `[x1, y1, x2, y2, ...]` in pixels.
        size: pair of ints `(H0, W0)`, of the image.

    Returns:
        A dict with `size` and the string `counts`.

    Raises:
        ValueError: if it is none of these, or of another size.
    """
    size = size_pair(size, "size", square=False)
    if isinstance(segmentation, dict):
        rle = compress_rle(segmentation)
    elif isinstance(segmentation, (list, tuple)):
        rle = encode_rle(polygons_to_mask(segmentation, size))
    else:
        mask = np.asarray(segmentation)
        if mask.ndim != 2:
            raise ValueError(
                "A segmentation must be a binary mask (H0, W0), run lengths or polygons. "
                f"Received: an array of shape={mask.shape}."
            )
        rle = encode_rle(mask)
    if tuple(rle["size"]) != size:
        raise ValueError(
            f"A segmentation must have its image's size {size}. Received: size={rle['size']}."
        )
    return rle


def plain(value: Any) -> Any:
    """Converts a value for JSON: numpy values to Python's, and NaN to None."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, bytes):
        return value.decode("ascii")
    return None if isinstance(value, float) and not np.isfinite(value) else value


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file; raises a ValueError with the file's name if it is not JSON."""
    with open(path, "rb") as file:
        return parse_json(file.read(), path)


def parse_json(content: bytes, path: str | os.PathLike) -> Any:
    """Reads the content of a JSON file in UTF-8, which errors call `path`."""
    try:
        return json.loads(content.decode())
    except ValueError as error:
        raise ValueError(
            f"`{os.fspath(path)}` must be a JSON file. Received: no valid JSON ({error})."
        ) from error
