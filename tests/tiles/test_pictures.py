"""Pictures read by windows: every source gives the pixels that the array has."""

import dataclasses
import importlib.util

import h5py
import numpy as np
import pytest
import rasterio
import tifffile
import zarr
from dask import array as dask_array
from PIL import Image

from keras_sam.images import load_image
from keras_sam.tiles import open_picture

pytestmark = pytest.mark.once

SIZE = (150, 210)
BOX = (30, 20, 170, 145)  # over chunks and tiles of 64
CHUNKS = (64, 64)
TRANSFORM = rasterio.Affine(0.5, 0, 400000, 0, -0.5, 5000000)


def pixels(channels=3, dtype="uint8", seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, np.iinfo(dtype).max, (*SIZE, channels), dtype, endpoint=True)


def read(picture, box=BOX):
    assert picture.size == SIZE
    return picture.read(box)


def part(values, box=BOX):
    x1, y1, x2, y2 = box
    return values[y1:y2, x1:x2]


def geotiff(path, values, crs="EPSG:32633", transform=TRANSFORM, **more):
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=SIZE[0],
        width=SIZE[1],
        count=values.shape[-1],
        dtype=values.dtype,
        crs=crs,
        transform=transform,
        tiled=True,
        blockxsize=64,
        blockysize=64,
        **more,
    ) as file:
        file.write(np.moveaxis(values, -1, 0))
    return path


def sources(tmp_path, values):
    """One picture as every kind of source, by name."""
    np.save(tmp_path / "a.npy", values)
    first = np.moveaxis(values, -1, 0)
    named = zarr.create_array(
        str(tmp_path / "named.zarr"),
        shape=first.shape,
        chunks=(1, *CHUNKS),
        dtype=values.dtype,
        dimension_names=("c", "y", "x"),
    )
    named[:] = first
    group = zarr.open_group(str(tmp_path / "ome.zarr"), mode="w", zarr_format=2)
    level = group.create_array("0", shape=(1, *first.shape), chunks=(1, 1, *CHUNKS), dtype="uint8")
    level[:] = first[None]
    axes = [{"name": name} for name in "tc"] + [{"name": n, "unit": "micrometer"} for n in "yx"]
    scale = {"type": "scale", "scale": [1, 1, 0.5, 0.25]}
    datasets = [{"path": "0", "coordinateTransformations": [scale]}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    file = h5py.File(tmp_path / "a.h5", "w")
    tifffile.imwrite(tmp_path / "strips.tif", values)
    tifffile.imwrite(tmp_path / "big.tif", values, tile=CHUNKS, bigtiff=True, compression="zlib")
    tifffile.imwrite(
        tmp_path / "a.ome.tif",
        first,
        tile=CHUNKS,
        photometric="minisblack",
        metadata={"axes": "CYX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5},
    )
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as tiff:
        tiff.write(values, tile=CHUNKS, subifds=1)
        tiff.write(values[::2, ::2], tile=CHUNKS, subfiletype=1)
    geotiff(tmp_path / "geo.tif", values, compress="lzw")
    return {
        "array": values,
        "rows last": np.asfortranarray(values),
        "memmap": tmp_path / "a.npy",
        "dask": dask_array.from_array(values, chunks=(64, 64, 3)),
        "zarr": named,
        "zarr by path": tmp_path / "named.zarr",
        "OME-Zarr": group,
        "HDF5": file.create_dataset("pixels", data=values),
        "strips": tmp_path / "strips.tif",
        "BigTIFF": tmp_path / "big.tif",
        "OME-TIFF": tmp_path / "a.ome.tif",
        "pyramid": tmp_path / "pyramid.tif",
        "GeoTIFF": str(tmp_path / "geo.tif"),
        "rasterio": rasterio.open(tmp_path / "geo.tif"),
    }


def test_every_source_gives_the_same_pixels(tmp_path):
    values = pixels()
    opened = {name: open_picture(source) for name, source in sources(tmp_path, values).items()}
    for name, picture in opened.items():
        np.testing.assert_array_equal(read(picture), part(values), err_msg=name)
    for name in ("OME-Zarr", "OME-TIFF"):
        assert opened[name].pixel_size == (0.5, 0.25) and opened[name].unit[0] in "mµ"
    for name in ("GeoTIFF", "rasterio"):
        assert opened[name].crs == "EPSG:32633" and opened[name].pixel_size == (0.5, 0.5)
        assert opened[name].transform == tuple(TRANSFORM)[:6]


def test_three_of_many_channels_and_one(tmp_path):
    values = pixels(7, "uint16")
    path = geotiff(tmp_path / "bands.tif", values)
    for source, axes in ((values, "YXC"), (np.moveaxis(values, -1, 0), "CYX"), (path, None)):
        picture = open_picture(source, axes, channels=(4, 0, 2))
        np.testing.assert_array_equal(read(picture), part(values)[..., [4, 0, 2]])
        assert read(open_picture(source, axes, channels=5)).shape == (125, 140, 1)
        with pytest.raises(ValueError, match=r"one or three of the channels.*with 7 channels"):
            open_picture(source, axes)
        with pytest.raises(ValueError, match=r"one or three of 0\.\.6"):
            open_picture(source, axes, channels=(1, 2, 7))


def test_channels_of_a_picture_that_is_open():
    values = pixels(7)
    picture = open_picture(values, "YXC", (4, 0, 2))
    again = open_picture(picture, channels=1)
    np.testing.assert_array_equal(read(again), part(values)[..., [0]])
    assert again.channels == (0,) and open_picture(picture) is picture
    with pytest.raises(ValueError, match=r"one or three of 0\.\.2"):
        open_picture(picture, channels=4)


@pytest.mark.parametrize("axes", ["YXC", "CYX", "YX"])
def test_what_an_array_masks_stays_masked(axes):
    values = np.ma.masked_greater(pixels(), 99)
    shown = {"YXC": values, "CYX": np.moveaxis(values, -1, 0), "YX": values[..., 0]}[axes]
    found = read(open_picture(shown, axes))
    expected = np.ma.getmaskarray(part(values))[..., : found.shape[-1]]
    assert expected.any() and not expected.all()
    np.testing.assert_array_equal(np.ma.getmaskarray(found), expected)


def test_resolution_of_a_plain_tiff(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif", pixels(), resolution=(2e4, 1e4), resolutionunit="CENTIMETER"
    )
    picture = open_picture(tmp_path / "a.tif")
    assert picture.pixel_size == (1e-4, 5e-5) and picture.unit == "cm"


def turned(image, path):
    exif = Image.Exif()
    exif[274] = 6  # the camera was held upright
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


def white_is_0(image, path):
    values = 255 - np.asarray(image.convert("L"))
    tifffile.imwrite(path, values, photometric="miniswhite", tile=CHUNKS)


def white_is_0_in_gdal(image, path):
    values = np.asarray(image.convert("L"))[..., None]
    geotiff(path, values, photometric="MINISWHITE", compress="lzw")


SHOWN = [
    ("palette.png", lambda image, path: image.quantize(64).save(path)),
    ("palette.gif", lambda image, path: image.quantize(64).save(path)),
    ("grey.gif", lambda image, path: image.convert("L").save(path)),
    ("grey.bmp", lambda image, path: image.convert("L").save(path)),
    ("alpha.png", lambda image, path: image.convert("LA").save(path)),
    ("plain.png", lambda image, path: image.save(path)),
    ("two.png", lambda image, path: image.convert("1").save(path)),
    ("inks.jpg", lambda image, path: image.convert("CMYK").save(path)),
    ("turned.jpg", turned),
    ("turned.png", turned),
    ("turned.webp", turned),
    ("plain.webp", lambda image, path: image.save(path, lossless=True)),
    ("white.tif", white_is_0),
    ("white_geo.tif", white_is_0_in_gdal),
    ("fax.tif", lambda image, path: image.convert("1").save(path, compression="group4")),
]


@pytest.mark.parametrize(("name", "write"), SHOWN)
def test_a_picture_has_the_pixels_that_are_shown_without_tiles(name, write, tmp_path):
    write(Image.fromarray(pixels()), tmp_path / name)
    picture = open_picture(tmp_path / name)
    values = load_image(read(picture))
    difference = np.abs(values.astype(int) - part(load_image(tmp_path / name)))
    assert difference.max() <= (2 if name == "inks.jpg" else 0)


def turned_tiff(folder):
    tifffile.imwrite(folder / "a.tif", pixels(), extratags=[(274, "H", 1, 6, True)])
    return folder / "a.tif"


def huge_turned_jpeg(folder):
    turned(Image.fromarray(pixels()), folder / "a.jpg")
    return folder / "a.jpg"


def palette_tiff(folder):
    Image.fromarray(pixels()).quantize(64).save(folder / "a.tif")
    return folder / "a.tif"


def palette_of_gdal(folder):
    geotiff(folder / "a.tif", pixels(1), photometric="PALETTE")
    with rasterio.open(folder / "a.tif", "r+") as file:
        file.write_colormap(1, {n: (n, 0, 255 - n, 255) for n in range(256)})
    return folder / "a.tif"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (turned_tiff, "must lie upright in its file.*a.tif' with orientation 6"),
        (huge_turned_jpeg, "must lie upright in its file.*a.jpg' with orientation 6"),
        (palette_tiff, "must have colours or shades of grey.*a.tif', whose values are places in"),
        (palette_of_gdal, "must have colours or shades of grey.*a.tif', whose values are places"),
        (lambda folder: rasterio.open(palette_of_gdal(folder)), "must have colours or shades of"),
    ],
)
def test_colours_and_turns_that_windows_do_not_have_are_refused(make, words, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # more is too large for pillow
    with pytest.raises(ValueError, match=words):
        open_picture(make(tmp_path))


# How GDAL writes what tifffile cannot decompress without imagecodecs, and how many channels.
COMPRESSED = [(1, {}), (3, {"photometric": "RGB"}), (3, {"interleave": "band"})]


@pytest.mark.parametrize(("channels", "how"), COMPRESSED)
def test_a_compressed_tiff_keeps_the_size_of_a_pixel(channels, how, tmp_path):
    values = pixels(channels)
    geotiff(tmp_path / "a.tif", values, None, None, compress="lzw", **how)
    with rasterio.open(tmp_path / "a.tif", "r+") as file:
        resolution = {"XRESOLUTION": 10000, "YRESOLUTION": 20000}
        file.update_tags(**{f"TIFFTAG_{k}": v for k, v in resolution.items()})
        file.update_tags(TIFFTAG_RESOLUTIONUNIT=3)
    picture = open_picture(tmp_path / "a.tif")
    np.testing.assert_array_equal(read(picture), part(values))
    assert picture.pixel_size == (5e-5, 1e-4) and picture.unit == "cm"


@pytest.mark.skipif(
    importlib.util.find_spec("imagecodecs") is not None, reason="with imagecodecs it is read"
)
def test_a_compressed_tiff_of_several_pages_is_not_read_in_part(tmp_path):
    first, *others = (Image.fromarray(page) for page in np.moveaxis(pixels(), -1, 0))
    first.save(tmp_path / "a.tif", save_all=True, append_images=others, compression="tiff_lzw")
    with pytest.raises(ImportError, match=r"a.tif', with axes IYX, .* by LZW: pip install image"):
        open_picture(tmp_path / "a.tif")


def test_the_range_of_values_is_that_of_the_picture():
    dark = np.full((600, 600), 100, "uint16")
    dark[:300] = 3000
    picture = open_picture(dark)
    low, high = picture.whole_range("percentile")
    assert (low, high) == (100, 3000)
    assert picture.whole_range("auto") == (0, 65535)
    assert picture.whole_range((5, 9)) == (5, 9)
    assert open_picture(pixels()).whole_range("auto") == "auto"
    unit = open_picture(np.linspace(0, 1, 10000, dtype="float32").reshape(100, 100))
    assert unit.whole_range("auto") == (0, 1)
    grey = dataclasses.replace(unit, read=lambda box: 200 * unit.read(box))
    assert grey.whole_range("auto") == (0, 255)
    with pytest.raises(ValueError, match="An image of int32 must have values within 0..255"):
        open_picture(np.full((9, 9), 300, "int32")).whole_range("auto")


def test_the_range_of_values_is_that_of_all_colours_without_alpha():
    values = np.full((300, 300, 4), 100, "uint16")
    values[..., 2], values[..., 3] = 3000, 65535
    for channels in (3, 4):
        assert open_picture(values[..., :channels]).whole_range("percentile") == (100, 3000)


@pytest.mark.parametrize("background", [0, np.nan])
def test_a_small_object_on_an_empty_ground_has_a_range(background):
    values = np.full((4000, 4000), background, "float32")
    values[300:320, 300:330] = np.linspace(0.25, 0.75, 600, dtype="float32").reshape(20, 30)
    picture = open_picture(values)
    assert not np.nan_to_num(picture._sample()).any()
    assert picture.whole_range("auto") == (0, 1)
    np.testing.assert_allclose(picture.whole_range("percentile"), (0.2525, 0.7475), rtol=1e-5)
    assert open_picture(100 * values).whole_range("auto") == (0, 255)
    empty = open_picture(np.full((3000, 2000), background, "float32"))
    assert empty.whole_range("auto") == ((0, 1) if np.isnan(background) else (0, 255))
    assert empty.whole_range("percentile") == (0, 1)


def test_a_reference_system_in_which_the_picture_has_no_place_is_none(tmp_path):
    path = geotiff(tmp_path / "a.tif", pixels(), transform=None)
    with rasterio.open(path) as file:
        assert file.crs == "EPSG:32633"
        for picture in (open_picture(path), open_picture(file)):
            assert (picture.crs, picture.transform, picture.unit) == (None, None, None)
    array = zarr.create_array(str(tmp_path / "a.zarr"), data=pixels())
    array.attrs["crs"] = "EPSG:32633"
    assert open_picture(tmp_path / "a.zarr").crs is None
    array.attrs["transform"] = tuple(TRANSFORM)[:6]
    assert open_picture(tmp_path / "a.zarr").crs == "EPSG:32633"


def test_no_data_is_masked(tmp_path):
    values = pixels(1, "uint16")
    values[30:60] = 7
    read_values = read(open_picture(geotiff(tmp_path / "a.tif", values, nodata=7)))
    assert np.array_equal(np.ma.getmaskarray(read_values), part(values) == 7)


def cut_in_half(tmp_path):
    path = tmp_path / "half.tif"
    geotiff(path, pixels())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def in_cmyk(tmp_path):
    Image.fromarray(pixels()).convert("CMYK").save(tmp_path / "press.tif")
    return tmp_path / "press.tif"


def in_lab(tmp_path):
    Image.fromarray(pixels()).convert("LAB").save(tmp_path / "lab.tif")
    return tmp_path / "lab.tif"


def zarr_without_names(tmp_path):
    return zarr.create_array(str(tmp_path / "b.zarr"), shape=(7, 90, 80), dtype="uint8")


def zarr_group(tmp_path):
    group = zarr.open_group(str(tmp_path / "c.zarr"), mode="w")
    group.create_array("pixels", shape=(9, 9), dtype="uint8")
    return tmp_path / "c.zarr"


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (cut_in_half, ValueError, r"must be a whole TIFF.*cut off at \d"),
        (in_cmyk, ValueError, r"press.tif', a TIFF in CMYK: convert it to RGB first"),
        (in_lab, ValueError, r"lab.tif', a TIFF in CIE Lab: convert it to RGB first"),
        (lambda _: np.zeros((0, 5, 3)), ValueError, r"must not be empty.* of shape=\(0, 5, 3\)"),
        (lambda _: np.zeros((5, 0)), ValueError, r"must not be empty.* of shape=\(5, 0\)"),
        (zarr_without_names, ValueError, r"`axes` must be given.*axes='CYX'.*shape=\(7, 90, 80\)"),
        (zarr_group, ValueError, r"must be an OME-Zarr picture.*\['pixels'\]"),
        (lambda folder: folder / "none.tif", FileNotFoundError, "There is no picture at"),
        (lambda _: 5, ValueError, "`image` must be an array with `shape` and slicing"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_sentence(make, error, words, tmp_path):
    with pytest.raises(error, match=words) as caught:
        open_picture(make(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 1), (1, 1, 3), (1, 7, 3), (2, 7, 4), (7, 1, 3)])
def test_a_picture_of_one_row_or_one_pixel_needs_no_axes(shape):
    values = np.arange(np.prod(shape), dtype="uint8").reshape(shape)
    picture = open_picture(values)
    h, w = shape[:2]
    np.testing.assert_array_equal(picture.read((0, 0, w, h)), values.reshape(h, w, -1))


@pytest.mark.parametrize("axes", ["YX", "TCYX", "CYXY", "CCY"])
def test_axes_that_do_not_fit_are_refused(axes):
    with pytest.raises(ValueError, match=r"`axes` must have one letter per axis"):
        open_picture(np.zeros((7, 9, 8), "uint8"), axes)
