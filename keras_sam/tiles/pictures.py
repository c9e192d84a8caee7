"""Large pictures, read by windows: arrays of any library, zarr, HDF5, TIFF, and what GDAL opens.

Numpy only, besides what opens a file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_sam.geometry import size_pair
from keras_sam.images import (
    PILLOW_ERRORS,
    is_image_file,
    is_pillow_image,
    is_tiff,
    load_image,
)
from keras_sam.pixel_values import percentile_range, to_pixel_values
from keras_sam.tiles.grid import Box

_SAMPLES = 8  # windows along each side, from which the range of values of a picture is taken
_SAMPLE_SIDE = 256  # pixels of each
_SEARCH_SIDE = 1024  # pixels of windows that are searched where these hold nothing but 0
# TIFF's compressions that tifffile undoes by itself: none, deflate, packbits.
_PLAIN_COMPRESSIONS = (1, 8, 32946, 32773)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture that is read by windows; `open_picture` makes it.

    Args:
        size: pair of ints `(H0, W0)`.
        num_channels: int. Channels of what is read, after the choice of `channels`.
        dtype: numpy dtype of the values.
        name: str, what messages call it.
        read: function of a box, x1 y1 x2 y2 in pixels, that returns its values `(h, w, C)`, masked
            where there are none.
        crs: optional, the coordinate reference system as rasterio has it.
        transform: optional six floats a b c d e f: column x and row y lie at `a x + b y + c`,
            `d x + e y + f` of the system.
        pixel_size: optional pair of floats, height and width of a pixel in `unit`.
        unit: optional str, such as `"µm"`.
        path: optional, the file or folder.
        channels: optional tuple of ints, the chosen channels.
        close: function that closes the file that `open_picture` has opened, if any.
    """

    size: tuple[int, int]
    num_channels: int
    dtype: np.dtype
    name: str
    read: Callable[[Box], np.ndarray]
    crs: Any = None
    transform: tuple[float, ...] | None = None
    pixel_size: tuple[float, float] | None = None
    unit: str | None = None
    path: Path | None = None
    channels: tuple[int, ...] | None = None
    close: Callable[[], Any] = lambda: None

    def whole_range(self, value_range: Any) -> Any:
        """Which values become 0..255 in every window of the picture, of a setting of `value_range`.

        What `"auto"` and `"percentile"` would choose for each window is chosen once, from windows
        all over the picture: else a dark part would be as bright as the others.
        """
        automatic = isinstance(value_range, str)
        if not automatic or (value_range == "auto" and self.dtype == np.uint8):
            return value_range
        sample = self._sample()
        if (value_range == "percentile" or self.dtype.kind == "f") and not _telling(sample).size:
            sample = self._first_values(sample)
        if value_range == "percentile":
            low, high = percentile_range(np.ma.compressed(sample).astype("float32"))
            return low, high if high > low else low + 1
        known = sample[np.isfinite(sample)] if sample.dtype.kind == "f" else sample
        if not known.size:
            return 0.0, 1.0
        to_pixel_values(known, "auto", self.name)  # says what is doubtful, refuses what is wrong
        if self.dtype == np.uint16:
            return 0.0, 65535.0
        within_one = self.dtype.kind == "f" and known.min() >= 0 and 0 < known.max() <= 1
        return (0.0, 1.0) if within_one else (0.0, 255.0)

    def content_hash(self) -> str:
        """A hash of the type of the values and of the windows that tell a picture from another."""
        digest = hashlib.blake2b(str(self.dtype).encode(), digest_size=8)
        for values in self._sampled():
            digest.update(np.ma.getmaskarray(values).tobytes() if np.ma.is_masked(values) else b"")
            digest.update(np.ascontiguousarray(np.ma.getdata(values)))
        return digest.hexdigest()

    def _sample(self) -> np.ndarray:
        # One value of 16 says as much as all. The step is no multiple of 3, so that each colour
        # counts; alpha does not.
        return np.ma.concatenate([part[..., :3].reshape(-1)[::16] for part in self._sampled()])

    def _first_values(self, sample: np.ndarray) -> np.ndarray:
        """The values besides 0 of the first window that has some, or the sample without them."""
        h, w = self.size
        for y in range(0, h, _SEARCH_SIDE):
            for x in range(0, w, _SEARCH_SIDE):
                values = self.read((x, y, min(x + _SEARCH_SIDE, w), min(y + _SEARCH_SIDE, h)))
                if (telling := _telling(values[..., :3])).size:
                    return telling
        return sample

    def _sampled(self) -> Iterator[np.ndarray]:
        """Windows all over the picture, all of it if it is small."""
        h, w = self.size
        side_y, side_x = min(_SAMPLE_SIDE, h), min(_SAMPLE_SIDE, w)
        for y in sorted({int(n) for n in np.linspace(0, h - side_y, _SAMPLES)}):
            for x in sorted({int(n) for n in np.linspace(0, w - side_x, _SAMPLES)}):
                yield self.read((x, y, x + side_x, y + side_y))


def _telling(values: np.ndarray) -> np.ndarray:
    """The known values besides 0, which is a background."""
    known = np.ma.compressed(values)
    return known[np.isfinite(known) & (known != 0)]


def open_picture(
    source: Any,
    axes: str | None = None,
    channels: Sequence[int] | None = None,
) -> Picture:
    """Opens a picture to be read by windows; nothing of its pixels is read.

    Args:
        source: anything with `shape` and slicing, such as an array or memmap of numpy, a zarr or
            dask array, a data set of h5py; an OME-Zarr group; a data set of rasterio; or the path
            of a TIFF (BigTIFF, pyramids and OME, too), a `.zarr` folder, a `.npy` file, or of what
            pillow or, if it is installed, rasterio opens.
        axes: optional str, one letter per axis: `"YX"`, `"YXC"`, `"CYX"`, `"TCZYX"`; all but Y, X
            and C (or S) must have length 1. Needed where neither the file nor the shape says
            which axis holds the channels.
        channels: optional sequence of ints, counted from 0: which channels are red, green and blue,
            or one that is grey. Needed where there are not 1, 3 or 4 channels.

    Returns:
        A `Picture`.

    Raises:
        ValueError: if the axes or channels cannot be told, or a file is damaged.
        FileNotFoundError: if there is no such file.
        ImportError: if a package is missing that opens it; the message names the extra.

    Example:

    ```python
    satellite = np.zeros((5, 300, 400), "uint16")
    picture = keras_sam.tiles.open_picture(satellite, axes="CYX", channels=(3, 1, 0))
    picture.read((0, 0, 40, 30)).shape  # (30, 40, 3)
    ```
    """
    if isinstance(source, Picture):
        return source
    about: dict[str, Any] = {"name": f"a picture, {type(source).__name__},"}
    if isinstance(source, (str, os.PathLike)):
        source, found_axes, about = _open_path(Path(os.path.expanduser(source)))
    elif hasattr(source, "shape") and hasattr(source, "__getitem__"):
        found_axes = _dimension_names(source)
    elif hasattr(source, "window_transform"):
        return _of_rasterio(source, channels)
    elif hasattr(source, "group_keys"):
        source, found_axes, more = _ome_zarr(source)
        about |= more
    elif is_image_file(source) or is_pillow_image(source):
        source, found_axes = _whole(source), None
    else:
        raise ValueError(
            "`image` must be an array with `shape` and slicing, a path, or a data set of rasterio. "
            f"Received: {type(source).__name__}."
        )
    if isinstance(source, Picture):
        return _choose(source, channels)
    return _of_array(source, axes or found_axes, channels, about)


# --- arrays ---


def _of_array(array: Any, axes: str | None, channels: Any, about: dict) -> Picture:
    shape = tuple(int(n) for n in array.shape)
    axes = _checked_axes(axes, shape, about["name"])
    size = size_pair([shape[axes.index(axis)] for axis in "YX"], "size", square=False)
    count = shape[axes.index("C")] if "C" in axes else 1

    def read(box):
        return _read_array(array, axes, box, range(count))

    picture = Picture(size, count, np.dtype(array.dtype), read=read, **about)
    return _choose(
        picture, channels, lambda chosen: lambda box: _read_array(array, axes, box, chosen)
    )


def _read_array(array: Any, axes: str, box: Box, channels: Sequence[int]) -> np.ndarray:
    x1, y1, x2, y2 = box
    places = {"Y": slice(y1, y2), "X": slice(x1, x2)}
    kept = [axis for axis in axes if axis in "YX"]

    def part(channel):
        index = tuple({**places, "C": channel}.get(axis, 0) for axis in axes)
        values = np.asarray(array[index])
        return values if kept == ["Y", "X"] else values.T

    if "C" not in axes:
        return part(0)[..., None]
    if axes[-1] == "C" and kept == ["Y", "X"]:  # side by side: read together
        first = min(channels)
        return part(slice(first, max(channels) + 1))[..., [n - first for n in channels]]
    return np.stack([part(channel) for channel in channels], axis=-1)


def _checked_axes(axes: str | None, shape: tuple[int, ...], name: str) -> str:
    """The letters of the axes, with C for channels, told by the shape where that is clear."""
    if axes is None:
        if len(shape) == 2:
            return "YX"
        if len(shape) == 3 and (shape[-1] <= 4) != (shape[0] <= 4):
            return "YXC" if shape[-1] <= 4 else "CYX"
        raise ValueError(
            f"`axes` must be given where the shape does not tell them, such as axes='CYX' for "
            f"channels first. Received: {name} of shape={shape}, whose axes have no names."
        )
    letters = axes.upper().replace("S", "C")
    planes = [n for letter, n in zip(letters, shape) if letter not in "YXC"]
    counts = [letters.count(axis) for axis in "YXC"]
    usable = len(letters) == len(shape) and counts[:2] == [1, 1] and counts[2] < 2
    if not usable or max(planes, default=1) > 1:
        raise ValueError(
            "`axes` must have one letter per axis of the picture: Y and X once, C at most once, "
            "and others for axes of length 1, so select a plane first. Received: "
            f"axes={axes!r}, shape={shape}."
        )
    return letters


def _choose(picture: Picture, channels: Any, reader: Callable | None = None) -> Picture:
    """The picture with the channels that were chosen, 1, 3 or 4 of them."""
    count = picture.num_channels
    if channels is None:
        if count not in (1, 3, 4):
            raise ValueError(
                "`channels` must name one or three of the channels, such as channels=(0, 1, 2). "
                f"Received: None, and {picture.name} with {count} channels."
            )
        return picture
    chosen = tuple(int(n) for n in np.atleast_1d(channels))
    if len(chosen) not in (1, 3) or min(chosen) < 0 or max(chosen) >= count:
        raise ValueError(
            f"`channels` must be one or three of 0..{count - 1}, the channels of {picture.name}. "
            f"Received: {channels!r}."
        )
    if reader is None:
        whole = picture.read

        def read(box):
            return whole(box)[..., list(chosen)]
    else:
        read = reader(chosen)
    return dataclasses.replace(picture, num_channels=len(chosen), read=read, channels=chosen)


def _dimension_names(array: Any) -> str | None:
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


# --- files ---


def _open_path(path: Path) -> tuple[Any, str | None, dict]:
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
            return opened, _dimension_names(opened), about | _zarr_facts(opened)
        array, axes, more = _ome_zarr(opened)
        return array, axes, about | more
    if path.suffix.lower() == ".npy":
        return np.load(path, mmap_mode="r"), None, about
    if is_tiff(str(path)):
        return _open_tiff(path, about)
    if importlib.util.find_spec("rasterio") is not None and _is_alike_in_gdal(path):
        return _with_gdal(path), None, about
    return _whole(path), None, about


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


def _whole(image: Any) -> np.ndarray:
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


def _ome_zarr(group: Any) -> tuple[Any, str | None, dict]:
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
    picture = _rasterio_picture(dataset)
    about = {"path": path, "name": repr(str(path)), "close": dataset.close}
    return dataclasses.replace(picture, **about)


def _of_rasterio(dataset: Any, channels: Any) -> Picture:
    return _choose(_rasterio_picture(dataset), channels)


def _rasterio_picture(dataset: Any) -> Picture:
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


def import_for(extra: str, name: str, purpose: str) -> Any:
    """A module of an optional package, or an ImportError that names the extra which brings it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        raise ImportError(f'{purpose} needs {package}: pip install "keras-sam[{extra}]"') from error
