"""YOLO segmentation: one text file per image, a line `class x1 y1 x2 y2 ...` per object."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from keras_sam.annotations.image_annotations import ImageAnnotations, segmentation_to_rle
from keras_sam.files import whole_file
from keras_sam.masks import (
    decode_rle,
    encode_rle,
    mask_to_polygons,
    polygons_to_mask,
    polygons_to_yolo,
    yolo_to_polygons,
)


def write_yolo(
    path: str | os.PathLike,
    image: ImageAnnotations,
    classes: Mapping[int, int] | None = None,
    tolerance: float = 0.0,
) -> None:
    """Writes the masks of one image as YOLO segmentation.

    Several parts of an object, and holes, are joined by cuts of zero width.
    An empty mask has no line, and an image without masks has an empty file.

    Args:
        path: the text file, whole or not at all.
        image: `ImageAnnotations`.
        classes: mapping from a record's `category_id` to YOLO's class.
            Defaults to the `category_id` itself, 0 where there is none.
        tolerance: float, pixels. Simplifies the outlines, see
            `mask_to_polygons`; at 0, masks come back exact. Defaults to `0.0`.

    Raises:
        ValueError: if a category has no class or a segmentation is malformed.
        OSError: if the file cannot be written.
    """
    size = image.known_size()
    lines = []
    for record in image.records:
        category = int(record.get("category_id", 0))
        if classes is not None and category not in classes:
            raise ValueError(
                f"`classes` must map every category. Received: {dict(classes)}, and a record of "
                f"category {category} in {image.file_name!r}."
            )
        mask = decode_rle(segmentation_to_rle(record["segmentation"], size))
        values = polygons_to_yolo(mask_to_polygons(mask, tolerance), size)
        if values:
            number = category if classes is None else classes[category]
            lines.append(" ".join([str(number), *(f"{value:.7g}" for value in values)]) + "\n")
    with whole_file(path, text=True) as file:
        file.writelines(lines)


def read_yolo(
    path: str | os.PathLike, size: Sequence[int], file_name: str | None = None
) -> ImageAnnotations:
    """Reads the masks of one image from YOLO segmentation.

    Args:
        path: the text file.
        size: pair of ints `(H0, W0)` of the image, which is not in the file.
        file_name: str. Name of the image. Defaults to that of the text file without ending.

    Returns:
        `ImageAnnotations` with compressed run lengths and a `category_id`.

    Raises:
        ValueError: if a line is not a class and a ring, with the line's number.
    """
    image = ImageAnnotations(Path(path).stem if file_name is None else file_name, size, [])
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            category, *values = line.split()
            polygons = yolo_to_polygons([float(value) for value in values], image.size)
            category = int(category)
        except ValueError as error:
            raise ValueError(
                f"Line {number} of `{os.fspath(path)}` must be a class and at least 3 points "
                f"x y in 0..1. Received: {line[:60]!r}."
            ) from error
        mask = polygons_to_mask(polygons, image.size)
        image.records.append({"segmentation": encode_rle(mask), "category_id": category})
    return image
