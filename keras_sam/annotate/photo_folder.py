"""Photographs of one folder: read by name, within limits, and never a file outside of it."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from keras_sam.images import PILLOW_ERRORS, shown_pixels, tiff_size

MAX_BYTES = 512 << 20
MAX_PIXELS = 150_000_000
_EXIF_ORIENTATION = 274
_SIDES = (256, 257)  # TIFF's tags of width and height
# What browsers show as the model sees it, the latter two where nothing is to be turned upright.
_SHOWN_AS_IS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}


class PhotoFolder:
    """The photographs of a folder, by their names.

    Only the names that it is made with can be read, so that no name leads elsewhere; links are
    followed within the folder alone.

    Args:
        folder: path.
        photos: mapping from a photograph's name to its path.
        value_range: which values become 0..255, as `SAMImageConverter` takes it.
    """

    def __init__(
        self, folder: str | os.PathLike, photos: Mapping[str, Path], value_range: Any = "auto"
    ):
        self.folder = Path(folder).resolve()
        self.value_range = value_range
        self._paths = {name: Path(path) for name, path in photos.items()}
        self._sizes: dict[tuple, tuple[int, int]] = {}  # by name and stamp of the file

    @property
    def names(self) -> list[str]:
        """The names, in order."""
        return list(self._paths)

    def read(self, name: str) -> bytes:
        """A photograph's file.

        Raises:
            KeyError: if there is no photograph of that name.
            ValueError: if its file is outside the folder, no plain file, too large or unreadable.
        """
        return self._read(name)[0]

    def stamp(self, name: str) -> tuple | None:
        """What tells a photograph's file from an earlier one; None if there is no such file."""
        try:
            return _stamp_of(os.stat(self._paths[name]))
        except (KeyError, OSError, ValueError):
            return None

    def size(self, name: str) -> tuple[int, int]:
        """Height and width in pixels, upright; raises as `read`."""
        content, stamp = self._read(name)
        key = (name, stamp)
        if key not in self._sizes:
            self._sizes[key] = size_of(content, name)
        return self._sizes[key]

    def picture(self, name: str) -> tuple[bytes, str]:
        """What a browser shows, with the pixels that the model sees: a file and its media type.

        Raises:
            KeyError: if there is no photograph of that name.
            ValueError: as `read`, or if it is no picture or has more pixels than `MAX_PIXELS`.
        """
        content = self.read(name)
        size_of(content, name)
        return shown_picture(content, name, self.value_range)

    def _read(self, name: str) -> tuple[bytes, tuple]:
        if name not in self._paths:
            raise KeyError(f"There is no photograph {name!r} in the folder.")
        try:
            path = self._paths[name].resolve(strict=True)
            if not path.is_relative_to(self.folder):
                raise ValueError(f"{name} is a link to a file outside the folder.")
            # A pipe would wait for a writer for ever.
            with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
                about = os.fstat(file.fileno())
                if not stat.S_ISREG(about.st_mode):
                    raise ValueError(f"{name} is no plain file.")
                if about.st_size > MAX_BYTES:
                    raise ValueError(
                        f"{name} has {about.st_size / 1e6:.0f} MB; photographs of up to "
                        f"{MAX_BYTES / 1e6:.0f} MB are read."
                    )
                return file.read(), _stamp_of(about)
        except OSError as error:
            raise ValueError(f"{name} cannot be read: {error.strerror or error}.") from error


def opened(image: Any) -> Any:
    """A file's content as an open file: short content would be taken for a path. Else the image."""
    return io.BytesIO(image) if isinstance(image, bytes) else image


def shown_picture(image: Any, name: str, value_range: Any) -> tuple[bytes, str]:
    """A picture for browsers with the pixels that the model sees, and its media type.

    Args:
        image: a file's content, which stays as it is where browsers show it; or another image.
        name: what errors call it.
        value_range: which values become 0..255, as `SAMImageConverter` takes it.

    Raises:
        ValueError: if it is no picture.
    """
    if isinstance(image, bytes):
        kind = _kind_shown_as_is(image) if value_range == "auto" else None
        if kind is not None:
            return image, kind
    try:
        pixels = shown_pixels(opened(image), value_range)
    except (ValueError, OSError) as error:
        raise ValueError(f"{name} cannot be read: its content is damaged.") from error
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=92, subsampling=0)
    return file.getvalue(), "image/jpeg"


def _stamp_of(about: os.stat_result) -> tuple:
    return about.st_mtime_ns, about.st_size, about.st_ino


def size_of(content: bytes, name: str) -> tuple[int, int]:
    """Height and width, upright, from the file's head alone where pillow knows its kind."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            width, height = picture.size
            orientation = picture.getexif().get(_EXIF_ORIENTATION, 1)
            if picture.format == "TIFF":  # whose size some versions of pillow give upright
                width, height = (picture.tag_v2[tag] for tag in _SIDES)
    except Image.DecompressionBombError:
        raise _too_large(name) from None
    except PILLOW_ERRORS:
        try:
            # Only tifffile may know these, and decodes no pixel either.
            height, width = tiff_size(io.BytesIO(content))
        except (ValueError, ImportError) as error:
            raise ValueError(
                f"{name} cannot be read as a picture: it is damaged, or of a kind that pillow does "
                "not read."
            ) from error
        orientation = 1
    if height * width > MAX_PIXELS:
        raise _too_large(name)
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


def _too_large(name: str) -> ValueError:
    return ValueError(
        f"{name} has too many pixels: pictures of up to {MAX_PIXELS / 1e6:.0f} megapixels are read."
    )


def _kind_shown_as_is(content: bytes) -> str | None:
    """The media type of a file that a browser shows with the model's pixels, else None."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            plain = picture.mode in ("L", "RGB") and not getattr(picture, "is_animated", False)
            plain = plain and "transparency" not in picture.info
            plain = plain and ";16" not in str(getattr(picture, "tile", ())[:1])
            if picture.format != "JPEG":  # others are not turned by every browser
                plain = plain and picture.getexif().get(_EXIF_ORIENTATION, 1) == 1
            return _SHOWN_AS_IS.get(picture.format) if plain else None
    except PILLOW_ERRORS:
        return None
