"""Label maps of large pictures, painted by blocks into zarr, and copied by tiles into TIFF."""

from __future__ import annotations

import array
import collections
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from keras_sam.files import whole_folder, whole_place
from keras_sam.masks import decode_rle
from keras_sam.tiles.grid import Box, overlap
from keras_sam.tiles.picture import Picture, import_for

_SIDE = 512  # pixels of a block, which is a chunk of zarr and a tile of TIFF
_BLOCKS = 96  # in memory, 1 MB each
# How many centimetres the units of pixel sizes are.
_CENTIMETRES = {
    **dict.fromkeys(("nm", "nanometer"), 1e-7),
    **dict.fromkeys(("µm", "um", "micron", "micrometer"), 1e-4),
    **dict.fromkeys(("mm", "millimeter"), 0.1),
    **dict.fromkeys(("cm", "centimeter"), 1.0),
    **dict.fromkeys(("m", "meter", "metre"), 100.0),
    "inch": 2.54,
}


class LabelMap:
    """A label map in a zarr array: 0 is background, the first mask 1, and so on.

    Where masks overlap, the smaller one is on top, as in `masks.masks_to_label_map`; the earlier
    one if they are equal. Blocks of the picture are in memory, never all of it. The folder appears
    when the block ends well.

    Args:
        path: the zarr folder, new or an earlier one.
        picture: `Picture`, whose size the map has; it keeps the reference system and the pixel's
            size in its attributes.

    Raises:
        FileExistsError: if the folder is there and holds something else.

    Example:

    ```python
    picture = keras_sam.tiles.open_picture(image)
    record = {"segmentation": {"size": list(picture.size), "counts": [3, 2, 239995]}, "area": 2,
              "bbox": [0, 3, 0, 1]}
    with keras_sam.tiles.LabelMap("labels.zarr", picture) as labels:
        labels.paint(record)  # 1
    ```
    """

    def __init__(self, path: str | os.PathLike, picture: Picture):
        self._zarr = import_for("tiff", "zarr", "Label maps in zarr")
        self._path, self._picture = Path(path), picture
        self._areas = array.array("q", [0])  # of each label, by which the next ones are compared
        self._blocks: collections.OrderedDict[tuple[int, int], np.ndarray] = (
            collections.OrderedDict()
        )
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        folder = self._stack.enter_context(whole_folder(self._path, replaceable="zarr.json"))
        self._array = self._zarr.create_array(
            str(folder),
            shape=self._picture.size,
            chunks=(_SIDE, _SIDE),
            dtype="uint32",
            dimension_names=("y", "x"),
            attributes=attributes_of(self._picture),
            overwrite=True,
        )
        return self

    def __exit__(self, *exception: Any) -> None:
        try:
            if exception == (None, None, None):
                while self._blocks:
                    self._put_away()
        except BaseException as error:
            self._stack.__exit__(type(error), error, error.__traceback__)
            raise
        self._stack.__exit__(*exception)

    def paint(self, record: dict) -> int:
        """Paints the mask of a record of the picture, and returns its label."""
        self._areas.append(int(record["area"]))
        label = len(self._areas) - 1
        areas = np.frombuffer(self._areas, "int64")
        x, y, width, height = record["bbox"]
        box = (x, y, x + width + 1, y + height + 1)
        for place, part in self._parts(box):
            mask = decode_rle(record["segmentation"], crop_box=part)
            block = self._block(place)
            top, left = part[1] - place[0] * _SIDE, part[0] - place[1] * _SIDE
            painted = block[top : top + mask.shape[0], left : left + mask.shape[1]]
            over = mask & ((painted == 0) | (areas[painted] > areas[label]))
            painted[over] = label
        del areas  # which would not let the array grow
        return label

    def _parts(self, box: Box) -> Iterator[tuple[tuple[int, int], Box]]:
        """The blocks, row and column, that a box lies in, and its parts in them."""
        for row in range(box[1] // _SIDE, -(-box[3] // _SIDE)):
            for column in range(box[0] // _SIDE, -(-box[2] // _SIDE)):
                x, y = column * _SIDE, row * _SIDE
                yield (row, column), overlap(box, (x, y, x + _SIDE, y + _SIDE))

    def _block(self, place):
        if place not in self._blocks:
            while len(self._blocks) >= _BLOCKS:
                self._put_away()
            self._blocks[place] = np.asarray(self._array[_slices(place)])
        self._blocks.move_to_end(place)
        return self._blocks[place]

    def _put_away(self):
        """Writes the block that was not used for longest."""
        place, block = self._blocks.popitem(last=False)
        self._array[_slices(place)] = block


def write_label_tiff(path: str | os.PathLike, labels: Any, picture: Picture) -> None:
    """Writes a label map as a tiled TIFF, a BigTIFF where it is large, block by block.

    Args:
        path: the file, written whole or not at all.
        labels: array `(H0, W0)` with slicing, such as the zarr array of a `LabelMap`.
        picture: `Picture`. With a reference system the file is a GeoTIFF in it, through rasterio;
            otherwise it keeps the pixel's size, through tifffile.

    Raises:
        ImportError: if the package is missing; the message names the extra.
        OSError: if the file cannot be written.
    """
    rows, columns = (-(-n // _SIDE) for n in picture.size)
    places = [(row, column) for row in range(rows) for column in range(columns)]
    with whole_place(path) as place:
        if picture.crs is not None:
            _write_geotiff(place, labels, picture, places)
            return
        tifffile = import_for("tiff", "tifffile", "Label maps in TIFF")
        tifffile.imwrite(
            place,
            (_padded(np.asarray(labels[_slices(block)])) for block in places),
            shape=tuple(picture.size),
            dtype="uint32",
            tile=(_SIDE, _SIDE),
            compression="zlib",
            bigtiff=4 * picture.size[0] * picture.size[1] > 2**31,
            metadata=None,
            **_resolution(picture),
        )


def open_labels(path: str | os.PathLike) -> Any:
    """The zarr array `(H0, W0)` of a label map, which is read as it is sliced."""
    return import_for("tiff", "zarr", "Label maps in zarr").open_array(str(path), mode="r")


def attributes_of(picture: Picture) -> dict:
    """What a label map keeps of its picture, ready for JSON."""
    attributes: dict[str, Any] = {}
    if picture.pixel_size is not None:
        attributes |= {"pixel_size": list(picture.pixel_size), "unit": picture.unit}
    if picture.crs is not None:
        attributes |= {"crs": picture.crs.to_wkt(), "transform": list(picture.transform)}
    return attributes


def _write_geotiff(place, labels, picture, places):
    rasterio = import_for("geo", "rasterio", "GeoTIFF")
    height, width = picture.size
    with rasterio.open(
        place,
        "w",
        driver="GTiff",
        height=height,
        width=width,
        count=1,
        dtype="uint32",
        crs=picture.crs,
        transform=rasterio.Affine(*picture.transform),
        tiled=True,
        blockxsize=_SIDE,
        blockysize=_SIDE,
        compress="deflate",
        bigtiff="IF_SAFER",
    ) as file:
        for block in places:
            values = np.asarray(labels[_slices(block)])
            (rows, columns) = _slices(block)
            window = (
                (rows.start, rows.start + values.shape[0]),
                (columns.start, columns.start + values.shape[1]),
            )
            file.write(values, 1, window=window)


def _resolution(picture: Picture) -> dict:
    centimetres = _CENTIMETRES.get(str(picture.unit).lower().rstrip("s"))
    if picture.pixel_size is None or centimetres is None:
        return {}
    height, width = picture.pixel_size
    return {
        "resolution": (1 / (width * centimetres), 1 / (height * centimetres)),
        "resolutionunit": "CENTIMETER",
    }


def _slices(place: tuple[int, int]) -> tuple[slice, slice]:
    row, column = place
    return slice(row * _SIDE, (row + 1) * _SIDE), slice(column * _SIDE, (column + 1) * _SIDE)


def _padded(block: np.ndarray) -> np.ndarray:
    return np.pad(block, [(0, _SIDE - n) for n in block.shape])
