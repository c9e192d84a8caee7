"""Label maps and polygons of large pictures: what other programs read is what was painted."""

import json

import numpy as np
import pyogrio
import pytest
import rasterio
import rasterio.features
import tifffile
import zarr

from keras_sam.masks import masks_to_label_map
from keras_sam.tiles import LabelMap, label_maps, open_picture, write_label_tiff, write_polygons
from tests.scenes import scene
from tests.tiles.test_joining import record_of, rectangle
from tests.tiles.test_pictures import TRANSFORM

pytestmark = pytest.mark.once

SIZE = (150, 210)


@pytest.fixture(scope="module")
def records():
    masks = list(scene(SIZE, (3, 4), 1)[1])
    masks.append(rectangle(SIZE, 5, 5, 205, 140))  # under the others
    masks[-1][70, 80] = masks[-1][71, 81] = False  # holes that touch at a corner
    masks.append(np.eye(*SIZE, dtype=bool))  # pixels that touch at corners
    return [record_of(mask) for mask in masks]


@pytest.fixture
def georeferenced(tmp_path):
    about = {"driver": "GTiff", "height": SIZE[0], "width": SIZE[1], "count": 1, "dtype": "uint8"}
    with rasterio.open(
        tmp_path / "scan.tif", "w", crs="EPSG:32633", transform=TRANSFORM, **about
    ) as file:
        file.write(np.ones((1, *SIZE), "uint8"))
    return open_picture(tmp_path / "scan.tif")


def painted(path, records, picture):
    with LabelMap(path, picture) as labels:
        for number, record in enumerate(records, start=1):
            assert labels.paint(record) == number
    return zarr.open_array(str(path), mode="r")


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of which few are in memory, so that they are put away and come back."""
    monkeypatch.setattr(label_maps, "_SIDE", 64)
    monkeypatch.setattr(label_maps, "_BLOCKS", 2)


def test_a_label_map_is_that_of_all_masks_at_once(records, georeferenced, small_blocks, tmp_path):
    labels = painted(tmp_path / "labels.zarr", records, georeferenced)
    expected = masks_to_label_map(records)
    np.testing.assert_array_equal(labels[:], expected)
    assert labels.dtype == "uint32" and labels.chunks == (64, 64)
    again = open_picture(tmp_path / "labels.zarr")
    assert again.crs == georeferenced.crs and again.transform == georeferenced.transform
    write_label_tiff(tmp_path / "labels.tif", labels, georeferenced)
    with rasterio.open(tmp_path / "labels.tif") as file:
        assert file.crs == "EPSG:32633" and file.transform == TRANSFORM
        assert file.block_shapes == [(64, 64)]
        np.testing.assert_array_equal(file.read(1), expected)


def test_a_tiff_keeps_the_size_of_a_pixel(records, small_blocks, tmp_path):
    tifffile.imwrite(
        tmp_path / "a.ome.tif",
        np.zeros(SIZE, "uint16"),
        metadata={"axes": "YX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5},
    )
    picture = open_picture(tmp_path / "a.ome.tif")
    labels = painted(tmp_path / "labels.zarr", records, picture)
    assert dict(labels.attrs) == {"pixel_size": [0.5, 0.25], "unit": "µm"}
    write_label_tiff(tmp_path / "labels.tif", labels, picture)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "labels.tif"), labels[:])
    again = open_picture(tmp_path / "labels.tif")
    assert again.unit == "cm"
    np.testing.assert_allclose(again.pixel_size, (0.5e-4, 0.25e-4), rtol=1e-6)


def test_a_label_map_that_fails_leaves_nothing(records, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    picture = open_picture(np.zeros(SIZE, "uint8"))
    with pytest.raises(FileExistsError, match="holds other files"):
        painted(tmp_path / "mine", records, picture)
    with pytest.raises(KeyError), LabelMap(tmp_path / "labels.zarr", picture) as labels:
        labels.paint(records[0])
        labels.paint({})
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def pixels_of(geometry, transform):
    """The mask of polygons, by GDAL's rule of pixel centres."""
    return rasterio.features.rasterize([geometry], out_shape=SIZE, transform=transform) > 0


def test_polygons_are_the_masks_in_the_reference_system(records, georeferenced, tmp_path):
    from shapely import from_wkb
    from shapely.geometry import shape

    masks = [masks_to_label_map([record]) > 0 for record in records]
    path = tmp_path / "masks.geojson"
    assert write_polygons(path, iter(records), georeferenced) == len(records)
    written = json.loads(path.read_text())
    assert written["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633"
    for number, (feature, mask) in enumerate(zip(written["features"], masks, strict=True), 1):
        np.testing.assert_array_equal(pixels_of(feature["geometry"], TRANSFORM), mask)
        assert feature["properties"]["label"] == number
        assert feature["properties"]["area"] == mask.sum()
        geometry = shape(feature["geometry"])
        assert geometry.is_valid and np.isclose(geometry.area, mask.sum() / 4)
        assert all(part.exterior.is_ccw for part in geometry.geoms)
    path = tmp_path / "masks.gpkg"
    assert write_polygons(path, records, georeferenced) == len(records)
    about, _, geometries, fields = pyogrio.raw.read(path, layer="masks")
    assert about["crs"] == "EPSG:32633"
    assert list(about["fields"]) == ["label", "area", "predicted_iou", "stability_score"]
    for geometry, area, mask in zip(geometries, fields[1], masks, strict=True):
        np.testing.assert_array_equal(pixels_of(from_wkb(geometry), TRANSFORM), mask)
        assert area == mask.sum()
    assert write_polygons(tmp_path / "none.gpkg", [], georeferenced) == 0
    assert pyogrio.read_info(tmp_path / "none.gpkg")["features"] == 0


def test_without_a_reference_system_geojson_is_in_pixels(records, georeferenced, tmp_path):
    picture = open_picture(np.zeros(SIZE, "uint8"))
    write_polygons(tmp_path / "masks.geojson", records, picture)
    written = json.loads((tmp_path / "masks.geojson").read_text())
    assert "crs" not in written
    mask = masks_to_label_map(records[:1]) > 0
    shown = pixels_of(written["features"][0]["geometry"], rasterio.Affine.identity())
    np.testing.assert_array_equal(shown, mask)
    with pytest.raises(ValueError, match="A GeoPackage needs the picture's coordinate reference"):
        write_polygons(tmp_path / "masks.gpkg", records, picture)
    with pytest.raises(ValueError, match=r"`path` must end in .geojson or .gpkg"):
        write_polygons(tmp_path / "masks.shp", records, georeferenced)
    assert not list(tmp_path.glob("masks.[gs][ph]*"))
