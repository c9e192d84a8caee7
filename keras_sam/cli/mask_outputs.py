"""What `keras-sam everything` writes for a photograph, in each format."""

import argparse
import dataclasses
from pathlib import Path

from keras_sam.cli.failure import writing
from keras_sam.cli.photos import Photo
from keras_sam.cli.run_log import RunLog
from keras_sam.mask_records import MaskRecords

COCO_FILE = "annotations.json"

# What each format writes for a photograph whose results are called {}.
FORMATS = {
    "coco": "coco_parts/{}.json",
    "sa1b": "{}.json",
    "yolo": "{}.txt",
    "png": "{}",
    "label-map": "{}.png",
}


def output_name(args: argparse.Namespace, photo: Photo) -> str:
    """What is written for a photograph, a path inside `args.out`."""
    return FORMATS[args.format].format(photo.result)


def picture_path(args: argparse.Namespace, photo: Photo) -> Path:
    """Where the masks are drawn on a photograph."""
    return args.pictures / f"{photo.result}.png"


def save(args: argparse.Namespace, photo: Photo, records: MaskRecords) -> None:
    """Writes the masks of a photograph, each file whole or not at all."""
    from keras_sam import annotations
    from keras_sam.masks import masks_to_label_map

    path = args.out / output_name(args, photo)
    image = annotations.ImageAnnotations(photo.name, records.original_size, records)
    if args.pictures is not None:  # first: what counts as done is complete
        _draw(args, photo, records)
    if args.format in ("coco", "sa1b"):
        annotations.write_sa1b(path, image)
    elif args.format == "yolo":
        annotations.write_yolo(path, image, tolerance=args.tolerance)
    elif args.format == "png":
        annotations.write_mask_folder(path, image)
    else:
        labels = masks_to_label_map(records, size=records.original_size)
        annotations.write_label_map(path, labels)


def _draw(args, photo, records):
    from PIL import Image

    from keras_sam.files import whole_file
    from keras_sam.visualization import overlay

    picture = overlay(photo.path, records)
    with whole_file(picture_path(args, photo)) as file:
        Image.fromarray(picture.view("uint8")).save(file, "png")


def collect(args: argparse.Namespace, log: RunLog) -> None:
    """One COCO file from the photographs' own, in the order of their names."""
    from keras_sam import annotations

    def images():
        for number, entry in enumerate(log.entries(), start=1):
            part = args.out / entry["output"]
            if part.exists():  # else somebody has taken it out
                yield dataclasses.replace(annotations.read_sa1b(part), image_id=number)

    with writing(args.out / COCO_FILE):
        annotations.write_coco(
            args.out / COCO_FILE, images(), polygons=args.polygons, tolerance=args.tolerance
        )
