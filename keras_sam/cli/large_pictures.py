"""`keras-sam everything --tile`: all masks of pictures that are too large for one frame."""

import argparse
import contextlib
import dataclasses
import json
import os
import re
import shutil
import time

from keras_sam.cli import model, options
from keras_sam.cli.errors import CommandError, bad_input, writing
from keras_sam.cli.output import check_nothing_is_lost, check_output_folder
from keras_sam.cli.progress import Progress
from keras_sam.files import remove_leftovers, whole_file, whole_place
from keras_sam.tiles.tile_folder import SETTINGS_FILE

_DONE = "results.json"

# What each format writes for a picture whose results are called {}.
FORMATS = {
    "coco": "{}.json",
    "geojson": "{}.geojson",
    "gpkg": "{}.gpkg",
    "tiff": "{}_labels.tif",
    "zarr": "{}_labels.zarr",
}
DESCRIPTION = """\
With --tile, pictures of any size (TIFF, zarr, .npy, what rasterio opens) are segmented tile by
tile. Masks of finished tiles are kept in --out: the same command goes on with those that are
missing, and another --format needs no tile again.

--format coco       a COCO file per picture
--format zarr, tiff a label map per picture, smaller masks on top
--format geojson, gpkg  polygons in the picture's coordinate reference system"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what `everything` takes for large pictures."""
    group = parser.add_argument_group("large pictures")
    group.add_argument(
        "--tile",
        type=options.positive_integer,
        metavar="PIXELS",
        help="segment tile by tile, each so many pixels along its sides",
    )
    group.add_argument(
        "--halo",
        type=options.whole_number,
        metavar="PIXELS",
        help="how far the model sees beyond a tile (default: a quarter of --tile)",
    )
    group.add_argument(
        "--channels",
        type=_channels,
        metavar="R,G,B",
        help="which channels of the picture are shown to the model, counted from 0; or one",
    )
    group.add_argument(
        "--axes", metavar="LETTERS", help="axes of an array whose file has no names for them: CYX"
    )


def check_unused(args: argparse.Namespace) -> None:
    """Raises for what only large pictures have, where `--tile` is missing."""
    for name in ("halo", "channels", "axes"):
        if getattr(args, name) is not None:
            raise CommandError(f"--{name} needs --tile")
    if args.format in set(FORMATS) - {"coco"}:
        raise CommandError(f"--format {args.format} needs --tile")


def run(args: argparse.Namespace, parameters: dict) -> int:
    """Segments each picture that is not done yet, and prints a summary."""
    _check(args)
    pictures = _checked(args)
    progress = Progress(args.quiet)
    summary = {"pictures": len(pictures), "skipped": 0, "masks": 0}
    began = time.monotonic()
    model.say_limits(args.model, progress)
    with model.open_any_segmenter(args, progress) as segmenter:
        from keras_sam.tiles import TiledMaskGenerator

        with bad_input():
            generator = TiledMaskGenerator(segmenter, args.tile, _halo(args), **parameters)
        for number, (name, path) in enumerate(pictures, start=1):
            picture = _opened(args, path)
            with contextlib.closing(picture), progress.bar(len(generator.grid(picture))) as bar:
                bar.describe(f"{number}/{len(pictures)} {name}")
                _segment(args, generator, name, picture, bar.advance, summary)
    summary |= {
        "seconds": round(time.monotonic() - began, 1),
        "format": args.format,
        "out": str(args.out),
    }
    words = f"{len(pictures) - summary['skipped']} pictures segmented"
    if summary["skipped"]:
        words += f"; {summary['skipped']} were done before"
    words += f"; {summary['masks']} masks in all. Results: {args.out}"
    print(json.dumps(summary) if args.json else words)
    return 0


def _channels(text):
    chosen = tuple(options.whole_number(part) for part in text.split(","))
    if len(chosen) not in (1, 3):
        raise argparse.ArgumentTypeError(f"expected one channel or R,G,B, received {text!r}")
    return chosen


def _halo(args):
    return args.tile // 4 if args.halo is None else args.halo


def _check(args):
    """What can be said before a picture is opened and the model is loaded."""
    check_output_folder(args.out)
    if args.format not in FORMATS:
        raise CommandError(
            f"--format {args.format} is not for --tile, which writes {', '.join(sorted(FORMATS))}"
        )
    for name in ("polygons", "tolerance", "pictures", "recursive"):
        if getattr(args, name):
            raise CommandError(f"--{name} cannot be combined with --tile")
    if _halo(args) > args.tile:
        raise CommandError(
            "--halo must not be larger than --tile, both in pixels, received "
            f"--halo {args.halo} --tile {args.tile}"
        )


def _checked(args):
    """The paths of the pictures, all of which can be opened, each with its results' name."""
    from keras_sam.tiles.polygons import check_reference

    paths = {}
    for path in args.photos:
        name = path.name.removesuffix(path.suffix).removesuffix(".ome")
        if name in paths:
            raise CommandError(f"two pictures are called {name}: give each an --out of its own")
        paths[name] = path
        with contextlib.closing(_opened(args, path)) as picture:
            if args.format not in ("geojson", "gpkg"):
                continue
            with _readable():
                check_reference(picture, f".{args.format}")
    return list(paths.items())


def _opened(args, path):
    """A picture whose parts that cannot be read are errors of the picture, not of --out."""
    from keras_sam.tiles import open_picture

    with _readable():
        picture = open_picture(path, args.axes, args.channels)

    def read(box):
        try:
            return picture.read(box)
        except (OSError, ValueError) as error:
            raise CommandError(f"cannot read {picture.name}: {error}", code=1) from error

    return dataclasses.replace(picture, read=read)


@contextlib.contextmanager
def _readable():
    try:
        with bad_input():
            yield
    except ImportError as error:
        raise CommandError(str(error), code=1) from error


def _segment(args, generator, name, picture, advance, summary):
    """Writes the masks of one picture, unless that is done, and counts them."""
    result, folder = args.out / FORMATS[args.format].format(name), args.out / f"{name}_tiles"
    done = _read_done(folder)
    if result.exists() and args.format not in done:
        check_nothing_is_lost([result], args.overwrite)
    with writing(folder):
        records = _stream(args, generator, picture, folder, advance)
    if result.exists() and args.format in done and not args.overwrite:
        summary["skipped"] += 1
        summary["masks"] += done[args.format]
        return
    remove_leftovers(args.out, re.escape(result.name))
    with writing(args.out), bad_input():
        counted = _Counted(records)
        _write(args.format, result, counted, picture)
        with whole_file(folder / _DONE, text=True) as file:
            json.dump({**_read_done(folder), args.format: counted.count}, file)
    summary["masks"] += counted.count


def _read_done(folder):
    """How many masks the files have that were written of the tiles in a folder, by format."""
    try:
        return dict(json.loads((folder / _DONE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _stream(args, generator, picture, folder, advance):
    """The records; with --overwrite, tiles of other settings are made again."""
    try:
        return generator.stream(picture, folder=folder, progress=advance)
    except ValueError as error:
        if not (args.overwrite and (folder / SETTINGS_FILE).is_file()):
            raise CommandError(
                f"--out {args.out}: {error} Choose another folder, or start from scratch with "
                "--overwrite"
            ) from error
    shutil.rmtree(folder)
    return generator.stream(picture, folder=folder, progress=advance)


class _Counted:
    """Records that pass by, and how many they were."""

    def __init__(self, records):
        self.records, self.count = records, 0

    def __iter__(self):
        for record in self.records:
            self.count += 1
            yield record


def _write(form, path, records, picture):
    """Writes a file of all masks, whole or not at all."""
    from keras_sam import annotations, tiles

    if form == "coco":
        name = os.path.basename(picture.path)
        image = annotations.ImageAnnotations(name, picture.size, records, image_id=1)
        annotations.write_coco(path, [image])
    elif form in ("geojson", "gpkg"):
        tiles.write_polygons(path, records, picture)
    elif form == "zarr":
        _paint(path, records, picture)
    else:
        # The tiles of a TIFF are written once each, in their order: it is painted elsewhere before.
        with whole_place(path) as place:
            painted = place.with_name("labels.zarr")
            _paint(painted, records, picture)
            tiles.write_label_tiff(place, tiles.open_labels(painted), picture)


def _paint(path, records, picture):
    from keras_sam.tiles import LabelMap

    with LabelMap(path, picture) as labels:
        for record in records:
            labels.paint(record)
