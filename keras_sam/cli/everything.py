"""`keras-sam everything`: all masks of a photograph, or of every photograph in a folder."""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

from keras_sam.cli import everything_on_ray, large_pictures, model, options
from keras_sam.cli.errors import CommandError, bad_input, one_line, writing
from keras_sam.cli.output import (
    add_overwrite_option,
    check_nothing_is_lost,
    check_output_folder,
)
from keras_sam.cli.photos import find_photos
from keras_sam.cli.progress import Progress
from keras_sam.cli.run_log import RunLog
from keras_sam.images import shown_pixels

COCO_FILE = "annotations.json"

# What each format writes for a photograph whose results are called {}.
FORMATS = {
    "coco": "coco_parts/{}.json",
    "sa1b": "{}.json",
    "yolo": "{}.txt",
    "png": "{}",
    "label-map": "{}.png",
}

HELP = "segment everything in photographs or in folders of photographs"
DESCRIPTION = f"""\
Segments everything in photographs, and in each photograph of a folder.

--format coco       one COCO file, {COCO_FILE}, for all photographs; it is put together from
                    a file per photograph in coco_parts/
--format sa1b       a JSON file per photograph, as the SA-1B data set
--format yolo       a text file of outlines per photograph
--format png        a folder per photograph: a black and white picture per mask, metadata.csv
--format label-map  an indexed PNG per photograph: pixels of mask N are N, background is 0
--format parquet    with --ray: Parquet files with a row per photograph; coco joins them at the end

Results are written photograph by photograph, each whole or not at all. A run that was interrupted
continues where it stopped when the same command is given again: finished photographs are skipped,
unless they have changed since. Photographs that cannot be read are listed at the end, and the exit
code is then 2.

{large_pictures.DESCRIPTION}"""

EXAMPLES = """\
examples:
  keras-sam everything photos --model sam_base_sa1b --out masks --format coco
  keras-sam everything truck.jpg --model sam_vit_b_01ec64.pth --out masks --format png \\
      --points-per-side 16 --crop-n-layers 1 --min-mask-region-area 100
  keras-sam everything scan.tif --model sam_base_sa1b --out masks --tile 1024 --halo 256 \\
      --format geojson
  keras-sam everything photos --ray --workers 8 --out masks --model sam_base_sa1b"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.add_argument(
        "photos",
        type=options.place,
        nargs="+",
        metavar="PHOTO_OR_FOLDER",
        help="pictures, or folders of them; with --ray also globs, Parquet files with a column "
        "`bytes`, and addresses such as s3://bucket/folder",
    )
    parser.add_argument("--recursive", action="store_true", help="look into subfolders, too")
    results = parser.add_argument_group("results")
    results.add_argument(
        "--out", type=options.place, required=True, metavar="DIR", help="folder for them"
    )
    formats = tuple(dict.fromkeys((*FORMATS, *large_pictures.FORMATS, "parquet")))
    results.add_argument("--format", choices=formats, required=True, help="see above")
    results.add_argument(
        "--polygons", action="store_true", help="with --format coco: outlines, not run lengths"
    )
    results.add_argument(
        "--tolerance",
        type=options.finite_number,
        default=0.0,
        metavar="PIXELS",
        help="simplify outlines, with --format yolo or --polygons (default: exact)",
    )
    results.add_argument(
        "--pictures", type=Path, metavar="DIR", help="also draw the masks on each photograph, here"
    )
    add_overwrite_option(results)
    results.add_argument("--json", action="store_true", help="print the summary as a line of JSON")
    large_pictures.add_options(parser)
    everything_on_ray.add_ray_options(parser)
    options.add_generator_options(parser)
    options.add_model_options(parser, runs_exports=True)


def run(args: argparse.Namespace) -> int:
    """Segments what is not done yet, and prints a summary however the run ends."""
    parameters = options.read_generator_options(args)
    if args.tile is None:
        large_pictures.check_unused(args)
    elif args.ray is not None:
        raise CommandError("--tile works on one machine: leave out --ray, or --tile")
    if args.ray is not None:
        return everything_on_ray.run(args, parameters, _settings(args, parameters))
    everything_on_ray.check_no_ray_options(args)
    if args.tile is not None:
        return large_pictures.run(args, parameters)
    photos = find_photos(args.photos, args.recursive, _result_folders(args))
    _check_outputs(args)
    log = RunLog(args.out, _settings(args, parameters), args.overwrite)
    summary = _Summary(len(photos))
    todo = [photo for photo in photos if not _is_done(args, log, photo)]
    for photo in todo:
        if other := log.other_file(photo.name, photo.path):
            raise CommandError(
                f"--out {args.out}: holds the masks of {other} as {photo.name}, which those of "
                f"{photo.path} would replace: choose another folder, or give both sources in one "
                "call, into a new folder"
            )
    summary.skipped = len(photos) - len(todo)
    summary.masks = log.count_masks({photo.name for photo in photos} - {p.name for p in todo})
    if log.is_new:
        planned = [args.out / COCO_FILE] if args.format == "coco" else []
        planned += [args.out / _output_name(args, photo) for photo in photos]
        check_nothing_is_lost(planned, args.overwrite)
        if args.pictures is not None:
            drawn = [_picture_path(args, photo) for photo in photos]
            check_nothing_is_lost(drawn, args.overwrite, "--pictures")
    if len(photos) == 1 and todo:
        _check_photo(photos[0])
    if args.format == "coco" and not todo:
        log.start()
    try:
        if todo:
            _segment(args, parameters, todo, log, summary)
    except KeyboardInterrupt:
        summary.interrupted = True
        raise
    finally:
        if log.started:
            _finish(args, log, summary)
        elif not todo:
            _report(args, summary)
    return 2 if summary.unreadable else 0


@dataclasses.dataclass
class _Summary:
    """What a run has done. `masks` includes those of photographs that were done before."""

    photos: int
    skipped: int = 0
    segmented: int = 0
    masks: int = 0
    unreadable: dict[str, str] = dataclasses.field(default_factory=dict)
    interrupted: bool = False
    started: float = dataclasses.field(default_factory=time.monotonic)

    def as_json(self, args) -> dict:
        return {
            "photos": self.photos,
            "segmented": self.segmented,
            "skipped": self.skipped,
            "unreadable": self.unreadable,
            "interrupted": self.interrupted,
            "masks": self.masks,
            "seconds": round(time.monotonic() - self.started, 1),
            "format": args.format,
            "out": str(args.out),
        }


def _settings(args, parameters):
    """What results depend on: one folder holds results of the same settings only."""
    return {
        "model": args.model,
        "model_files": model.hash_files(args.model),
        "image_shape": args.image_shape and list(args.image_shape),
        "dtype": args.dtype,
        "value_range": args.value_range,
        "mask_threshold": args.mask_threshold,
        "format": args.format,
        # For COCO, outlines are traced only when the final file is written.
        "tolerance": args.tolerance if args.format == "yolo" else 0.0,
        **options.generator_settings(args, parameters),
    }


def _result_folders(args):
    return tuple(folder for folder in (args.out, args.pictures) if folder is not None)


def _check_outputs(args):
    check_output_folder(args.out)
    if args.polygons and args.format != "coco":
        raise CommandError("--polygons belongs to --format coco")
    if args.tolerance and not (args.polygons or args.format == "yolo"):
        raise CommandError("--tolerance belongs to --format yolo and to --polygons")
    if args.tolerance < 0:
        raise CommandError(f"--tolerance must be at least 0, received {args.tolerance}")
    if args.pictures is not None:
        check_output_folder(args.pictures, "--pictures")
        if args.format == "label-map" and args.pictures.resolve() == args.out.resolve():
            raise CommandError("--pictures and --out must differ: both would hold PHOTO.png")
    sources = {(place if place.is_dir() else place.parent).resolve() for place in args.photos}
    pictures = [args.pictures] if args.pictures else []
    if args.format in ("png", "label-map"):
        pictures.append(args.out)
    if sources & {folder.resolve() for folder in pictures}:
        raise CommandError(
            "pictures of masks would lie among the photographs and be taken for some of them: "
            "choose another folder for them"
        )


def _check_photo(photo):
    """A lone photograph is read before the model is loaded."""
    from keras_sam.images import load_image

    with bad_input():
        load_image(photo.path, value_range=None)


def _is_done(args, log, photo):
    try:
        entry = log.find(photo.name, photo.stamp())
    except OSError:
        return False
    if entry is None or not (args.out / entry["output"]).exists():
        return False
    return args.pictures is None or _picture_path(args, photo).exists()


def _segment(args, parameters, todo, log, summary):
    progress = Progress(args.quiet)
    model.say_limits(args.model, progress)
    with model.open_any_segmenter(args, progress) as segmenter:
        from keras_sam.mask_generator import SAMAutomaticMaskGenerator

        with bad_input():
            generator = SAMAutomaticMaskGenerator(segmenter, output_mode="coco_rle", **parameters)
        log.start()
        with progress.bar(len(todo) * generator.clicks_per_image) as bar:
            for number, photo in enumerate(todo, start=1):
                bar.describe(f"{number}/{len(todo)} {photo.name}")
                outcome = _segment_photo(args, generator, photo, log, bar, summary)
                bar.say(f"{number}/{len(todo)} {photo.name}: {outcome}", only_in_logs=True)
                bar.advance_to(number * generator.clicks_per_image)  # also where it failed


def _segment_photo(args, generator, photo, log, bar, summary):
    """Writes the results of one photograph, or notes why there are none. Returns a few words."""
    from keras_sam.mask_generator import UnfinishedImagesError

    began = time.monotonic()
    try:
        stamp = photo.stamp()  # before it is read: a photograph that changes later is done again
        # Faults of the photograph are ValueErrors in here, so an OSError is about temporary files.
        with writing("temporary files (their folder is that of TMPDIR, if it is set)"):
            (records,) = generator.stream([photo.path], progress=bar.advance)
    except (UnfinishedImagesError, OSError) as error:
        reason = error.__cause__ if isinstance(error, UnfinishedImagesError) else error.strerror
        summary.unreadable[photo.name] = one_line(reason)
        return "could not be segmented"
    with writing(args.out):
        _save(args, photo, records, generator)
    done = {"output": _output_name(args, photo), "masks": len(records)}
    log.add(photo.name, photo.path, {**stamp, **done})
    summary.segmented += 1
    summary.masks += len(records)
    return f"{len(records)} masks, {time.monotonic() - began:.1f} s"


def _output_name(args, photo):
    """What is written for a photograph, a path inside `args.out`."""
    return FORMATS[args.format].format(photo.result)


def _picture_path(args, photo):
    """Where the masks are drawn on a photograph."""
    return args.pictures / f"{photo.result}.png"


def _save(args, photo, records, generator):
    """Writes the masks of a photograph, each file whole or not at all."""
    from keras_sam import annotations
    from keras_sam.masks import masks_to_label_map

    path = args.out / _output_name(args, photo)
    image = annotations.ImageAnnotations(photo.name, records.original_size, records)
    if args.pictures is not None:  # first: once the masks are there, the photograph counts as done
        _draw(args, photo, records, generator)
    if args.format in ("coco", "sa1b"):
        annotations.write_sa1b(path, image)
    elif args.format == "yolo":
        annotations.write_yolo(path, image, tolerance=args.tolerance)
    elif args.format == "png":
        annotations.write_mask_folder(path, image)
    else:
        labels = masks_to_label_map(records, size=records.original_size)
        annotations.write_label_map(path, labels)


def _draw(args, photo, records, generator):
    from PIL import Image

    from keras_sam.files import whole_file
    from keras_sam.visualization import overlay

    value_range = generator.predictor.preprocessor.image_converter.value_range
    picture = overlay(shown_pixels(photo.path, value_range), records)
    with whole_file(_picture_path(args, photo)) as file:
        Image.fromarray(picture.view("uint8")).save(file, "png")


def _collect(args, log):
    """Writes one COCO file from those of the photographs, in the order of their names."""
    from keras_sam import annotations

    def images():
        for number, entry in enumerate(log.entries(), start=1):
            part = args.out / entry["output"]
            if part.exists():  # it may have been deleted since
                yield dataclasses.replace(annotations.read_sa1b(part), image_id=number)

    with writing(args.out / COCO_FILE):
        annotations.write_coco(
            args.out / COCO_FILE, images(), polygons=args.polygons, tolerance=args.tolerance
        )


def _finish(args, log, summary):
    """Writes the COCO file, and reports."""
    try:
        if args.format == "coco":
            _collect(args, log)
    finally:
        _report(args, summary)


def _report(args, summary):
    """Prints the summary to stdout, and to stderr what could not be segmented."""
    for name, reason in summary.unreadable.items():
        print(f"keras-sam everything: not segmented: {name}: {reason}", file=sys.stderr)
    if args.json:
        print(json.dumps(summary.as_json(args)))
        return
    words = [f"{summary.segmented} photographs segmented"]
    if summary.skipped:
        words.append(f"{summary.skipped} were done before")
    words.append(f"{summary.masks} masks in all")
    if summary.unreadable:
        words.append(f"{len(summary.unreadable)} could not be segmented")
    left = summary.photos - summary.segmented - summary.skipped - len(summary.unreadable)
    if left:
        words.append(f"{left} are left: give the same command again")
    print(f"{'; '.join(words)}. Results: {args.out}")
