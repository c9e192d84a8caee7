"""One small data set in every layout that the commands read."""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from keras_sam import annotations
from tests.scenes import scene


@dataclasses.dataclass
class DataSet:
    """Where it lies: photographs, their label maps, a COCO file, and SA-1B's pairs."""

    folder: Path
    images: list[np.ndarray]
    objects: list[np.ndarray]

    def options(self, layout):
        """The command line's words that name it."""
        photos, masks = self.folder / "photos", self.folder / "masks"
        return {
            "masks": ("--data", photos, "--masks", masks, "--label-map"),
            "coco": ("--data", self.folder / "coco.json", "--images", photos),
            "sa1b": ("--data", self.folder / "pairs"),
        }[layout]


def write_data_set(folder, count=2, size=(60, 80)) -> DataSet:
    """Draws scenes of a few objects and writes them in every layout."""
    folder = Path(folder)
    photos, pairs = folder / "photos", folder / "pairs"
    for place in (photos, pairs, folder / "masks"):
        place.mkdir(parents=True)
    images, objects, annotated = [], [], []
    for seed in range(count):
        image, masks = scene(size, (2, 2), seed + 20, parts=0)
        labels = np.zeros(size, "uint8")
        for number, mask in enumerate(masks, start=1):
            labels[mask] = number
        name = f"p{seed}.png"
        Image.fromarray(image).save(photos / name)
        Image.fromarray(image).save(pairs / name)
        Image.fromarray(labels).save(folder / "masks" / name)
        records = [{"segmentation": mask} for mask in masks]
        annotated.append(annotations.ImageAnnotations(name, size, records))
        annotations.write_sa1b(pairs / f"p{seed}.json", annotated[-1])
        images.append(image)
        objects.append(masks.astype("uint8"))
    annotations.write_coco(folder / "coco.json", annotated)
    return DataSet(folder, images, objects)
