"""SA-1B: one JSON file per image, as the data set that SAM was trained on."""

from __future__ import annotations

import json
import os

from keras_sam.annotations.image_annotations import (
    ImageAnnotations,
    plain,
    read_json,
    segmentation_to_rle,
)
from keras_sam.files import whole_file
from keras_sam.geometry import xyxy_to_xywh
from keras_sam.masks import mask_area, mask_to_box


def write_sa1b(path: str | os.PathLike, image: ImageAnnotations) -> None:
    """Writes the masks of one image in SA-1B's format.

    Args:
        path: the JSON file, whole or not at all.
        image: `ImageAnnotations`. `area` and `bbox` (x y width height from
            inclusive corners, as the generator's) are added to records without them.

    Raises:
        ValueError: if a segmentation is malformed.
        OSError: if the file cannot be written.
    """
    height, width = image.known_size()
    annotations = []
    for number, record in enumerate(image.records):
        rle = segmentation_to_rle(record["segmentation"], image.size)
        counted = {"area": mask_area(rle), "bbox": xyxy_to_xywh(mask_to_box(rle))}
        annotations.append(plain({"id": number, **counted, **record, "segmentation": rle}))
    about = {
        "image_id": 0 if image.image_id is None else image.image_id,
        "width": width,
        "height": height,
        "file_name": str(image.file_name),
    }
    with whole_file(path, text=True) as file:
        json.dump({"image": about, "annotations": annotations}, file, allow_nan=False)


def read_sa1b(path: str | os.PathLike) -> ImageAnnotations:
    """Reads a JSON file of SA-1B, or one that `write_sa1b` wrote.

    Args:
        path: the JSON file.

    Returns:
        `ImageAnnotations` with compressed run lengths.

    Raises:
        ValueError: if the file is of another kind.
    """
    data = read_json(path)
    try:
        about, records = data["image"], list(data["annotations"])
        size = (about["height"], about["width"])
        name, image_id = about["file_name"], about["image_id"]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"`{os.fspath(path)}` must be in SA-1B's format: `image` with `image_id`, `width`, "
            f"`height` and `file_name`, and `annotations`. Missing: {error}."
        ) from error
    return ImageAnnotations(name, size, records, image_id)
