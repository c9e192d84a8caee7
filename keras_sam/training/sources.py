"""Images with the masks of their objects, read from common data set layouts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from keras_sam import masks as mask_tools
from keras_sam.annotations.coco import annotations_by_image, usable_segmentation
from keras_sam.annotations.image_annotations import read_json, segmentation_to_rle
from keras_sam.annotations.mask_files import read_mask_file
from keras_sam.geometry import resize_image
from keras_sam.images import IMAGE_ENDINGS, load_image
from keras_sam.losses import VOID
from keras_sam.masks.reading import tell_of
from keras_sam.notices import notice, warn
from keras_sam.preprocessing.targets import read_targets

# What a mask's name has after that of its image, in order of preference.
_MASK_NAMES = ("", "_mask", "-mask", "_seg", "_label", "_gt")
_OF_CAMERAS = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".heic", ".heif")
_EXIF_ORIENTATION = 274


class Source(Sequence):
    """A sequence of images and their objects.

    An item is a tuple of the image `(H0, W0, 3)`, with the values of its file, mostly uint8, and
    its objects, uint8 `(P, H0, W0)` of 0, 1 and 255 for void. Images are read on access; `path(i)`
    is the file of one.

    Args:
        paths: the image files.
    """

    has_read_targets = True

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
                + _why_swapped(self.path(index), size, targets.shape[1:])
            )
        return targets

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        # Which values become 0..255 is the segmenter's setting, so they stay as they are.
        image = load_image(self.path(index), value_range=None)
        return image, self.targets(index, image.shape[:2])


class MaskFolder(Source):
    """Images in one folder and, under the same names, their masks in another, or the same.

    The mask of `a.jpg` is `a.png`, or `a` with the ending of another image format, or one of
    `a.jpg.png`, `a_mask.png`, `a-mask.png`, `a_seg.png`, `a_label.png` and `a_gt.png`.

    Args:
        images: folder of images.
        masks: folder of one mask per image. What is read as the object is in the page on training:
            the bright part of black and white masks, soft edges included; every colour but the
            background; all numbers of a label map but 0.
        label_map: bool. Whether each number or colour is an object of its own; otherwise they are
            one object together.
        void: the number that is neither object nor background; `None` for none. Defaults to
            `"auto"`: 255 beside the numbers of a label map of 8 bits.

    Raises:
        ValueError: if there is no image, an image has no mask, or several.
    """

    def __init__(
        self,
        images: str | os.PathLike,
        masks: str | os.PathLike,
        label_map: bool = False,
        void: int | str | None = "auto",
    ):
        paths = _images_in(images)
        if not paths:
            raise ValueError(f"`images` must be a folder with images in it. Received: {images}.")
        together = os.path.isdir(masks) and os.path.samefile(images, masks)
        by_stem = _by_stem(paths if together else _images_in(masks))
        found = {path: _masks_of(path, by_stem, together) for path in paths}
        # Where both are in one folder, masks are no images.
        are_masks = {mask for masks_of in found.values() for mask in masks_of}
        super().__init__(path for path in paths if path not in are_masks)
        missing = [path.name for path in self._paths if not found[path]]
        if missing:
            raise ValueError(
                f"`masks` must have a mask for every image. Missing in {masks} for: "
                f"{_first(missing)}. The mask of {missing[0]} may be {Path(missing[0]).stem}.png, "
                f"{missing[0]}.png or {Path(missing[0]).stem}_mask.png."
            )
        twins = [path for path in self._paths if len(found[path]) > 1]
        if twins:
            raise ValueError(
                f"`masks` must have one mask for every image. Received: {twins[0].name} has "
                f"{' and '.join(mask.name for mask in found[twins[0]])}."
            )
        self._masks = [found[path][0] for path in self._paths]
        self._label_map, self._void = label_map, void

    def objects(self, index: int, size: tuple[int, int]) -> np.ndarray:
        reading = read_mask_file(self._masks[index], self._void)
        tell_of(reading, str(self._masks[index]))
        return reading.objects() if self._label_map else reading.target()[None]


class CocoObjects(Source):
    """Images and objects of a COCO instances file: polygons or run lengths; crowds become void.

    What cannot be used is left out, and counted in one warning: annotations of images that the
    file does not list, annotations without a mask, and rings of fewer than three points.

    Args:
        annotations: path of the JSON file.
        images: folder of its images. Folders in `file_name` count if they are there.
        rescale: bool. Scale the objects of an image whose size is not the `width` and `height` of
            the file; otherwise that is an error.

    Raises:
        ValueError: if the file is not a COCO instances file, has only boxes, or images are missing.
    """

    def __init__(
        self, annotations: str | os.PathLike, images: str | os.PathLike, rescale: bool = False
    ):
        if os.path.isdir(annotations):
            raise ValueError(
                "`annotations` must be a JSON file, and comes before `images`, the folder. "
                f"Received: the folder {annotations}."
            )
        content = read_json(annotations)
        if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
            raise ValueError(
                "`annotations` must be a COCO file with `images` and `annotations`. "
                f"Received: {annotations}."
            )
        by_image, unknown = annotations_by_image(content, str(annotations))
        self._name, self._rescale = str(annotations), rescale
        entries = content["images"]
        super().__init__(_find_images(Path(images), [entry["file_name"] for entry in entries]))
        missing = [path.name for path in self._paths if not path.is_file()]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(self)} images of {annotations} are missing in "
                f"{images}: {_first(missing)}."
            )
        self._sizes = [_size_of(entry) for entry in entries]
        self._annotations = self._usable(by_image, len(unknown))

    def _usable(self, by_image: list[list[dict]], unknown: int) -> list[list[tuple]]:
        """For each image its segmentations and whether they are crowds; says what is left out."""
        left_out: Counter = Counter({"annotations of images that it does not list": unknown})
        usable, boxes = [], 0
        for of_image in by_image:
            usable.append([])
            for annotation in of_image:
                segmentation, short = usable_segmentation(annotation.get("segmentation"))
                left_out["rings of fewer than three points"] += short
                if segmentation is None:
                    left_out["annotations without a mask"] += 1
                    boxes += "bbox" in annotation
                else:
                    usable[-1].append((segmentation, bool(int(annotation.get("iscrowd") or 0))))
        if boxes and not any(usable):
            raise ValueError(
                f"{self._name} has boxes but no masks, and targets are masks. Make masks of the "
                "boxes first, with `SAMPredictor.predict(boxes=...)`, and look at them."
            )
        counts = [f"{what} ({number})" for what, number in left_out.items() if number]
        if counts:
            notice(f"Left out of {self._name}: {', '.join(counts)}.", f"left out {self._name}")
        return usable

    def objects(self, index: int, size: tuple[int, int]) -> np.ndarray:
        recorded = self._sizes[index] or tuple(size)
        swapped = _why_swapped(self.path(index), size, recorded)
        if recorded != tuple(size) and (swapped or not self._rescale):
            remedy = (
                swapped or " Pass `rescale=True` (`--rescale`) to scale its objects to the image."
            )
            raise ValueError(
                f"`height` and `width` of {self.path(index)} must be its size, {tuple(size)}. "
                f"Received: {recorded}, in {self._name}.{remedy}"
            )
        void = np.zeros(size, bool)
        masks = []
        for segmentation, crowd in self._annotations[index]:
            mask = decode_segmentation(segmentation, recorded, size)
            if crowd:
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
                f"Received: {folder}. Where masks are pictures, `MaskFolder(images, masks)` reads "
                "them (`--masks`)."
            )

    def objects(self, index: int, size: tuple[int, int]) -> np.ndarray:
        content = read_json(self.path(index).with_suffix(".json"))
        masks = [decode_segmentation(a["segmentation"], size, size) for a in content["annotations"]]
        return _stack(masks, np.zeros(size, bool), size)


def item_name(source: Sequence, index: int) -> str:
    """The image file of an item, or its index where the source has no files."""
    path = getattr(source, "path", None)
    return str(path(index)) if path is not None else f"image {index}"


def report_unreadable(source: Sequence, index: int, error: Exception, skip: bool) -> None:
    """Warns that an item is left out if `skip`, otherwise raises a ValueError that names it."""
    name = item_name(source, index)
    if not skip:
        raise ValueError(
            f"{name} cannot be read: {error} Pass `skip_unreadable=True` to leave such images out."
        ) from error
    warn(f"{name} is left out: {error}")


def targets_of(source: Sequence, index: int, size: tuple[int, int]) -> np.ndarray:
    """The objects `(P, H0, W0)` of one item, without reading its image if the source can."""
    if isinstance(source, Source):
        return source.targets(index, size)
    return read_item(source, index)[1]


def read_item(source: Sequence, index: int) -> tuple[np.ndarray, np.ndarray]:
    """One item of any source, its objects as uint8 `(P, H0, W0)` of 0, 1 and 255."""
    image, targets = source[index]
    if getattr(source, "has_read_targets", False):
        return image, targets
    return image, read_targets(targets, np.shape(image)[:2])


def decode_segmentation(
    segmentation: list | dict, recorded: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """A bool mask of `size` from COCO's polygons or run lengths for an image of `recorded`."""
    if isinstance(segmentation, list):
        scale = np.divide(size, recorded)[::-1]  # x, y
        rings = [np.asarray(ring, "float64") for ring in segmentation]
        if recorded != size:
            rings = [(ring.reshape(-1, 2) * scale) for ring in rings]
        return mask_tools.polygons_to_mask(rings, size)
    mask = mask_tools.decode_rle(segmentation_to_rle(segmentation, recorded))
    return mask if recorded == size else resize_image(mask.view("uint8"), size, "nearest") > 0


def _why_swapped(path: Path, size: tuple[int, int], received: tuple[int, int]) -> str:
    """A sentence on what swaps height and width, or nothing where they are not swapped."""
    if tuple(received) != tuple(size)[::-1] or size[0] == size[1]:
        return ""
    with Image.open(path) as picture:
        orientation = picture.getexif().get(_EXIF_ORIENTATION, 1)
    if orientation in (5, 6, 7, 8):
        return (
            f" They are swapped: the masks are those of the picture as it is stored, and its EXIF "
            f"orientation ({orientation}) turns it. Turn the masks in the same way, or save the "
            "pictures upright, with `PIL.ImageOps.exif_transpose`."
        )
    return (
        " They are swapped, as if an EXIF orientation had turned the picture when it was "
        "labelled, and was lost since. Turn the pictures or the masks."
    )


def _by_stem(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Files by their names without the ending."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        found.setdefault(path.stem, []).append(path)
    return found


def _masks_of(image: Path, by_stem: dict[str, list[Path]], together: bool) -> list[Path]:
    """The masks of an image under the first kind of name that there is.

    Of `a.jpg` and `a.png` in one folder, the photograph is the one in a format of cameras.
    """
    for stem in (image.name, *(image.stem + end for end in _MASK_NAMES)):
        masks = [path for path in by_stem.get(stem, []) if path != image]
        if together and stem == image.stem:
            masks = [path for path in masks if path.suffix.lower() not in _OF_CAMERAS]
        if masks:
            return masks
    return []


def _find_images(folder: Path, names: Sequence[str]) -> list[Path]:
    """The files of COCO's `file_name`s, with the separators and folders of another machine."""
    posix = [str(name).replace("\\", "/") for name in names]
    twice = Counter(name.rpartition("/")[2] for name in posix)
    paths = []
    for name, plain in zip(names, posix, strict=True):
        last = plain.rpartition("/")[2]
        tried = [folder / str(name), folder / plain, *([folder / last] if twice[last] == 1 else [])]
        paths.append(next((path for path in tried if path.is_file()), folder / plain))
    return paths


def _size_of(entry: dict) -> tuple[int, int] | None:
    height, width = entry.get("height"), entry.get("width")
    return (int(float(height)), int(float(width))) if height and width else None


def _images_in(folder: str | os.PathLike) -> list[Path]:
    if not Path(folder).is_dir():
        raise ValueError(f"There is no folder {os.fspath(folder)!r}.")
    return sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in IMAGE_ENDINGS)


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


def _stack(masks: list[np.ndarray], void: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if not masks:
        return np.zeros((0, *size), "uint8")
    targets = np.stack(masks).astype("uint8")
    targets[:, void] = np.where(targets[:, void] == 1, 1, VOID)
    return targets
