"""Pictures in files that are read by windows: zarr, OME-Zarr, TIFF, and what GDAL opens."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from keras_sam.images import PILLOW_ERRORS, is_tiff, load_image
from keras_sam.tiles.picture import Picture, import_for

# TIFF's compressions that tifffile undoes by itself: none, deflate, packbits.
_PLAIN_COMPRESSIONS = (1, 8, 32946, 32773)
_JPEG = (6, 7)
# TIFF's colours that are neither greys nor red, green and blue.
_OTHER_COLOURS = {5: "CMYK", 6: "YCbCr", 8: "CIE Lab", 9: "ICC Lab", 10: "ITU Lab"}


def open_path(path: Path) -> tuple[Any, str | None, dict]:
    """What is at a path: an array or a `Picture`, the names of its axes, and facts about it."""
    name = repr(str(path))
    if not path.exists():
        raise FileNotFoundError(f"There is no picture at {name}.")
    about = {"name": name, "path": path}
    if path.is_dir():
        zarr = import_for("tiff", "zarr", "A zarr folder")
        try:
            opened = zarr.open(str(path), mode="r")
        except Exception as error:  # of any of its stores
            raise ValueError(f"{name} must be a zarr folder. Received: {error}") from error
        if hasattr(opened, "shape"):
            return opened, dimension_names(opened), about | _zarr_facts(opened)
        array, axes, more = ome_zarr(opened)
        return array, axes, about | more
    if path.suffix.lower() == ".npy":
        return np.load(path, mmap_mode="r"), None, about
    if is_tiff(str(path)):
        return _open_tiff(path, about)
    if importlib.util.find_spec("rasterio") is not None and _is_alike_in_gdal(path):
        return _with_gdal(path), None, about
    return whole(path), None, about


def _is_alike_in_gdal(path: Path) -> bool:
    """Whether GDAL has the pixels that pillow shows: no palette, other colours or turned camera."""
    import warnings

    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                # GDAL takes the grey of GIF and BMP for a palette.
                is_grey = image.mode in ("1", "L") and image.format not in ("GIF", "BMP")
                if not (is_grey or image.mode in ("RGB", "RGBA") or image.mode[:4] == "I;16"):
                    return False
                # Asked for the orientation, pillow would decode a PNG that has none.
                known = image.format != "PNG" or any("exif" in str(n).lower() for n in image.info)
                return not known or image.getexif().get(274, 1) == 1
    except (*PILLOW_ERRORS, Image.DecompressionBombError):
        return True  # GDAL may know it


def whole(image: Any) -> np.ndarray:
    """A picture of a format that has no windows."""
    return load_image(image, value_range=None)


def _zarr_facts(array: Any) -> dict:
    """The pixel's size, where `LabelMap` or another program has written it."""
    facts = {}
    attributes = dict(array.attrs)
    if len(attributes.get("pixel_size") or ()) == 2:
        facts["pixel_size"] = tuple(float(n) for n in attributes["pixel_size"])
        facts["unit"] = attributes.get("unit")
    has_place = attributes.get("crs") and attributes.get("transform")
    if has_place and importlib.util.find_spec("rasterio") is not None:
        from rasterio.crs import CRS

        facts["crs"] = CRS.from_user_input(attributes["crs"])
        facts["transform"] = tuple(attributes["transform"])
    return facts


def ome_zarr(group: Any) -> tuple[Any, str | None, dict]:
    """The finest level of an OME-Zarr group."""
    attributes = dict(group.attrs)
    scales = attributes.get("ome", attributes).get("multiscales")
    if not scales:
        raise ValueError(
            "A zarr group must be an OME-Zarr picture, with `multiscales`; or pass one array of "
            f"it. Received: {sorted(group.array_keys())}."
        )
    axes = [axis if isinstance(axis, str) else axis["name"] for axis in scales[0].get("axes", ())]
    finest = scales[0]["datasets"][0]
    facts = {}
    for change in finest.get("coordinateTransformations", ()):
        if change.get("type") == "scale" and len(change["scale"]) == len(axes):
            sizes = dict(zip(axes, change["scale"]))
            units = {a["name"]: a.get("unit") for a in scales[0]["axes"] if isinstance(a, dict)}
            facts = {"pixel_size": (sizes["y"], sizes["x"]), "unit": units.get("x")}
    return group[finest["path"]], "".join(axis[:1].upper() for axis in axes) or None, facts


def _open_tiff(path: Path, about: dict) -> tuple[Any, str | None, dict]:
    tifffile = import_for("tiff", "tifffile", "A TIFF read by windows")
    name = about["name"]
    try:
        file = tifffile.TiffFile(path)
        series = file.series[0]
        page = series.keyframe
        ends = [
            offset + count
            for some in series.pages
            if some is not None
            for offset, count in zip(some.dataoffsets, some.databytecounts)
        ]
    except Exception as error:  # of any part of the format
        raise ValueError(f"{name} must be a TIFF. Received: a damaged file ({error}).") from error
    if max(ends, default=0) > path.stat().st_size:
        raise ValueError(
            f"{name} must be a whole TIFF. Received: a file that was cut off at "
            f"{path.stat().st_size:,} of at least {max(ends):,} bytes: copy it again."
        )
    colours, orientation = (
        1 if page.tags.get(code) is None else int(page.tags[code].value) for code in (262, 274)
    )
    if colours == 3:
        raise _palette_error(name)
    is_jpeg = page.compression in _JPEG  # whose decoder gives red, green and blue
    if colours in _OTHER_COLOURS and not (_OTHER_COLOURS[colours] == "YCbCr" and is_jpeg):
        raise ValueError(
            "A picture that is read by windows must have shades of grey, or red, green and blue. "
            f"Received: {name}, a TIFF in {_OTHER_COLOURS[colours]}: convert it to RGB first, for "
            "instance with `magick -colorspace sRGB`."
        )
    has_gdal = importlib.util.find_spec("rasterio") is not None
    if page.is_geotiff and has_gdal:
        file.close()
        return _with_gdal(path), None, about
    if orientation != 1:
        raise _turned_error(name, orientation)
    about = about | _tiff_pixel_size(file, page.tags)
    is_plain = page.compression in _PLAIN_COMPRESSIONS
    if not is_plain and importlib.util.find_spec("imagecodecs") is None:
        # GDAL shows one page: of several ones it would drop channels or planes.
        is_one_page = series.axes in ("YX", "YXS", "SYX") and page.index == 0
        file.close()
        if has_gdal and is_one_page:
            return dataclasses.replace(_with_gdal(path), **about), None, about
        also = ', or "keras-sam[geo]"' if is_one_page else ""
        raise ImportError(
            f"{name}, with axes {series.axes}, is compressed by {page.compression.name}: pip "
            f"install imagecodecs{also}."
        )
    zarr = import_for("tiff", "zarr", "A TIFF read by windows")
    array = zarr.open(series.levels[0].aszarr(), mode="r")
    array = array if hasattr(array, "shape") else array["0"]
    about["close"] = file.close
    is_white_0 = colours == 0 and array.dtype == np.uint8  # as pillow sees it
    return _Inverted(array) if is_white_0 else array, series.axes, about


class _Inverted:
    """An array of uint8 in which 0 is white, as one in which 0 is black."""

    def __init__(self, array: Any):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __getitem__(self, index):
        return 255 - np.asarray(self.array[index])


def _palette_error(name: str) -> ValueError:
    return ValueError(
        "A picture must have colours or shades of grey. Received: "
        f"{name}, whose values are places in a palette: convert it to RGB first, for instance with "
        "`gdal_translate -expand rgb`."
    )


def _turned_error(name: str, orientation: int) -> ValueError:
    return ValueError(
        "A picture that is read by windows must lie upright in its file. Received: "
        f"{name} with orientation {orientation} in its EXIF tags: turn its pixels first, for "
        "instance with `magick -auto-orient`."
    )


def _tiff_pixel_size(file: Any, tags: Any) -> dict:
    """The size of a pixel in OME's metadata or in TIFF's own tags."""
    if file.ome_metadata:
        import xml.etree.ElementTree as ElementTree

        for pixels in ElementTree.fromstring(file.ome_metadata).iter():
            if pixels.tag.endswith("}Pixels") and pixels.get("PhysicalSizeX"):
                size = (float(pixels.get("PhysicalSizeY")), float(pixels.get("PhysicalSizeX")))
                return {"pixel_size": size, "unit": pixels.get("PhysicalSizeXUnit", "µm")}
    unit = {2: "inch", 3: "cm"}.get(int(tags[296].value)) if 296 in tags else None
    if unit is None or 282 not in tags or 283 not in tags:
        return {}
    per_unit = [tags[code].value for code in (283, 282)]  # rows, then columns
    if not all(numerator and denominator for numerator, denominator in per_unit):
        return {}
    size = tuple(denominator / numerator for numerator, denominator in per_unit)
    return {"pixel_size": size, "unit": unit}


def _with_gdal(path: Path) -> Picture:
    import warnings

    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            dataset = rasterio.open(path)
    except RasterioError as error:
        raise ValueError(f"{str(path)!r} must be a picture. Received: {error}") from error
    orientation = dataset.tags().get("EXIF_Orientation", "1")
    if orientation != "1":  # too large for pillow, which would have turned it
        dataset.close()
        raise _turned_error(repr(str(path)), orientation)
    picture = rasterio_picture(dataset)
    about = {"path": path, "name": repr(str(path)), "close": dataset.close}
    return dataclasses.replace(picture, **about)


def rasterio_picture(dataset: Any) -> Picture:
    """A data set that rasterio has opened."""
    shades = _shades(dataset)

    def read(box):
        x1, y1, x2, y2 = box
        values = dataset.read(window=((y1, y2), (x1, x2)))
        values = np.moveaxis(values, 0, -1)
        if shades is not None:
            return shades[values]
        if dataset.nodata is None or values.dtype == np.uint8:
            return values
        missing = np.isnan(values) if np.isnan(dataset.nodata) else values == dataset.nodata
        return np.ma.array(values, mask=missing)

    transform = None if dataset.transform.is_identity else tuple(dataset.transform)[:6]
    crs = None if transform is None else dataset.crs  # nothing is known to lie anywhere in it
    unit = None if crs is None else crs.linear_units
    return Picture(
        size=(dataset.height, dataset.width),
        num_channels=dataset.count,
        dtype=np.dtype(dataset.dtypes[0]),
        name=repr(dataset.name),
        read=read,
        crs=crs,
        transform=transform,
        pixel_size=None if transform is None else tuple(float(n) for n in dataset.res),
        unit=unit,
    )


def _shades(dataset: Any) -> np.ndarray | None:
    """The grey 0..255 of each value, uint8 `(256,)`, where GDAL does not read it, as pillow does:
    of a palette of greys, of fewer than 8 bits, or if 0 is white.
    """
    from rasterio.enums import ColorInterp

    values = np.arange(256)
    if ColorInterp.palette in dataset.colorinterp:
        palette = dataset.colormap(1)
        colours = np.array([palette.get(value, (0, 0, 0))[:3] for value in values], "uint8")
        if dataset.dtypes[0] != "uint8" or (colours != colours[:, :1]).any():
            raise _palette_error(repr(dataset.name))
        return colours[:, 0]
    is_white_0 = dataset.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"
    top = 2 ** int(dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8)) - 1
    if dataset.dtypes[0] != "uint8" or (top == 255 and not is_white_0):
        return None
    greys = np.minimum(values, top) * (255 // top)
    return (255 - greys if is_white_0 else greys).astype("uint8")


def dimension_names(array: Any) -> str | None:
    """Names of axes that zarr, xarray or HDF5 keep, as letters, if there are any."""
    metadata = getattr(array, "metadata", None)
    names = getattr(metadata, "dimension_names", None) or getattr(array, "dims", None)
    if names is None and hasattr(array, "attrs"):
        with contextlib.suppress(Exception):  # whatever a library raises for missing attributes
            names = array.attrs["_ARRAY_DIMENSIONS"]
    try:
        names = [getattr(name, "label", name) for name in names or ()]
    except TypeError:
        return None
    known = {"y": "Y", "lat": "Y", "latitude": "Y", "x": "X", "lon": "X", "longitude": "X"}
    known |= {"c": "C", "s": "C", "band": "C", "bands": "C", "channel": "C", "channels": "C"}
    letters = [known.get(str(name).lower(), str(name)[:1].upper()) for name in names if name]
    usable = len(letters) == len(array.shape) and letters.count("Y") == letters.count("X") == 1
    return "".join(letters) if usable else None
