"""Images with the masks of their objects, read from the layouts that people keep them in."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from keras_sam import masks as mask_tools
from keras_sam.images import load_image
from keras_sam.losses import VOID

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


class Source(Sequence):
    """A sequence of images and their objects.

    An item is a tuple of the image, uint8 `(H0, W0, 3)`, and its objects, uint8 `(P, H0, W0)` of
    0, 1 and 255 for void. Images are read when they are asked for; `path(i)` names their file.
    """

    def path(self, index: int) -> Path:
        """The image file of an item."""
        raise NotImplementedError

    def objects(self, index: int, size: tuple[int, int]) -> np.ndarray:
        """The targets of an item whose image has this size."""
        raise NotImplementedError

    def targets(self, index: int, size: tuple[int, int]) -> np.ndarray:
        """`objects`, or an error if they are of another size than the image."""
        targets = self.objects(index, size)
        if targets.shape[1:] != tuple(size):
            raise ValueError(
                f"The masks of {self.path(index)} must have its size, {tuple(size)}. "
                f"Received: {targets.shape[1:]}."
            )
        return targets

    def __getitem__(self, index):
        image = load_image(self.path(index))
        return image, self.targets(index, image.shape[:2])


class MaskFolder(Source):
    """Images in one folder and, under the same names, their masks in another.

    Args:
        images: folder of images.
        masks: folder of one PNG per image, with the same name before the ending.
        label_map: bool. `True`: every value but 0 and 255 is an object of its own. `False`: every
            value but 0 and 255 is one object. 255 is void either way; a mask that holds
            nothing but 0 and 255 is black and white, and its 255 is the object.

    Raises:
        ValueError: if there is no image, or an image has no mask.
    """

    def __init__(self, images, masks, label_map: bool = False):
        self._images = sorted(
            path for path in Path(images).iterdir() if path.suffix.lower() in IMAGE_ENDINGS
        )
        if not self._images:
            raise ValueError(f"`images` must be a folder with images in it. Received: {images}.")
        self._masks = [Path(masks) / f"{path.stem}.png" for path in self._images]
        missing = [m.name for m in self._masks if not m.is_file()]
        if missing:
            raise ValueError(
                f"`masks` must have a mask for every image. Missing in {masks}: "
                f"{', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}."
            )
        self._label_map = label_map

    def __len__(self):
        return len(self._images)

    def path(self, index):
        return self._images[index]

    def objects(self, index, size):
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
    """Images and objects of a COCO instances file: polygons, run lengths, and crowds as void.

    Args:
        annotations: path of the JSON file.
        images: folder of its images.

    Raises:
        ValueError: if the file is no COCO instances file, or images are missing.
    """

    def __init__(self, annotations, images):
        content = _read_json(annotations)
        if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
            raise ValueError(
                "`annotations` must be a COCO file with `images` and `annotations`. "
                f"Received: {annotations}."
            )
        by_image: dict = {}
        for annotation in content["annotations"]:
            by_image.setdefault(annotation["image_id"], []).append(annotation)
        self._items = [
            (Path(images) / entry["file_name"], by_image.get(entry["id"], []))
            for entry in content["images"]
        ]
        missing = [path.name for path, _ in self._items if not path.is_file()]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(self._items)} images of {annotations} are missing in "
                f"{images}: {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}."
            )

    def __len__(self):
        return len(self._items)

    def path(self, index):
        return self._items[index][0]

    def objects(self, index, size):
        annotations = self._items[index][1]
        void = np.zeros(size, bool)
        masks = []
        for annotation in annotations:
            mask = decode_segmentation(annotation["segmentation"], size)
            if annotation.get("iscrowd", 0):
                void |= mask
            else:
                masks.append(mask)
        return _stack(masks, void, size)


class SA1BFolder(Source):
    """Images and the masks beside them, as the SA-1B data set has them: `name.jpg`, `name.json`.

    Args:
        folder: folder of both.

    Raises:
        ValueError: if there is no such pair.
    """

    def __init__(self, folder):
        self._images = [
            path
            for path in sorted(Path(folder).iterdir())
            if path.suffix.lower() in IMAGE_ENDINGS and path.with_suffix(".json").is_file()
        ]
        if not self._images:
            raise ValueError(
                "`folder` must hold images with a JSON file of the same name beside each. "
                f"Received: {folder}."
            )

    def __len__(self):
        return len(self._images)

    def path(self, index):
        return self._images[index]

    def objects(self, index, size):
        content = _read_json(self._images[index].with_suffix(".json"))
        masks = [decode_segmentation(a["segmentation"], size) for a in content["annotations"]]
        return _stack(masks, np.zeros(size, bool), size)


def read_targets(source, index: int, size: tuple[int, int]) -> np.ndarray:
    """The objects of one item, if possible without reading its image.

    Args:
        source: a `Source`, or any sequence of tuples of an image and its objects.
        index: int.
        size: tuple `(H0, W0)` of the image.

    Returns:
        uint8 array `(P, H0, W0)` of 0, 1 and 255 for void.
    """
    return source.targets(index, size) if isinstance(source, Source) else source[index][1]


def decode_segmentation(segmentation, size: tuple[int, int]) -> np.ndarray:
    """A mask from COCO's polygons, or from its run lengths, compressed or not.

    Args:
        segmentation: list of polygons `[x1, y1, x2, y2, ...]`, or dict of `size` and `counts`.
        size: tuple `(H0, W0)` of the image.

    Returns:
        Bool array `(H0, W0)`.

    Raises:
        ValueError: if run lengths are of another size.
    """
    if isinstance(segmentation, list):
        return mask_tools.polygons_to_mask(segmentation, size)
    if tuple(segmentation["size"]) != tuple(size):
        raise ValueError(
            f"`segmentation` must be of the image's size {tuple(size)}. "
            f"Received: size={segmentation['size']}."
        )
    return mask_tools.decode_rle(segmentation)


def _stack(masks, void, size):
    if not masks:
        return np.zeros((0, *size), "uint8")
    targets = np.stack(masks).astype("uint8")
    targets[:, void] = np.where(targets[:, void] == 1, 1, VOID)
    return targets


def _read_json(path):
    try:
        with open(os.fspath(path), encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:
        raise ValueError(f"{path} is no valid JSON: {error}.") from error
