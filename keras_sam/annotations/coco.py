"""COCO instances: one JSON file for all images."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from keras_sam.annotations.image_annotations import (
    ImageAnnotations,
    plain,
    read_json,
    segmentation_to_rle,
)
from keras_sam.files import whole_file
from keras_sam.geometry import xyxy_to_xywh
from keras_sam.masks import decode_rle, mask_area, mask_to_box, mask_to_polygons, polygons_to_coco

_OWN_KEYS = ("id", "image_id", "category_id", "segmentation", "area", "bbox", "iscrowd")


def write_coco(
    path: str | os.PathLike,
    images: Iterable[ImageAnnotations],
    categories: Mapping[int, str] | None = None,
    polygons: bool = False,
    tolerance: float = 0.0,
) -> None:
    """Writes COCO instances. `pycocotools` loads them (`test_coco_loads_in_pycocotools`).

    Images are written one by one, so an iterator needs little memory. `area` and `bbox` are
    computed from the mask, the box by COCO's rule: one pixel wider and higher than the
    generator's. All other entries of a record are kept.

    Args:
        path: the file, whole or not at all.
        images: iterable of `ImageAnnotations`; without an `image_id` they get the next number.
        categories: mapping from id to name. Defaults to the categories that occur: 1, also that
            of records without a `category_id`, is named "object", others by their number.
        polygons: bool. Writes polygons, with holes cut open, instead of
            run lengths; crowds stay run lengths. Defaults to `False`.
        tolerance: float, pixels. Simplifies the polygons, see `mask_to_polygons`.

    Raises:
        ValueError: if an image occurs twice or a category is unknown.
        OSError: if the file cannot be written.
    """
    names = None if categories is None else {int(key): name for key, name in categories.items()}
    met: set[int] = set()
    number = 0
    with whole_file(path, text=True) as file, _ImageEntries() as entries:
        file.write('{"info": {"description": "masks by keras_sam"},\n"annotations": [')
        for image in images:
            listed = entries.add(image)
            for record in image.records:
                number += 1
                entry = {"id": number, "image_id": listed["id"]}
                entry |= annotation_entry(record, image.size, polygons, tolerance)
                met.add(entry["category_id"])
                if names is not None and entry["category_id"] not in names:
                    raise ValueError(
                        f"`categories` must name every category. Received: {sorted(names)}, "
                        f"and a record of category {entry['category_id']} in {image.file_name!r}."
                    )
                file.write("\n" if number == 1 else ",\n")
                file.write(json.dumps(entry, allow_nan=False))
        if names is None:
            names = {key: "object" if key == 1 else f"category {key}" for key in met or {1}}
        named = [{"id": key, "name": name} for key, name in sorted(names.items())]
        file.write('],\n"images": [')
        for position, line in enumerate(entries):
            file.write((", " if position else "") + line.rstrip("\n"))
        file.write("]")
        file.write(',\n"categories": ' + json.dumps(named) + "}\n")


def read_coco(path: str | os.PathLike) -> tuple[list[ImageAnnotations], dict[int, str]]:
    """Reads COCO instances.

    Args:
        path: the file.

    Returns:
        The images in the file's order, each with its annotations as
        records, and the categories as a dict from id to name. A record's `segmentation` is
        as in the file, run lengths or polygons: see `segmentation_to_rle`.

    Raises:
        ValueError: if the file is not a COCO instances file, with what is missing.
    """
    data = read_json(path)
    where = f"`{os.fspath(path)}`"
    _require(data, ("images", "annotations"), where)
    for image in data["images"]:
        _require(image, ("id", "width", "height", "file_name"), f"an image in {where}")
    by_image, unknown = annotations_by_image(data, where)
    if unknown:
        raise ValueError(
            f"Annotations in {where} must belong to its images. "
            f"Received: image_id={unknown[0]['image_id']!r}, which no image has."
        )
    images = []
    for image, of_image in zip(data["images"], by_image, strict=True):
        records = [{k: v for k, v in entry.items() if k != "image_id"} for entry in of_image]
        size = (image["height"], image["width"])
        images.append(ImageAnnotations(image["file_name"], size, records, image["id"]))
    return images, {entry["id"]: entry["name"] for entry in data.get("categories", [])}


def annotations_by_image(data: Mapping, where: str) -> tuple[list[list[dict]], list[dict]]:
    """The annotations of each image of COCO's `images`, and those of images that are not there.

    Ids are compared as they are, and then as numbers: some files have them as text.
    """
    records: list[list[dict]] = [[] for _ in data["images"]]
    as_number: dict[Any, int] = {}
    as_is: dict[Any, int] = {}
    for index, image in enumerate(data["images"]):
        _require(image, ("id", "file_name"), f"an image in {where}")
        if image["id"] in as_is:
            raise ValueError(f"Images in {where} must have ids of their own: {image['id']}.")
        as_is[image["id"]] = index
        as_number.setdefault(_number(image["id"]), index)
    unknown = []
    for annotation in data["annotations"]:
        _require(annotation, ("image_id",), f"an annotation in {where}")
        image_id = annotation["image_id"]
        index = as_is.get(image_id, as_number.get(_number(image_id)))
        (unknown if index is None else records[index]).append(annotation)
    return records, unknown


def usable_segmentation(segmentation: Any) -> tuple[list | dict | None, int]:
    """COCO's `segmentation` without rings that enclose nothing, None if nothing is left.

    Returns it with the number of rings of one or two points. Polygons may be flat, lists of
    points, or text.
    """
    if isinstance(segmentation, dict) or segmentation is None:
        return segmentation, 0
    rings = segmentation if isinstance(segmentation, list) else [segmentation]
    rings = [ring.replace(",", " ").split() if isinstance(ring, str) else ring for ring in rings]
    if any(not isinstance(ring, list) or len(ring) == 1 for ring in rings):  # flat
        rings = [[ring[0] if isinstance(ring, list) and ring else ring for ring in rings]]
    if len(rings) > 2 and all(len(ring) == 2 for ring in rings):  # points
        rings = [[number for point in rings for number in point]]
    kept = [ring for ring in rings if len(ring) >= 6 or len(ring) % 2]
    return kept or None, sum(1 for ring in rings if ring) - len(kept)


def _number(value: Any) -> Any:
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


class _ImageEntries:
    """The entries of images, on disk until they are written: a million take no memory.

    Nor do their ids, as long as they count from 1.
    """

    def __init__(self) -> None:
        self._last = self._largest = 0  # ids up to `_last` are taken, others are in `_apart`
        self._apart: set[int] = set()

    def __enter__(self) -> _ImageEntries:
        self._file = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[str]:
        """Yields the entries as lines of JSON."""
        self._file.seek(0)
        return iter(self._file)

    def add(self, image: ImageAnnotations) -> dict:
        """The entry of an image, with an id of its own."""
        number = self._largest + 1 if image.image_id is None else image.image_id
        if 1 <= number <= self._last or number in self._apart:
            first = next(entry for entry in map(json.loads, self) if entry["id"] == number)
            raise ValueError(
                f"Images must have ids of their own. Received: image_id={number} for "
                f"{first['file_name']!r} and {image.file_name!r}."
            )
        self._apart.add(number)
        self._largest = max(self._largest, number)
        while self._last + 1 in self._apart:
            self._last += 1
            self._apart.remove(self._last)
        height, width = image.known_size()
        entry = {"id": number, "width": width, "height": height, "file_name": str(image.file_name)}
        self._file.write(json.dumps(entry) + "\n")
        return entry


def annotation_entry(
    record: Mapping, size: Sequence[int], polygons: bool = False, tolerance: float = 0.0
) -> dict:
    """A record as an annotation of COCO, without the ids of its own and of its image."""
    rle = segmentation_to_rle(record["segmentation"], size)
    crowd = int(record.get("iscrowd", 0))
    shape: Any = rle
    if polygons and not crowd:
        shape = polygons_to_coco(mask_to_polygons(decode_rle(rle), tolerance))
    entry = {
        "category_id": int(record.get("category_id", 1)),
        "segmentation": shape,
        "area": int(mask_area(rle)),
        "bbox": xyxy_to_xywh(mask_to_box(rle, inclusive=False)).tolist(),
        "iscrowd": crowd,
    }
    extra = {key: plain(value) for key, value in record.items() if key not in _OWN_KEYS}
    return {**entry, **extra}


def _require(entry: Any, keys: tuple[str, ...], where: str) -> None:
    missing = keys if not isinstance(entry, dict) else [key for key in keys if key not in entry]
    if missing:
        raise ValueError(
            f"COCO instances need {', '.join(f'`{key}`' for key in keys)}. "
            f"Missing: {', '.join(f'`{key}`' for key in missing)} of {where}."
        )
