"""Images that a program has, in the place of a folder of photographs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from keras_sam.annotate.photo_folder import shown_picture, size_of
from keras_sam.images import load_image


class GivenImages:
    """Images by names of their own, as `PhotoFolder` has photographs.

    Files are called by their paths within the folder that they have in common, other images
    `image 1`, `image 2`. Of images with the same name, the later ones get a number.

    Args:
        images: sequence of paths, arrays `(H0, W0, 3)` or `(H0, W0)`, or pillow images; or a
            mapping from names to such images.
        value_range: which values become 0..255, as `SAMImageConverter` takes it.

    Raises:
        ValueError: if there is no image, or a name is no text.
    """

    def __init__(self, images: Sequence[Any] | Mapping[str, Any], value_range: Any = "auto"):
        if not len(images):
            raise ValueError("`image` must be an image or a list of some. Received: an empty list.")
        self.value_range = value_range
        if isinstance(images, Mapping):
            self._images = dict(images)
            for name in images:
                if not isinstance(name, str) or not name:
                    raise ValueError(f"The names in `image` must be text. Received: {name!r}.")
        else:
            self._images = dict(zip(_names(images), images, strict=True))
        # Of these a later program cannot know whether its images of these names are the same.
        numbered = [] if isinstance(images, Mapping) else self._images.items()
        self.numbered = [name for name, image in numbered if not _is_path(image)]
        self._sizes: dict[str, tuple[int, int]] = {}

    @property
    def names(self) -> list[str]:
        """The names, in order."""
        return list(self._images)

    def read(self, name: str) -> Any:
        """An image: a file's content, or what was given.

        Raises:
            KeyError: if there is no image of that name.
            ValueError: if its file cannot be read.
        """
        if name not in self._images:
            raise KeyError(f"There is no image {name!r}.")
        image = self._images[name]
        if not _is_path(image):
            return image
        try:
            with open(image, "rb") as file:
                return file.read()
        except OSError as error:
            raise ValueError(f"{name} cannot be read: {error.strerror or error}.") from error

    def stamp(self, name: str) -> bool | None:
        """Images do not change; None if there is none of that name."""
        return True if name in self._images else None

    def size(self, name: str) -> tuple[int, int]:
        """Height and width in pixels, upright; raises as `read`."""
        if name not in self._sizes:
            image = self.read(name)
            self._sizes[name] = (
                size_of(image, name) if isinstance(image, bytes) else _sides(image, name)
            )
        return self._sizes[name]

    def picture(self, name: str) -> tuple[bytes, str]:
        """What a browser shows, as `PhotoFolder.picture`."""
        return shown_picture(self.read(name), name, self.value_range)


def _is_path(image: Any) -> bool:
    return isinstance(image, (str, os.PathLike))


def _sides(image: Any, name: str) -> tuple[int, int]:
    """Height and width of an array or pillow image, upright."""
    try:
        return load_image(image, value_range=None).shape[:2]
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error}.") from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _names(images: Sequence[Any]) -> list[str]:
    paths = [PurePath(os.path.abspath(image)) for image in images if _is_path(image)]
    try:
        common = os.path.commonpath([path.parent for path in paths])
    except ValueError:  # there are none, or they are on several drives
        common = ""
    names: list[str] = []
    met: Counter[str] = Counter()
    for number, image in enumerate(images, start=1):
        name = f"image {number}"
        if _is_path(image):
            path = PurePath(os.path.abspath(image))
            name = (path.relative_to(common) if common else path).as_posix()
        met[name] += 1
        while name in names:
            name = f"{name} ({met[name]})"
        names.append(name)
    return names
