"""Images with the masks of their objects, read from common data set layouts."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from keras_sam import masks as mask_tools
from keras_sam.annotations.image_annotations import read_json, segmentation_to_rle
from keras_sam.images import IMAGE_ENDINGS, load_image
from keras_sam.losses import VOID


class Source(Sequence):
    """A sequence of images and their objects.

    An item is a tuple of the image, uint8 `(H0, W0, 3)`, and its objects, uint8 `(P, H0, W0)` of
    0, 1 and 255 for void. Images are read on access; `path(i)` is the file of one.

    Args:
        paths: the image files.
    """

    def __init__(self, paths: Iterable[Path]):
        self._paths = list(paths)

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, index: int) -> Path:
        """The image file of an item."""
        return self._paths[index]

    def objects(self, index: int, size: tuple[int, int]) -> np.ndarray:
        """The targets of an item whose image has this size."""
        raise NotImplementedError

    def targets(self, index: int, size: tuple[int, int]) -> np.ndarray:
        """`objects`, checked to have the size of the image."""
        targets = self.objects(index, size)
        if targets.shape[1:] != tuple(size):
            raise ValueError(
                f"The masks of {self.path(index)} must have its size, {tuple(size)}. "
                f"Received: {targets.shape[1:]}."
            )
        return targets

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        # Which values become 0..255 is the segmenter's setting, so they stay as they are.
        image = load_image(self.path(index), value_range=None)
        return image, self.targets(index, image.shape[:2])


class MaskFolder(Source):
    """Images in one folder and, under the same names, their masks in another.

    Args:
        images: folder of images.
        masks: folder of one PNG per image, with the same name before the ending.
        label_map: bool. Whether every value except 0 and 255 is an object of its own; otherwise
            they are one object together. 255 is void in both cases, unless a mask has only 0 and
            255: then it is black and white, and 255 is the object.

    Raises:
        ValueError: if there is no image, or an image has no mask.
    """

    def __init__(
        self, images: str | os.PathLike, masks: str | os.PathLike, label_map: bool = False
    ):
        super().__init__(_images_in(images))
        if not self._paths:
            raise ValueError(f"`images` must be a folder with images in it. Received: {images}.")
        self._masks = [Path(masks) / f"{path.stem}.png" for path in self._paths]
        missing = [m.name for m in self._masks if not m.is_file()]
        if missing:
            raise ValueError(
                f"`masks` must have a mask for every image. Missing in {masks}: {_first(missing)}."
            )
        self._label_map = label_map

    def objects(self, index: int, size: tuple[int, int]) -> np.ndarray:
        with Image.open(self._masks[index]) as file:
            values = np.asarray(file)  # the indices of a palette, not its colours
        if values.ndim == 3:
            values = values[..., 0]
        if set(np.unique(values)) <= {0, VOID}:
            return (values == VOID).astype("uint8")[None]
        if not self._label_map:
            return np.where(values == VOID, VOID, values > 0).astype("uint8")[None]
        labels = [v for v in np.unique(values) if v not in (0, VOID)]
        void = np.where(values == VOID, VOID, 0)
        return np.stack([np.where(values == v, 1, void) for v in labels]).astype("uint8")


class CocoObjects(Source):
    """Images and objects of a COCO instances file: polygons or run lengths; crowds become void.

    Args:
        annotations: path of the JSON file.
        images: folder of its images.

    Raises:
        ValueError: if the file is not a COCO instances file, or images are missing.
    """

    def __init__(self, annotations: str | os.PathLike, images: str | os.PathLike):
        content = read_json(annotations)
        if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
            raise ValueError(
                "`annotations` must be a COCO file with `images` and `annotations`. "
                f"Received: {annotations}."
            )
        by_image: dict[Any, list[dict]] = {}
        for annotation in content["annotations"]:
            by_image.setdefault(annotation["image_id"], []).append(annotation)
        super().__init__(Path(images) / entry["file_name"] for entry in content["images"])
        self._annotations = [by_image.get(entry["id"], []) for entry in content["images"]]
        missing = [path.name for path in self._paths if not path.is_file()]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(self)} images of {annotations} are missing in "
                f"{images}: {_first(missing)}."
            )

    def objects(self, index: int, size: tuple[int, int]) -> np.ndarray:
        void = np.zeros(size, bool)
        masks = []
        for annotation in self._annotations[index]:
            mask = decode_segmentation(annotation["segmentation"], size)
            if annotation.get("iscrowd", 0):
                void |= mask
            else:
                masks.append(mask)
        return _stack(masks, void, size)


class SA1BFolder(Source):
    """Images and the masks beside them, `name.jpg` and `name.json`, as in the SA-1B data set.

    Args:
        folder: folder of both.

    Raises:
        ValueError: if there is no such pair.
    """

    def __init__(self, folder: str | os.PathLike):
        super().__init__(p for p in _images_in(folder) if p.with_suffix(".json").is_file())
        if not self._paths:
            raise ValueError(
                "`folder` must hold images with a JSON file of the same name beside each. "
                f"Received: {folder}."
            )

    def objects(self, index: int, size: tuple[int, int]) -> np.ndarray:
        content = read_json(self.path(index).with_suffix(".json"))
        masks = [decode_segmentation(a["segmentation"], size) for a in content["annotations"]]
        return _stack(masks, np.zeros(size, bool), size)


def item_name(source: Sequence, index: int) -> str:
    """The image file of an item, or its index where the source has no files."""
    path = getattr(source, "path", None)
    return str(path(index)) if path is not None else f"image {index}"


def report_unreadable(
    source: Sequence, index: int, error: Exception, skip: bool, stacklevel: int
) -> None:
    """Warns that an item is left out if `skip`, otherwise raises a ValueError that names it."""
    name = item_name(source, index)
    if not skip:
        raise ValueError(
            f"{name} cannot be read: {error} Pass `skip_unreadable=True` to leave such images out."
        ) from error
    warnings.warn(f"{name} is left out: {error}", stacklevel=stacklevel + 1)


def read_targets(source: Sequence, index: int, size: tuple[int, int]) -> np.ndarray:
    """The objects `(P, H0, W0)` of one item, without reading its image if the source can."""
    return source.targets(index, size) if isinstance(source, Source) else source[index][1]


def decode_segmentation(segmentation: list | dict, size: tuple[int, int]) -> np.ndarray:
    """A bool mask of `size` from COCO's polygons, or from its run lengths, compressed or not."""
    if isinstance(segmentation, list):
        return mask_tools.polygons_to_mask(segmentation, size)
    return mask_tools.decode_rle(segmentation_to_rle(segmentation, size))


def _images_in(folder: str | os.PathLike) -> list[Path]:
    return sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in IMAGE_ENDINGS)


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


def _stack(masks: list[np.ndarray], void: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if not masks:
        return np.zeros((0, *size), "uint8")
    targets = np.stack(masks).astype("uint8")
    targets[:, void] = np.where(targets[:, void] == 1, 1, VOID)
    return targets
