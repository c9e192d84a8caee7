"""The masks of a folder of photographs, in memory and in one COCO file.

The file is written whole or not at all after every change. What cannot be written stays in memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_sam.annotations import ImageAnnotations, segmentation_to_rle
from keras_sam.annotations.coco import (
    annotation_entry,
    annotations_by_image,
    usable_segmentation,
)
from keras_sam.annotations.image_annotations import parse_json, plain
from keras_sam.files import remove_leftovers, whole_file
from keras_sam.masks import mask_area

SCORES = ("score", "predicted_iou", "stability_score")  # of an object's mask, not of the object


@dataclasses.dataclass(frozen=True)
class SaveState:
    """Whether everything is in the file.

    Args:
        saved: bool.
        problem: `""`, `"changed"` where another program has changed the file, or `"failed"`.
        message: str. What happened and what to do, for a person.
    """

    saved: bool = True
    problem: str = ""
    message: str = ""


class AnnotationStore:
    """Objects of photographs, kept in a COCO file that other programs read, too.

    A file that is there is continued: what it holds beyond masks (boxes without a mask, images of
    other folders, `info`, entries of other tools) is written back as it was. Its images are
    matched to photographs by `file_name`, or by the last part of it where that is unique.

    Args:
        path: the COCO file, which need not exist; or None to keep everything in memory.
        photos: the photographs' names, paths inside their folder with `/` on every system.
        labels: names of categories, added to those of the file. Without any there is `"object"`.
        polygons: bool. Write outlines instead of run lengths.

    Raises:
        ValueError: if the file is no COCO instances file.
        OSError: if it cannot be read.

    Example:

    >>> store = AnnotationStore("annotations.json", ["a.png"], ["cat"])
    >>> mask = {"size": [2, 3], "counts": [2, 2, 2]}
    >>> store.add("a.png", (2, 3), {"segmentation": mask, "category_id": 1})["area"]
    2
    >>> store.state.saved
    True
    """

    def __init__(
        self,
        path: str | os.PathLike | None,
        photos: Sequence[str],
        labels: Sequence[str] = (),
        polygons: bool = False,
    ):
        self.path = None if path is None else Path(path)
        self.state = SaveState()
        self._photos, self._wanted, self._polygons = list(photos), list(labels), polygons
        self._lock = threading.RLock()
        if self.path is not None:
            remove_leftovers(self.path.parent, re.escape(self.path.name))
        self._load()

    # --- reading ---

    @property
    def labels(self) -> list[dict]:
        """The categories: dicts of `id` and `name`."""
        with self._lock:
            return [{"id": entry["id"], "name": entry["name"]} for entry in self._categories]

    def counts(self) -> dict[str, int]:
        """How many masks each photograph has, by its name."""
        with self._lock:
            counts = Counter(
                self._photo_of.get(entry["image_id"])
                for entry in self._entries.values()
                if usable_segmentation(entry.get("segmentation"))[0] is not None
            )
            return {name: counts[name] for name in self._photos}

    def objects(self, photo: str, size: tuple[int, int]) -> list[dict]:
        """The masks of a photograph.

        Args:
            photo: its name.
            size: pair of ints `(H0, W0)`, pixels of the photograph, upright.

        Returns:
            List of annotations as in COCO, with `segmentation` as compressed run lengths.
            Annotations without a mask are left out.

        Raises:
            KeyError: if there is no such photograph.
            ValueError: if the file has its masks for another size, or one is malformed.
        """
        with self._lock:
            image = self._image_of(photo, size)
            if image is None:
                return []
            found = []
            for entry in self._entries.values():
                if entry["image_id"] == image["id"]:
                    segmentation, _ = usable_segmentation(entry.get("segmentation"))
                    if segmentation is not None:
                        rle = segmentation_to_rle(segmentation, size)
                        found.append({**entry, "segmentation": rle})
            return found

    def images(self) -> Iterator[ImageAnnotations]:
        """The photographs that have masks, as the writers of `keras_sam.annotations` take them."""
        images = []  # all at once: a caller that stops midway must not keep the lock
        with self._lock:
            for name, count in self.counts().items():
                if count:
                    image = self._images[self._ids[name]]
                    size = self._size_in_file(image)
                    images.append(ImageAnnotations(name, size, self.objects(name, size)))
        return iter(images)

    def coco(self) -> dict:
        """Everything as COCO has it, with what the file has besides: what is written to it."""
        with self._lock:
            return json.loads("".join(self._parts()))

    # --- changing ---

    def add_label(self, name: str) -> dict:
        """Adds a category, or returns the one of that name; saves."""
        name = name.strip()
        if not name or len(name) > 200:
            raise ValueError(f"A label must have 1 to 200 characters. Received: {len(name)}.")
        with self._lock:
            known = {label["name"]: label for label in self.labels}
            if name not in known:
                known[name] = {"id": self._next_category(), "name": name}
                self._categories.append(dict(known[name]))
                self._save()
            return known[name]

    def add(self, photo: str, size: tuple[int, int], record: Mapping[str, Any]) -> dict:
        """Adds an object and saves.

        Args:
            photo: the photograph's name.
            size: pair of ints `(H0, W0)`, pixels.
            record: dict with `segmentation` and `category_id`; what else it has is kept.

        Returns:
            The annotation, with its `id`.

        Raises:
            KeyError: if there is no such photograph.
            ValueError: if the mask is malformed, empty or of another size, or there is no such
                category.
        """
        with self._lock:
            image = self._image_of(photo, size)
            shape = self._shape(record, size)
            if image is None:
                number = self._next_image()
                image = {"id": number, "width": size[1], "height": size[0], "file_name": photo}
                self._list(image, photo)
            self._last_id += 1
            entry = {"id": self._last_id, "image_id": image["id"], **shape}
            self._put(entry)
            self._save()
            return self._shown(entry, size)

    def replace(self, number: int, changes: Mapping[str, Any], photo: str | None = None) -> dict:
        """Changes the mask or the category of an object, and saves.

        Args:
            number: the annotation's id.
            changes: dict with `segmentation`, `category_id` or both; with `segmentation` also
                `score`, `predicted_iou` and `stability_score`, of which others are dropped: they
                were those of the mask before.
            photo: optional name of the photograph that the object must be of: numbers may mean
                other objects once the file was loaded again.

        Returns:
            The annotation.

        Raises:
            KeyError: if there is no such object, or it is of another photograph.
            ValueError: as `add`.
        """
        with self._lock:
            entry = self._entry(number, photo)
            size = self._size_in_file(self._images[entry["image_id"]])
            if changes.get("segmentation") is None:  # the mask stays as it was written
                entry = {**entry, "category_id": self._category(changes["category_id"])}
            else:
                kept = {key: value for key, value in entry.items() if key not in SCORES}
                entry = {
                    **{key: entry[key] for key in ("id", "image_id")},
                    **self._shape({**kept, **changes}, size),
                }
            self._put(entry)
            self._save()
            return self._shown(entry, size)

    def remove(self, number: int, photo: str | None = None) -> None:
        """Removes an object and saves; `photo` and errors are those of `replace`."""
        with self._lock:
            entry = self._entry(number, photo)
            del self._entries[number], self._texts[number]
            image = entry["image_id"]
            if image in self._photo_of:  # else the page never showed it
                self._removed[number] = entry, self._images[image], self._photo_of[image]
            left = any(other["image_id"] == image for other in self._entries.values())
            if not left and image not in self._listed:  # as if it had never been labelled
                del self._images[image], self._ids[self._photo_of.pop(image)]
            self._save()

    def restore(self, number: int, photo: str | None = None) -> dict:
        """Takes back a removal, with all that other programs wrote to the object, and saves.

        Args:
            number: the annotation's id.
            photo: optional name of the photograph that the object must be of.

        Returns:
            The annotation.

        Raises:
            KeyError: if no object of this number, and photograph, was removed since the file was
                loaded.
        """
        with self._lock:
            if number not in self._removed or photo not in (None, self._removed[number][2]):
                raise KeyError(f"Object {number} was not deleted here, or is there again.")
            entry, image, photo = self._removed.pop(number)
            if photo not in self._ids:  # it was the last one of its image
                if image["id"] in self._images:
                    image = {**image, "id": self._next_image()}
                self._list(image, photo)
            image = self._images[self._ids[photo]]
            entry = {**entry, "image_id": image["id"]}
            self._put(entry)
            self._save()
            return self._shown(entry, self._size_in_file(image))

    # --- the file ---

    def save(self, overwrite: bool = False) -> SaveState:
        """Tries again to write what is not in the file.

        Args:
            overwrite: bool. Replace a file that another program has changed.
        """
        with self._lock:
            if overwrite:
                self._seen = self._stamp()
            self._save()
            return self.state

    def save_aside(self) -> Path:
        """Writes everything to a new file beside the store's own, and returns its path.

        Raises:
            OSError: if it cannot be written.
        """
        with self._lock:
            path, number = self.path.with_suffix(f".unsaved{self.path.suffix}"), 1
            while os.path.lexists(path):
                number += 1
                path = self.path.with_suffix(f".unsaved-{number}{self.path.suffix}")
            self._write(path)
            return path

    def reload(self) -> SaveState:
        """Takes what is in the file, and drops what is not.

        Raises:
            ValueError: if the file is no COCO instances file; everything stays as it was.
            OSError: if it cannot be read.
        """
        with self._lock:
            self._load()
            self.state = SaveState()
            return self.state

    def _load(self) -> None:
        stamp = self._stamp()
        content: dict = {"info": {"description": "masks by keras_sam"}}
        digest = None
        if stamp is not None:
            written = self.path.read_bytes()  # once: another program may write meanwhile
            content, digest = parse_json(written, self.path), _digest(written)
        by_image, unknown = _images_of(content, str(self.path))
        rest = {k: v for k, v in content.items() if k not in _SECTIONS}
        images = {entry["id"]: dict(entry) for entry in content.get("images", [])}
        entries: list[dict] = []
        for image, of_image in zip(images, by_image):
            entries += [{**entry, "image_id": image} for entry in of_image]
        numbers = [e["id"] for e in (*entries, *unknown) if type(e.get("id")) is int]
        categories = _categories_of(content, entries)
        # Nothing is assigned before all of the file is known to be usable.
        self._last_id = max(numbers, default=0)
        self._rest, self._images, self._listed = rest, images, set(images)
        self._categories = categories
        self._photo_of = _photos_of(images, self._photos)
        self._ids = {name: number for number, name in self._photo_of.items()}
        self._removed: dict[int, tuple[dict, dict, str]] = {}  # with their images and photographs
        self._entries: dict[int, dict] = {}
        self._texts: dict[int, str] = {}
        for entry in (*entries, *unknown):
            number = entry.get("id")
            if type(number) is not int or number in self._entries:
                self._last_id += 1
                number = self._last_id
            self._put({**entry, "id": number})
        for name in self._wanted or ([] if self._categories else ["object"]):
            if name not in {entry["name"] for entry in self._categories}:
                self._categories.append({"id": self._next_category(), "name": name})
        self._seen, self._digest = stamp, digest

    def _save(self) -> None:
        """Writes the file, and says in `state` why if that is not possible."""
        if self.path is None:
            return
        try:
            if self._changed_elsewhere():
                message = (
                    f"{self.path.name} was changed by another program and is not overwritten. Your "
                    "masks are kept in memory: load the file, or replace it."
                )
                self.state = SaveState(False, "changed", message)
                return
            digest = self._write(self.path)
            self._seen, self._digest = self._stamp(), digest
        except OSError as error:
            reason = error if error.errno is None else os.strerror(error.errno)
            message = (
                f"{self.path.name} could not be written: {reason}. Your masks are kept in memory: "
                "make room or allow writing, and save again."
            )
            self.state = SaveState(False, "failed", message)
        else:
            self.state = SaveState()

    def _write(self, path: Path) -> bytes:
        """Writes everything, and returns a digest of it."""
        digest = hashlib.blake2b()
        with whole_file(path, text=True) as file:
            for part in self._parts():
                digest.update(part.encode())
                file.write(part)
        return digest.digest()

    def _parts(self) -> Iterator[str]:
        yield "{"
        for key, value in self._rest.items():
            yield f"{json.dumps(key)}: {json.dumps(plain(value))},\n"
        yield '"annotations": ['
        for number, text in enumerate(self._texts.values()):
            yield ",\n" if number else "\n"
            yield text
        yield '],\n"images": ' + json.dumps(plain(list(self._images.values())))
        yield ',\n"categories": ' + json.dumps(plain(self._categories)) + "}\n"

    def _stamp(self) -> tuple | None:
        """What tells a file apart from an earlier one of the same name; None if there is none."""
        if self.path is None:
            return None
        try:
            about = os.stat(self.path)
        except FileNotFoundError:
            return None
        return about.st_mtime_ns, about.st_size, about.st_ino

    def _changed_elsewhere(self) -> bool:
        stamp = self._stamp()
        if stamp is None or stamp == self._seen:  # where there is no file, nothing is lost
            return False
        return _digest(self.path.read_bytes()) != self._digest

    @property
    def _name(self) -> str:
        return "The store" if self.path is None else self.path.name

    # --- entries ---

    def _put(self, entry: dict) -> None:
        self._entries[entry["id"]] = entry
        self._texts[entry["id"]] = json.dumps(plain(entry))  # once, not at every save

    def _entry(self, number: int, photo: str | None = None) -> dict:
        if number not in self._entries:
            raise KeyError(f"There is no object {number}: it was deleted, perhaps in another tab.")
        entry = self._entries[number]
        if entry["image_id"] not in self._images:
            raise KeyError(f"Object {number} belongs to an image that {self._name} does not list.")
        if photo not in (None, self._photo_of.get(entry["image_id"])):
            raise KeyError(
                f"There is no object {number} of {photo}: the file was loaded again, perhaps in "
                "another tab."
            )
        return entry

    def _shown(self, entry: dict, size: tuple[int, int]) -> dict:
        segmentation, _ = usable_segmentation(entry.get("segmentation"))
        if segmentation is None:  # a box without a mask
            return entry
        return {**entry, "segmentation": segmentation_to_rle(segmentation, size)}

    def _shape(self, record: Mapping, size: tuple[int, int]) -> dict:
        rle = segmentation_to_rle(record["segmentation"], size)
        if not mask_area(rle):
            raise ValueError("An object must have at least one pixel. Received: an empty mask.")
        category = self._category(record.get("category_id"))
        record = {**record, "segmentation": rle, "category_id": category}
        return annotation_entry(record, size, self._polygons)

    def _category(self, number: Any) -> int:
        known = [entry["id"] for entry in self._categories]
        if number not in known:
            raise ValueError(f"`category_id` must be one of {known}. Received: {number!r}.")
        return number

    def _next_category(self) -> int:
        return max((e["id"] for e in self._categories if isinstance(e["id"], int)), default=0) + 1

    def _list(self, image: dict, photo: str) -> None:
        self._images[image["id"]] = image
        self._ids[photo], self._photo_of[image["id"]] = image["id"], photo

    def _next_image(self) -> int:
        """An id that no image has, nor annotations of images that are not in the file."""
        numbers = [0]
        for key in (*self._images, *(entry["image_id"] for entry in self._entries.values())):
            with contextlib.suppress(TypeError, ValueError, OverflowError):  # some are text
                numbers.append(int(key))
        return max(numbers) + 1

    def _size_in_file(self, image: Mapping) -> tuple[int, int]:
        if not image.get("height") or not image.get("width"):
            name = self._photo_of[image["id"]]
            raise ValueError(
                f"{self._name} does not say how large {name} is: open that photograph once."
            )
        return int(image["height"]), int(image["width"])

    def _image_of(self, photo: str, size: tuple[int, int]) -> dict | None:
        if photo not in self._photos:
            raise KeyError(f"There is no photograph {photo!r} in the folder.")
        image = self._images.get(self._ids.get(photo))
        if image is not None:
            known = (int(image.get("height") or size[0]), int(image.get("width") or size[1]))
            used = any(entry["image_id"] == image["id"] for entry in self._entries.values())
            if used and known != tuple(size):  # else the photograph says how large it is
                raise ValueError(
                    f"{self._name} has annotations of {photo} for {known[1]} x {known[0]} pixels, "
                    f"but it has {size[1]} x {size[0]}. Give the masks another file as `out`."
                )
            image |= {"height": size[0], "width": size[1]}
        return image


_SECTIONS = ("annotations", "images", "categories")
_IDS = (
    *(("images", "id"), ("categories", "id")),
    *(("annotations", "image_id"), ("annotations", "category_id")),
)
_LABEL_IDS = (("categories", "id"), ("annotations", "category_id"))


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content).digest()


def _images_of(content: Any, path: str) -> tuple[list[list[dict]], list[dict]]:
    if not isinstance(content, dict):
        raise ValueError(f"`{path}` must be a COCO instances file. Received: no JSON object.")
    content = {"annotations": [], "images": [], "categories": [], **content}
    for section in _SECTIONS:
        if not isinstance(content[section], list):
            raise ValueError(f"`{section}` of `{path}` must be a list, as in COCO.")
    for section, key in _IDS:
        for entry in content[section]:
            number = entry.get(key) if isinstance(entry, dict) else None
            if not isinstance(number, int | float | str) and (key == "id" or number is not None):
                raise ValueError(
                    f"The entries of `{section}` in `{path}` need a number or text as `{key}`, as "
                    f"in COCO. Received: {json.dumps(entry):.100}."
                )
            # Ids of images may be text. Those of labels are sent and written as numbers.
            is_label = (section, key) in _LABEL_IDS and number is not None
            if is_label and (isinstance(number, bool | str) or number % 1 != 0):
                raise ValueError(
                    f"The entries of `{section}` in `{path}` need a whole number as `{key}`, as in "
                    f"COCO: number the labels. Received: {json.dumps(entry):.100}."
                )
    return annotations_by_image(content, f"`{path}`")


def _categories_of(content: Mapping, entries: Sequence[Mapping]) -> list[dict]:
    """The categories of a file, and those that it uses without a name."""
    found = [
        {**entry, "name": str(entry.get("name", f"category {entry['id']}"))}
        for entry in content.get("categories", [])
    ]
    known = {entry["id"] for entry in found}
    used = {entry.get("category_id", 1) for entry in entries} - known
    unnamed = sorted(used, key=str)
    return found + [
        {"id": key, "name": "object" if key == 1 else f"category {key}"} for key in unnamed
    ]


def _photos_of(images: Mapping[Any, Mapping], photos: Sequence[str]) -> dict[Any, str]:
    """The photograph of each image, by the image's id; an image of another folder has none."""
    last = Counter(name.rpartition("/")[2] for name in photos)
    by_last = {name.rpartition("/")[2]: name for name in photos}
    given = {n: str(entry["file_name"]).replace("\\", "/") for n, entry in images.items()}
    names = set(photos)
    found: dict[Any, str] = {}
    taken: set[str] = set()
    # Whole names first: an image of another folder must not take the place of a photograph's own.
    for is_whole in (True, False):
        for number, name in given.items():
            short = name.rpartition("/")[2]
            if (name in names) != is_whole or (not is_whole and last[short] != 1):
                continue
            name = name if is_whole else by_last[short]
            if name not in taken:
                found[number] = name
                taken.add(name)
    return found
