"""The masks of a store in other formats, as one zip file."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from keras_sam import annotations
from keras_sam.annotate.store import AnnotationStore
from keras_sam.masks import masks_to_label_map


def _write_coco(folder: Path, store: AnnotationStore) -> None:
    names = {label["id"]: label["name"] for label in store.labels}
    annotations.write_coco(folder / "annotations.json", store.images(), names)


def _write_yolo(folder: Path, store: AnnotationStore) -> None:
    classes = {label["id"]: number for number, label in enumerate(store.labels)}
    for name, image in _named(store):
        annotations.write_yolo(folder / "labels" / f"{name}.txt", image, classes)
    names = [label["name"].replace("\n", " ") for label in store.labels]
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def _write_label_maps(folder: Path, store: AnnotationStore) -> None:
    for name, image in _named(store):
        labels = masks_to_label_map(image.records, size=image.known_size())
        annotations.write_label_map(folder / f"{name}.png", labels)


def _write_sa1b(folder: Path, store: AnnotationStore) -> None:
    for name, image in _named(store):
        annotations.write_sa1b(folder / f"{name}.json", image)


# Label maps: pixels of the object N of a photograph are N, background is 0.
FORMATS: Mapping[str, Callable[[Path, AnnotationStore], None]] = {
    "coco": _write_coco,
    "yolo": _write_yolo,
    "label-map": _write_label_maps,
    "sa1b": _write_sa1b,
}


def export(store: AnnotationStore, form: str) -> bytes:
    """The masks as a zip file.

    Args:
        store: the masks.
        form: one of `FORMATS`.

    Returns:
        The zip file.

    Raises:
        ValueError: if there is no such format, no mask, or no room to pack them.
    """
    if form not in FORMATS:
        raise ValueError(f"`format` must be one of {', '.join(FORMATS)}. Received: {form!r}.")
    if not any(store.counts().values()):
        raise ValueError("There are no masks to export yet.")
    try:
        return _packed(store, form)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise ValueError(f"The masks could not be packed: {reason}.") from error


def _packed(store: AnnotationStore, form: str) -> bytes:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "masks"
        folder.mkdir()
        FORMATS[form](folder, store)
        target = Path(made) / "masks.zip"
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as packed:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    packed.write(path, path.relative_to(folder).as_posix())
        return target.read_bytes()


def _named(store: AnnotationStore) -> Iterator[tuple[str, annotations.ImageAnnotations]]:
    """The photographs that have masks, and the names of their files without an ending.

    A photograph's own ending stays where another one has the same name up to it.
    """
    stems = {name: str(PurePosixPath(name).with_suffix("")) for name in store.counts()}
    taken = Counter(stem.casefold() for stem in stems.values())
    for image in store.images():
        stem = stems[image.file_name]
        yield (stem if taken[stem.casefold()] == 1 else image.file_name), image
