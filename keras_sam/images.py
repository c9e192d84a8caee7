"""Images as one numpy array, read from arrays, tensors, pillow images and files.

Numpy and pillow only, and tifffile for what pillow does not read of TIFF, if it is installed.
"""

from __future__ import annotations

import importlib.util
import io
import os
import re
import struct
from typing import Any

import numpy as np

from keras_sam.notices import notice
from keras_sam.pixel_values import to_pixel_values
from keras_sam.prompts.nested import to_numpy

# Mean and standard deviation of RGB in 0..255 that every released checkpoint was trained with.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

# What cameras, scanners and the web make; other files of a folder are not taken for images.
IMAGE_ENDINGS: tuple[str, ...] = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".heic", ".heif", ".bmp"),
    *(".gif", ".tif", ".tiff", ".jp2", ".ppm", ".pgm"),
)

_GDAL_NODATA = 42113  # TIFF tag, the number as text

# What pillow's decoders raise for broken files.
PILLOW_ERRORS = (
    *(OSError, SyntaxError, ValueError, RuntimeError, EOFError, IndexError, KeyError),
    struct.error,
)


def load_image(
    image: Any,
    channel_order: str = "rgb",
    num_channels: int = 3,
    convert_rgb: bool = True,
    data_format: str = "channels_last",
    value_range: Any = "auto",
) -> np.ndarray:
    """Reads one image as uint8 or float32 `(H0, W0, num_channels)`, RGB, which may share memory.

    `image` is an array or tensor `(H0, W0, C)` or `(H0, W0)`, a pillow image, or a file: its path,
    its bytes, or opened. Pillow images and files are turned upright by their EXIF orientation;
    `channel_order` and `data_format` are those of arrays. `convert_rgb` repeats a grey channel and
    drops alpha where the model takes three channels. `value_range` is `SAMImageConverter`'s; with
    None the values and their type stay as they are.
    """
    check_choice(channel_order, "channel_order", ("rgb", "bgr"))
    check_choice(data_format, "data_format", ("channels_last", "channels_first"))
    if image is None:
        raise ValueError(
            "An image must be an array, a pillow image or a file. Received: None, which is what "
            "`cv2.imread` returns for a file that it cannot read: look at its path, or pass the "
            "path here."
        )
    if getattr(image, "shape", None) == ():
        image = to_numpy(image).item()  # a path, in TensorFlow's data sets
    is_array, name = False, "an array"
    if is_image_file(image):
        source, name = _open_source(image)
        array = _read_file(source, name, num_channels, convert_rgb)
    elif is_pillow_image(image):
        array, name = _read_pillow(image, convert_rgb and num_channels == 3), "a pillow image"
    else:
        array, is_array = _to_array(image), True
        if array.ndim == 3 and data_format == "channels_first":
            array = np.moveaxis(array, 0, -1)
    array = _match_channels(_with_channels(array), num_channels, convert_rgb)
    array = to_pixel_values(array, value_range, name)
    return array[..., ::-1] if is_array and channel_order == "bgr" and num_channels == 3 else array


def shown_pixels(photo: Any, value_range: Any) -> np.ndarray:
    """A photograph as the model sees it, uint8 RGB; a file, or the values in it."""
    pixels = load_image(photo, value_range=value_range)
    return np.clip(np.rint(pixels), 0, 255).astype("uint8")


def is_image_file(image: Any) -> bool:
    """Whether this stands for a file: a path, the bytes of one, or an open one."""
    if isinstance(image, (str, bytes, bytearray, os.PathLike)):
        return True
    return hasattr(image, "read") and not hasattr(image, "shape")


def is_pillow_image(image: Any) -> bool:
    """Whether the object is a pillow image."""
    from PIL import Image

    return isinstance(image, Image.Image)


def check_choice(value: Any, name: str, choices: tuple[str, ...]) -> None:
    """Raises unless `value` is one of the strings."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {choices}. Received: {value!r}.")


# --- files ---


def _read_file(source: Any, name: str, num_channels: int, convert_rgb: bool) -> np.ndarray:
    from PIL import Image

    to_rgb = convert_rgb and num_channels == 3
    reason = None
    try:
        with Image.open(source) as opened:
            if not needs_tifffile(opened, to_rgb):
                return _read_pillow(opened, to_rgb)
    except FileNotFoundError:
        looked_in = ""
        if isinstance(source, str) and not os.path.isabs(source):
            looked_in = f" Relative paths start at the working directory, {os.getcwd()!r}."
        raise FileNotFoundError(f"There is no image file at {name}.{looked_in}") from None
    except (*PILLOW_ERRORS, Image.DecompressionBombError) as error:
        if not is_tiff(source):
            raise _unreadable(name, _kind_of(_head_of(source)) or error) from error
        reason = error
    return read_tiff(source, name, to_rgb, reason)


def _open_source(image: Any) -> tuple[Any, str]:
    """A path or binary file that pillow opens, and what messages call it."""
    if isinstance(image, (bytes, bytearray)):
        # Paths are short and have neither of these bytes, one of which image formats start with.
        if len(image) > 4096 or b"\0" in image or b"\n" in image:
            return io.BytesIO(image), f"{len(image)} bytes"
        image = bytes(image)
    if hasattr(image, "read"):
        if isinstance(image, io.TextIOBase):
            raise ValueError(
                "An open image file must be open for bytes. Received: a text file. Open it with "
                '`open(path, "rb")`.'
            )
        name = getattr(image, "name", None)
        return image, f"an open file, {type(image).__name__}" + (f" of {name!r}" if name else "")
    path = os.fsdecode(image)
    address = re.match(r"([a-zA-Z][\w+.-]+):/+", path)  # a drive has one letter
    if address and address[1].lower() == "file":
        from urllib.parse import urlsplit
        from urllib.request import url2pathname

        path = url2pathname(urlsplit(path).path)
    elif address and not os.path.exists(path):
        raise ValueError(
            f"An image must be on this machine. Received: the address {path!r:.200}. Download it "
            "first, for instance with `path = keras.utils.get_file(origin=address)`, and pass the "
            "path; or pass the bytes that your client reads."
        )
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        raise ValueError(
            f"An image must be one file. Received: the folder {path!r:.200}. Pass the paths of the "
            "files in it."
        )
    return path, f"{path!r:.200}"


def _head_of(source: Any) -> bytes:
    """The first bytes of a path or binary file, if they can be read."""
    try:
        if hasattr(source, "read"):
            source.seek(0)
            return source.read(64)
        with open(source, "rb") as file:
            return file.read(64)
    except (OSError, ValueError, AttributeError):
        return b"?"


def is_tiff(source: Any) -> bool:
    """Whether a path or binary file starts as TIFF or BigTIFF do."""
    return _head_of(source)[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _kind_of(head: bytes) -> str | None:
    """What a file is that is no image, where that can be told by its first bytes."""
    if not head:
        return "the file is empty"
    if head.lstrip()[:1] == b"<":
        return "it holds a web page or other markup"
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS: get the file with `git lfs pull`"
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypheif"):
        return "HEIC: install pillow-heif and call `pillow_heif.register_heif_opener()`"
    return None


def _unreadable(name: str, reason: Any) -> ValueError:
    return ValueError(
        f"The file must be an image that pillow can read. Received: {name} ({reason}). "
        "Open it yourself and pass an array (height, width, channels)."
    )


def _read_pillow(image: Any, to_rgb: bool) -> np.ndarray:
    from PIL import ImageOps

    # Before the transposition, which makes a new image without its file's format.
    sixteen_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    nodata = getattr(image, "tag_v2", {}).get(_GDAL_NODATA)
    if 0 in image.size:
        raise _empty_error((image.size[1], image.size[0]))
    # The second picture of an MPO file is a phone's preview.
    if getattr(image, "is_animated", False) and image.tell() == 0 and image.format != "MPO":
        _tell_of_first()
    upper_bits = image.mode in ("RGB", "RGBA") and ";16" in str(getattr(image, "tile", ())[:1])
    image = ImageOps.exif_transpose(image)
    if sixteen_bits:
        return _without_nodata(np.asarray(image).astype("uint16"), nodata)
    if image.mode in ("I", "F"):
        return _without_nodata(np.asarray(image), nodata)
    if image.mode in ("P", "PA", "La", "RGBa"):
        # Palettes and premultiplied colours must be resolved before alpha can be dropped.
        image = image.convert("LA" if image.mode == "La" else "RGBA")
        image = image if to_rgb else image.convert("RGB")
    elif image.mode == "1":
        image = image.convert("L")
    if to_rgb and image.mode != "RGB":
        image = image.convert("RGB")
    array = np.asarray(image)
    if upper_bits and 0 < array.max() < 64:
        notice(
            "An image file has 16 bits per colour, of which pillow reads the upper 8: they are "
            f"within 0..{array.max()}, nearly black. Read it otherwise, TIFF with "
            '`pip install "keras_sam[tiff]"`, PNG for instance with OpenCV, and say with '
            "`SAMImageConverter(value_range=...)` which values it has.",
            f"upper {int(array.max()).bit_length()} bits",
        )
    return array


def needs_tifffile(image: Any, to_rgb: bool) -> bool:
    """Whether an opened image is a TIFF of which pillow would lose bands or bits."""
    if image.format != "TIFF" or image.tag_v2.get(262) not in (1, 2):  # intensities or RGB
        return False
    bands, bits = image.tag_v2.get(277, 1), max(image.tag_v2.get(258, (8,)))
    if bands > 4 and not (to_rgb and image.mode == "RGB" and image.tag_v2.get(262) == 2):
        return True
    return bands > 1 and bits > 8 and importlib.util.find_spec("tifffile") is not None


def tiff_size(source: Any) -> tuple[int, int]:
    """Height and width, upright, of the first page of an open TIFF: its head alone is read.

    Raises:
        ImportError: if tifffile is not installed.
        ValueError: if it is damaged.
    """
    import tifffile

    source.seek(0)
    try:
        with tifffile.TiffFile(source) as file:
            page = file.pages[0]
            height, width = page.imagelength, page.imagewidth
            orientation = page.tags.valueof(274) or 1
    except Exception as error:  # of any of its readers
        raise ValueError(f"The file is a damaged TIFF ({error}).") from error
    return (width, height) if orientation > 4 else (height, width)


def read_tiff(source: Any, name: str, to_rgb: bool, reason: Any) -> np.ndarray:
    """The first page of a TIFF through tifffile."""
    try:
        import tifffile
    except ImportError:
        reason = f"{reason}; " if reason else ""
        raise _unreadable(
            name, f'{reason}tifffile may read it: pip install "keras_sam[tiff]"'
        ) from None
    try:
        if hasattr(source, "seek"):
            source.seek(0)
        with tifffile.TiffFile(source) as file:
            page = file.pages[0]
            if len(file.pages) > 1:
                _tell_of_first()
            array = page.asarray()
            array = np.moveaxis(array, 0, -1) if page.axes == "SYX" else array  # bands in planes
            if to_rgb and page.photometric == 2 and page.samplesperpixel > 4:
                array = array[..., :3]  # the others are no colours
            orientation, nodata = (
                None if tag is None else tag.value
                for tag in (page.tags.get(274), page.tags.get(_GDAL_NODATA))
            )
    except Exception as error:  # of any of its decoders
        raise _unreadable(name, error) from error
    return _without_nodata(_upright(array, int(orientation or 1)), nodata)


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turns an image by its EXIF orientation, 1 to 8."""
    if orientation > 4:
        array, orientation = array.swapaxes(0, 1), orientation - 4
    array = array[:, ::-1] if orientation in (2, 3) else array
    return array[::-1] if orientation in (3, 4) else array


def _without_nodata(array: np.ndarray, nodata: Any) -> np.ndarray:
    """Masks the number that a GeoTIFF declares to be no value, given as text."""
    try:
        number = float(str(nodata).strip(" \0"))
    except ValueError:
        return array
    if array.dtype == np.uint8:
        return array
    return np.ma.array(array, mask=np.isnan(array) if np.isnan(number) else array == number)


def _tell_of_first() -> None:
    notice(
        "An image file has several frames or pages, of which the first is used. For another one "
        "pass a pillow image: `image = PIL.Image.open(path); image.seek(1)`.",
        "first frame",
    )


# --- arrays ---


def _to_array(image: Any) -> np.ndarray:
    if isinstance(image, np.ma.MaskedArray):
        return image
    try:
        return to_numpy(image)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            "`image` must be an array (height, width, channels), a pillow image, or a file: its "
            f"path, its bytes, or open. Received: {type(image).__name__} ({error})."
        ) from error


def _with_channels(array: np.ndarray) -> np.ndarray:
    """`(H0, W0, C)`, with at least one pixel."""
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3:
        batch = " This is a batch: take its images one by one." if array.ndim == 4 else ""
        raise ValueError(
            "An image must have shape (height, width, channels) or (height, width). "
            f"Received: shape={array.shape}.{batch}"
        )
    if array.size == 0:
        raise _empty_error(array.shape)
    return array


def _match_channels(array: np.ndarray, num_channels: int, convert_rgb: bool) -> np.ndarray:
    channels = array.shape[-1]
    if channels == num_channels:
        return array
    if convert_rgb and num_channels == 3 and channels == 1:
        return np.repeat(array, 3, axis=-1)
    if convert_rgb and num_channels == 3 and channels == 4:
        return array[..., :3]
    remedy = "Select or convert the channels first."
    if array.shape[0] == num_channels:
        remedy = 'Use `data_format="channels_first"` if the channels come first.'
    accepted = f"{num_channels} channels" + (
        ", or 1 (grey), or 4 (with alpha)" if convert_rgb and num_channels == 3 else ""
    )
    raise ValueError(
        f"An image must have {accepted}, in shape (height, width, channels). "
        f"Received: shape={array.shape}. {remedy}"
    )


def _empty_error(shape: tuple[int, ...]) -> ValueError:
    return ValueError(
        f"An image must have at least one pixel. Received: an empty image of shape={shape}."
    )
