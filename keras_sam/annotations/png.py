"""PNG: a folder with one mask per file and a table, or all masks in one label map."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, UnidentifiedImageError

from keras_sam.annotations.image_annotations import ImageAnnotations, segmentation_to_rle
from keras_sam.files import whole_file, whole_folder
from keras_sam.geometry import xyxy_to_xywh
from keras_sam.masks import decode_rle, encode_rle, mask_area, mask_to_box

TABLE = "metadata.csv"
_BOX = ("x0", "y0", "w", "h")
# The columns of the table that Meta's command line writes, in its order.
_COLUMNS = (
    "id",
    "area",
    *(f"bbox_{side}" for side in _BOX),
    "point_input_x",
    "point_input_y",
    "predicted_iou",
    "stability_score",
    *(f"crop_box_{side}" for side in _BOX),
)


def write_mask_folder(folder: str | os.PathLike, image: ImageAnnotations) -> None:
    """Writes each mask as a black and white PNG, and a table: the layout of Meta's command line.

    Args:
        folder: the folder of this image, complete or not at all: `0.png`,
            `1.png`, ... and `metadata.csv`. An earlier result there is replaced, other
            folders are not. Cells for missing entries of a record are left empty.
        image: `ImageAnnotations`.

    Raises:
        ValueError: if a segmentation is malformed.
        OSError: if the folder cannot be written or holds other files.
    """
    with whole_folder(folder, replaceable=TABLE) as place:
        rows = [_COLUMNS]
        for number, record in enumerate(image.records):
            rle = segmentation_to_rle(record["segmentation"], image.size)
            mask = decode_rle(rle).view("uint8") * np.uint8(255)
            Image.fromarray(mask).save(place / f"{number}.png")
            rows.append(_row_of(number, record, rle))
        with open(place / TABLE, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


def read_mask_folder(folder: str | os.PathLike, file_name: str | None = None) -> ImageAnnotations:
    """Reads the masks of one image from PNG files and their table.

    Args:
        folder: a folder that Meta's command line or `write_mask_folder` wrote.
        file_name: str. Name of the image. Defaults to that of the folder.

    Returns:
        `ImageAnnotations` with compressed run lengths; cells that are
        empty give no entry. Its `size` is None if there are no masks.

    Raises:
        ValueError: if a file of the table is missing or malformed.
    """
    folder = Path(folder)
    with open(folder / TABLE, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    records, size = [], None
    for row in rows:
        try:
            record = _record_of(row)
            name = f"{int(row['id'])}.png"
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"`{folder / TABLE}` must have the columns {', '.join(_COLUMNS)}, and numbers in "
                f"them. Received: {row}."
            ) from error
        pixels = _read_png(folder / name)
        record["segmentation"] = encode_rle(pixels if pixels.dtype == bool else pixels > 127)
        if size not in (None, pixels.shape):
            raise ValueError(
                f"Masks in `{folder}` must have one size. Received: {size} and {pixels.shape}."
            )
        size = pixels.shape
        records.append(record)
    return ImageAnnotations(folder.name if file_name is None else file_name, size, records)


def write_label_map(path: str | os.PathLike, label_map: ArrayLike) -> None:
    """Writes a label map as an indexed PNG.

    Up to 255 labels get colours, the palette of PASCAL VOC, and viewers show
    them; more than that are written as 16 bit grey.

    Args:
        path: the PNG file, whole or not at all.
        label_map: integer array `(H0, W0)`, 0 for background, at most 65535:
            see `keras_sam.masks.masks_to_label_map`.

    Raises:
        ValueError: if `label_map` is not such an array.
        OSError: if the file cannot be written.
    """
    labels = np.asarray(label_map)
    if labels.ndim != 2 or labels.dtype.kind not in "bui" or 0 in labels.shape:
        raise ValueError(
            "`label_map` must be an integer array (H0, W0). "
            f"Received: shape={labels.shape}, dtype={labels.dtype}."
        )
    if labels.min() < 0 or labels.max() > 65535:
        raise ValueError(
            "Labels must lie in 0..65535, which is what a PNG holds. "
            f"Received: {labels.min()}..{labels.max()}."
        )
    if labels.max() < 256:
        height, width = labels.shape
        picture = Image.frombytes("P", (width, height), labels.astype("uint8").tobytes())
        picture.putpalette(_palette().tobytes())
    else:
        picture = Image.fromarray(labels.astype("uint16"))
    with whole_file(path) as file:
        picture.save(file, format="PNG")


def read_label_map(path: str | os.PathLike) -> np.ndarray:
    """Reads a label map from an indexed or grey PNG.

    Args:
        path: the PNG file.

    Returns:
        Int32 array `(H0, W0)` of the indices, not of the colours.

    Raises:
        ValueError: if the file is not an image, or has colours but no palette.
    """
    return _read_png(path).astype("int32")


def _row_of(number: int, record: dict, rle: dict) -> tuple:
    """A record as a row of the table; missing entries are empty cells."""
    box = record.get("bbox", xyxy_to_xywh(mask_to_box(rle)))
    return (
        number,
        int(record.get("area", mask_area(rle))),
        *np.asarray(box).tolist(),
        *next(iter(record.get("point_coords", [])), ("", "")),
        record.get("predicted_iou", ""),
        record.get("stability_score", ""),
        *record.get("crop_box", [""] * 4),
    )


def _record_of(row: dict[str, str]) -> dict:
    """A row of the table as a record; cells without a value give no entry."""
    cells = {key: float(value) for key, value in row.items() if value != ""}
    record: dict = {"area": int(cells["area"])}
    for key in ("predicted_iou", "stability_score"):
        if key in cells:
            record[key] = cells[key]
    if "point_input_x" in cells:
        record["point_coords"] = [[cells["point_input_x"], cells["point_input_y"]]]
    for key in ("bbox", "crop_box"):
        sides = [cells.get(f"{key}_{side}") for side in _BOX]
        if None not in sides:
            record[key] = [int(n) if n == int(n) else n for n in sides]
    return record


def _read_png(path: str | os.PathLike) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            if picture.mode not in ("1", "L", "P", "I", "I;16"):
                raise ValueError(
                    f"`{os.fspath(path)}` must be a grey or indexed image, one number per pixel. "
                    f"Received: mode {picture.mode}."
                )
            return np.asarray(picture)
    except (UnidentifiedImageError, SyntaxError) as error:
        raise ValueError(f"`{os.fspath(path)}` must be an image. {error}.") from error


def _palette() -> np.ndarray:
    """PASCAL VOC's 256 colours, uint8 `(256, 3)`: the index's bits, spread over the channels."""
    index, channel = np.arange(256)[:, None], np.arange(3)
    bits = ((index >> (3 * place + channel) & 1) << (7 - place) for place in range(3))
    return sum(bits).astype("uint8")
