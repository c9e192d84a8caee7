"""Masks of large pictures as polygons in a reference system: GeoJSON and GeoPackage."""

from __future__ import annotations

import itertools
import json
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from keras_sam.files import whole_file, whole_place
from keras_sam.masks import decode_rle
from keras_sam.tiles.picture import Picture, import_for

_BATCH = 500  # masks that are written to a GeoPackage together
_FIELDS = {"label": int, "area": int, "predicted_iou": float, "stability_score": float}


def write_polygons(path: str | os.PathLike, records: Iterable[dict], picture: Picture) -> int:
    """Writes masks as polygons with holes, one feature each, as they come.

    Polygons follow the edges of the pixels, parts that touch at a corner alone are parts of their
    own, so that every geometry is valid. Features have `label`, counted from 1 as in `LabelMap`,
    `area` in pixels, `predicted_iou` and `stability_score`.

    Args:
        path: a `.geojson` or `.gpkg` file, written whole or not at all. GeoJSON is in the picture's
            reference system, named as GDAL does, or without one in pixels, as QuPath reads it.
        records: iterable of records of the picture.
        picture: `Picture`. A GeoPackage needs its reference system.

    Returns:
        How many there were.

    Raises:
        ValueError: if the file has another ending, or a reference system is needed and missing.
        ImportError: if a package is missing; the message names the extra.
        OSError: if the file cannot be written.
    """
    ending = Path(path).suffix.lower()
    if ending not in (".geojson", ".json", ".gpkg"):
        raise ValueError(f"`path` must end in .geojson or .gpkg. Received: {os.fspath(path)!r}.")
    check_reference(picture, ending)
    features = _features(records, picture)
    return (_write_geopackage if ending == ".gpkg" else _write_geojson)(path, features, picture)


def check_reference(picture: Picture, ending: str) -> None:
    """Raises unless a picture's masks can be written to a file of this ending."""
    import_for("geo", "rasterio", "Polygons")
    if ending == ".gpkg":
        import_for("geo", "pyogrio", "GeoPackage")
        if picture.crs is None:
            raise ValueError(
                "A GeoPackage needs the picture's coordinate reference system. Received: "
                f"{picture.name}, which has none: write GeoJSON, which may be in pixels."
            )
    elif picture.crs is not None and picture.crs.to_authority() is None:
        raise ValueError(
            "GeoJSON needs a coordinate reference system with a code, such as EPSG:32633. "
            f"Received: {picture.name} with {picture.crs.to_string()[:60]}: write a GeoPackage."
        )


def _features(records: Iterable[dict], picture: Picture) -> Iterator[tuple[list, dict]]:
    """The polygons of each record, each a list of rings of x y pairs, and its fields."""
    features = import_for("geo", "rasterio.features", "Polygons")
    affine = import_for("geo", "rasterio", "Polygons").Affine
    a, b, c, d, e, f = picture.transform or (1, 0, 0, 0, 1, 0)
    for label, record in enumerate(records, start=1):
        x, y, width, height = record["bbox"]
        crop_box = (x, y, x + width + 1, y + height + 1)
        mask = decode_rle(record["segmentation"], crop_box=crop_box)
        shapes = features.shapes(
            mask.astype("uint8"),
            mask=mask,
            connectivity=4,
            transform=affine(a, b, a * x + b * y + c, d, e, d * x + e * y + f),
        )
        polygons = [_turned(shape["coordinates"]) for shape, _ in shapes]
        values = {"label": label, **record}
        yield polygons, {name: kind(values[name]) for name, kind in _FIELDS.items()}


def _turned(rings: list) -> list:
    """Rings as GeoJSON wants them: the outline counterclockwise, holes clockwise."""
    turned = []
    for number, ring in enumerate(rings):
        x, y = np.asarray(ring, "float64").T
        x, y = x - x[0], y - y[0]
        is_counterclockwise = (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() > 0
        turned.append(ring if is_counterclockwise == (number == 0) else ring[::-1])
    return turned


def _write_geojson(path, features, picture):
    count = 0
    with whole_file(path, text=True) as file:
        file.write('{"type": "FeatureCollection",\n')
        if picture.crs is not None and picture.crs.to_epsg() != 4326:
            authority, code = picture.crs.to_authority()
            name = {"name": f"urn:ogc:def:crs:{authority}::{code}"}
            file.write(f'"crs": {json.dumps({"type": "name", "properties": name})},\n')
        file.write('"features": [')
        for count, (polygons, fields) in enumerate(features, start=1):  # noqa: B007
            geometry = {"type": "MultiPolygon", "coordinates": polygons}
            feature = {"type": "Feature", "properties": fields, "geometry": geometry}
            file.write("\n" if count == 1 else ",\n")
            file.write(json.dumps(feature))
        file.write("]}\n")
    return count


def _write_geopackage(path, features, picture):
    pyogrio = import_for("geo", "pyogrio.raw", "GeoPackage")
    count = 0
    with whole_place(path) as place:
        while True:
            some = list(itertools.islice(features, _BATCH))
            if not some and count:
                return count
            columns = [
                np.array([fields[name] for _, fields in some], kind)
                for name, kind in _FIELDS.items()
            ]
            pyogrio.write(
                str(place),
                geometry=np.array([_well_known_bytes(polygons) for polygons, _ in some], object),
                field_data=columns,
                fields=np.array(list(_FIELDS), object),
                layer="masks",
                driver="GPKG",
                geometry_type="MultiPolygon",
                crs=picture.crs.to_wkt(),
                append=count > 0,
            )
            count += len(some)
            if not some:
                return 0


def _well_known_bytes(polygons: list) -> bytes:
    """A MultiPolygon in the binary form of OGC's Simple Features, little endian."""
    parts = [struct.pack("<BII", 1, 6, len(polygons))]
    for rings in polygons:
        parts.append(struct.pack("<BII", 1, 3, len(rings)))
        for ring in rings:
            parts.append(struct.pack("<I", len(ring)))
            parts.append(np.asarray(ring, "<f8").tobytes())
    return b"".join(parts)
