"""`keras-sam everything`: all masks of a photograph, or of every photograph in a folder."""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

from keras_sam.cli import generator_options, mask_outputs, model, options
from keras_sam.cli.failure import CommandError, bad_input, one_line, writing
from keras_sam.cli.mask_outputs import COCO_FILE, FORMATS
from keras_sam.cli.output import check_output_folder
from keras_sam.cli.photos import find_photos
from keras_sam.cli.progress import Progress
from keras_sam.cli.run_log import RunLog

HELP = "segment everything in a photograph or in a folder of photographs"
DESCRIPTION = f"""\
Segments everything in a photograph, or in each photograph of a folder.

--format coco       one COCO file, {COCO_FILE}, for all photographs; it is put together from
                    a file per photograph in coco_parts/
--format sa1b       a JSON file per photograph, as the SA-1B data set
--format yolo       a text file of outlines per photograph
--format png        a folder per photograph: a black and white picture per mask, metadata.csv
--format label-map  an indexed PNG per photograph: pixels of mask N are N, background is 0

Results are written photograph by photograph, each whole or not at all. A run that was interrupted
goes on where it stopped when the same command is given again: what is done is skipped, unless the
photograph has changed since. Photographs that cannot be read are named at the end, and again the
exit code is 2."""

EXAMPLES = """\
examples:
  keras-sam everything photos --preset sam_base_sa1b --out masks --format coco
  keras-sam everything truck.jpg --checkpoint sam_vit_b_01ec64.pth --out masks --format png \\
      --points-per-side 16 --crop-n-layers 1 --min-mask-region-area 100"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.add_argument(
        "photos", type=Path, metavar="PHOTO_OR_FOLDER", help="the picture, or a folder of them"
    )
    parser.add_argument("--recursive", action="store_true", help="look into the folder's folders")
    results = parser.add_argument_group("results")
    results.add_argument("--out", type=Path, required=True, metavar="DIR", help="their folder")
    results.add_argument("--format", choices=tuple(FORMATS), required=True, help="see above")
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
    results.add_argument(
        "--overwrite", action="store_true", help="do everything again, replacing what is there"
    )
    results.add_argument("--json", action="store_true", help="print the summary as a line of JSON")
    generator_options.add_options(parser)
    options.add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Segments what is not done yet, and sums up what is there, however the run ends."""
    parameters = generator_options.read_options(args)
    photos = find_photos(args.photos, args.recursive, _result_folders(args))
    _check_outputs(args)
    log = RunLog(args.out, _settings(args, parameters), args.overwrite)
    summary = _Summary(len(photos))
    todo = [photo for photo in photos if not _is_done(args, log, photo)]
    summary.skipped = len(photos) - len(todo)
    summary.masks = log.count_masks({photo.name for photo in photos} - {p.name for p in todo})
    if log.is_new and not args.overwrite:
        _check_nothing_is_lost(args, photos)
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
    """What a run came to; masks are counted with those of photographs that were done before."""

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
    """What results depend on: they are not mixed with those of other settings."""
    return {
        "model": str(args.preset or args.checkpoint),
        "image_shape": args.image_shape and list(args.image_shape),
        "dtype": args.dtype,
        "format": args.format,
        # Of COCO, outlines are made when the file is put together.
        "tolerance": args.tolerance if args.format == "yolo" else 0.0,
        **generator_options.shaping(args, parameters),
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
    source = args.photos if args.photos.is_dir() else args.photos.parent
    pictures = [args.pictures] if args.pictures else []
    if args.format in ("png", "label-map"):
        pictures.append(args.out)
    if source.resolve() in [folder.resolve() for folder in pictures]:
        raise CommandError(
            "pictures of masks would lie among the photographs and be taken for some: choose "
            "another folder for them"
        )


def _check_photo(photo):
    """A lone photograph is read before the model is loaded."""
    from keras_sam.images import read_image

    with bad_input():
        read_image(photo.path)


def _check_nothing_is_lost(args, photos):
    """A first run replaces nothing that it has not made."""
    planned = [args.out / COCO_FILE] if args.format == "coco" else []
    planned += [args.out / mask_outputs.output_name(args, photo) for photo in photos]
    for path in planned:
        if path.exists():
            raise CommandError(
                f"--out {args.out}: {path} is there already, and not from an earlier run: choose "
                "another folder, or --overwrite to replace it"
            )


def _is_done(args, log, photo):
    try:
        entry = log.find(photo.name, photo.stamp())
    except OSError:
        return False
    if entry is None or not (args.out / entry["output"]).exists():
        return False
    return args.pictures is None or mask_outputs.picture_path(args, photo).exists()


def _segment(args, parameters, todo, log, summary):
    progress = Progress(args.quiet)
    with model.open_segmenter(args, progress) as segmenter:
        from keras_sam.mask_generator import SAMAutomaticMaskGenerator

        with bad_input():
            generator = SAMAutomaticMaskGenerator(segmenter, output_mode="coco_rle", **parameters)
        log.start()
        with progress.bar(len(todo) * generator.clicks_per_image) as bar:
            for number, photo in enumerate(todo, start=1):
                bar.describe(f"{number}/{len(todo)} {photo.name}")
                clicks = _Clicks(bar, generator.clicks_per_image)
                outcome = _segment_photo(args, generator, photo, log, clicks, summary)
                bar.say(f"{number}/{len(todo)} {photo.name}: {outcome}", only_in_logs=True)
                clicks.finish()


def _segment_photo(args, generator, photo, log, clicks, summary):
    """Writes the results of one photograph, or notes why there are none. Returns a few words."""
    from keras_sam.mask_generator import UnfinishedImagesError

    began = time.monotonic()
    try:
        stamp = photo.stamp()  # before it is read: what changes from now on is done again
        # What is wrong with the photograph is a ValueError by now.
        with writing("temporary files (their folder is that of TMPDIR, if it is set)"):
            (records,) = generator.stream([photo.path], progress=clicks)
    except (UnfinishedImagesError, OSError) as error:
        reason = error.__cause__ if isinstance(error, UnfinishedImagesError) else error.strerror
        summary.unreadable[photo.name] = one_line(reason)
        return "could not be segmented"
    with writing(args.out):
        mask_outputs.save(args, photo, records)
    done = {"output": mask_outputs.output_name(args, photo), "masks": len(records)}
    log.add(photo.name, {**stamp, **done})
    summary.segmented += 1
    summary.masks += len(records)
    return f"{len(records)} masks, {time.monotonic() - began:.1f} s"


class _Clicks:
    """Moves the bar by the clicks of one photograph, in the end by all of them."""

    def __init__(self, bar, total):
        self._bar, self._left = bar, total

    def __call__(self, clicks):
        self._bar.advance(clicks)
        self._left -= clicks

    def finish(self):
        self._bar.advance(self._left)


def _finish(args, log, summary):
    """Puts the COCO file together, and says what there is."""
    try:
        if args.format == "coco":
            mask_outputs.collect(args, log)
    finally:
        _report(args, summary)


def _report(args, summary):
    """The summary on stdout, and on stderr what could not be segmented."""
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
