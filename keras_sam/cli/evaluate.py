"""`keras-sam evaluate`: how good a model's masks are, on images with known masks."""

import argparse
import io
import itertools
import json
from pathlib import Path

import numpy as np

from keras_sam.cli import datasets, model, options
from keras_sam.cli.errors import CommandError, bad_input, one_line
from keras_sam.cli.output import (
    add_overwrite_option,
    check_nothing_is_lost,
    check_output_folder,
    csv_text,
    format_table,
    output_files,
)
from keras_sam.cli.progress import Progress

HELP = "measure masks on images whose masks are known"
DESCRIPTION = f"""\
Lets a simulated annotator segment every object of a data set, and prints how good the masks are.

{datasets.HELP}

The annotator clicks into the middle of the object, then into the middle of the largest error, each
time with the mask so far. The means over all objects are printed:
  mIoU after N clicks     of the mask that the model scores highest
  best of three, 1 click  of the best of the three candidates ("oracle")
  boundary IoU, 1 click   near the outlines only
  mIoU from the box       of the mask from the object's exact box
  clicks to IoU 0.85      and 0.90; --max-clicks where that is never reached
and with --everything the share of objects that a mask without prompts matches: at IoU 0.7, and
averaged over IoU 0.50, 0.55 ... 0.95 (AR@1000, as COCO defines it).

Writes into --out, all files or none: objects.csv with a row per object, summary.json, and with
--plot miou.png."""

EXAMPLES = """\
examples:
  keras-sam evaluate --data coco/val.json --images coco/val --model sam_base_sa1b
  keras-sam evaluate --data photos --masks masks --label-map --model sam_tiny_demo \\
      --out report --plot --everything"""

_LABELS = {
    "oracle_miou@1": "best of three, 1 click",
    "boundary_miou@1": "boundary IoU, 1 click",
    "box_miou": "mIoU from the box",
    "recall@70": "found at IoU 0.7, no prompts",
    "ar@1000": "AR@1000, no prompts",
}
_GENERATOR = [
    parameter
    for parameter in options.PARAMETERS
    if parameter.name in ("points_per_side", "pred_iou_thresh", "stability_score_thresh")
]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    data = parser.add_argument_group("data")
    datasets.add_data_options(data)
    datasets.add_reading_options(data)
    data.add_argument(
        "--limit", type=options.positive_integer, metavar="N", help="only the first N images"
    )
    measures = parser.add_argument_group("measures")
    measures.add_argument(
        "--clicks",
        type=_click_counts,
        default=(1, 2, 3, 5, 9),
        metavar="N,N,...",
        help="after how many clicks the mIoU is measured (default: 1,2,3,5,9)",
    )
    measures.add_argument(
        "--max-clicks",
        type=options.positive_integer,
        default=20,
        metavar="N",
        help="the most clicks on an object when clicks to an IoU are counted (default: 20)",
    )
    measures.add_argument(
        "--everything",
        action="store_true",
        help="also segment without prompts, and count the objects that a mask matches",
    )
    for parameter in _GENERATOR:
        measures.add_argument(
            parameter.flag,
            type=parameter.type,
            metavar=parameter.metavar,
            help="for --everything, as in `keras-sam everything`",
        )
    results = parser.add_argument_group("results")
    results.add_argument("--out", type=Path, metavar="DIR", help="folder for the files (see above)")
    add_overwrite_option(results)
    results.add_argument("--plot", action="store_true", help="draw the results; needs matplotlib")
    results.add_argument("--json", action="store_true", help="print the means as a line of JSON")
    options.add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table, and writes the files that were asked for."""
    if args.plot and args.out is None:
        raise CommandError("--plot needs --out, the folder to draw into")
    generator = {p.name: getattr(args, p.name) for p in _GENERATOR}
    generator = {name: value for name, value in generator.items() if value is not None}
    if generator and not args.everything:
        raise CommandError(f"--{next(iter(generator)).replace('_', '-')} belongs to --everything")
    if args.out is not None:
        check_output_folder(args.out)
        check_nothing_is_lost((args.out / name for name in _files(args)), args.overwrite)
    if args.plot:
        _import_matplotlib()
    progress = Progress(args.quiet)
    with model.open_segmenter(args, progress) as segmenter:
        from keras_sam import evaluation
        from keras_sam.predictor import SAMPredictor
        from keras_sam.prompts import VOID

        source = datasets.open_data(args)
        count = min(len(source), args.limit or len(source))
        images = _Images(source, count, args.skip_unreadable)
        with progress.bar(count * (2 if args.everything else 1)) as bar, bad_input():
            measured = evaluation.evaluate(
                SAMPredictor(segmenter),
                images.read(bar),
                args.clicks,
                max_clicks=args.max_clicks,
                void=VOID,
            )
            if args.everything:
                measured.summary |= _everything(segmenter, generator, images, bar)
        for row in measured.objects:
            row["image"] = images.names[row["image"]]
        described = model.describe(args, segmenter)
    summary = {
        **described,
        "data": str(args.data),
        "images": len(images.names),
        "left_out": images.left_out,
        "objects": len(measured.objects),
        **{name: round(value, 4) for name, value in measured.summary.items()},
    }
    if args.out is not None:
        _write(args, measured, summary)
    for name, reason in images.left_out.items():
        progress.say(f"left out: {name}: {reason}")
    print(json.dumps(summary) if args.json else _table(summary, measured.summary))
    return 0


class _Images:
    """The images of a data set: names of those that were read, reasons why others were not."""

    def __init__(self, source, count, skip):
        self._source, self._count, self._skip = source, count, skip
        self.names: list[str] = []
        self.left_out: dict[str, str] = {}

    def read(self, bar):
        """Yields images with their objects, and moves the bar on after each."""
        self.names.clear()
        for index in range(self._count):
            name = self._source.path(index).name
            bar.describe(f"{index + 1}/{self._count} {name}")
            try:
                item = self._source[index]
            except (OSError, ValueError) as error:
                if not self._skip:
                    raise CommandError(
                        f"{name}: {one_line(error)} (--skip-unreadable leaves such images out)"
                    ) from error
                self.left_out[name] = one_line(error)
            else:
                self.names.append(name)
                yield item
            bar.advance(1)


def _everything(segmenter, settings, images, bar):
    """The share of all objects that masks without prompts match."""
    from keras_sam import evaluation
    from keras_sam.mask_generator import SAMAutomaticMaskGenerator
    from keras_sam.masks import decode_rle

    generator = SAMAutomaticMaskGenerator(segmenter, output_mode="coco_rle", **settings)
    matched = average = objects = 0.0
    for image, targets in images.read(bar):
        targets = [target == 1 for target in targets if (target == 1).any()]
        if not targets:
            continue
        records = generator.generate(image)
        masks = [decode_rle(record["segmentation"]) for record in records]
        scores = [record["predicted_iou"] for record in records]
        best = [max((evaluation.mask_iou(m, t) for m in masks), default=0.0) for t in targets]
        matched += np.count_nonzero(np.array(best) >= 0.7)
        average += len(targets) * evaluation.average_recall(masks, scores, targets)
        objects += len(targets)
    return {"recall@70": matched / objects, "ar@1000": average / objects}


def _table(summary, means):
    rows = [("images", summary["images"]), ("objects", summary["objects"])]
    for name, value in means.items():
        kind, _, number = name.partition("@")
        if name in _LABELS:
            rows.append((_LABELS[name], f"{value:.3f}"))
        elif kind == "miou":
            rows.append((f"mIoU, {number} click{'s' * (number != '1')}", f"{value:.3f}"))
        else:
            rows.append((f"clicks to IoU {int(number) / 100:.2f}", f"{value:.2f}"))
    return format_table(("measure", "mean"), rows)


def _write(args, measured, summary):
    with output_files(args.out) as files:
        table, report, *plot = _files(args)
        files.write(table, csv_text(measured.objects).encode())
        files.write(report, json.dumps(summary, indent=2).encode() + b"\n")
        for name in plot:
            files.write(name, _plot(args.clicks, measured))


def _files(args):
    return ["objects.csv", "summary.json", *["miou.png"] * args.plot]


def _plot(clicks, measured):
    """Plots mIoU by the number of clicks, and histograms of the objects' IoUs."""
    figures = _import_matplotlib()
    figure = figures.Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(clicks, [measured.summary[f"miou@{n}"] for n in clicks], "o-", label="clicks")
    for name, style in (("box_miou", "--"), ("oracle_miou@1", ":")):
        left.axhline(measured.summary[name], linestyle=style, color="0.4", label=_LABELS[name])
    left.set(xlabel="clicks", ylabel="mIoU", ylim=(0, 1))
    left.legend(loc="lower right")
    for name, label in ((f"iou@{clicks[0]}", f"{clicks[0]} click(s)"), ("box_iou", "box")):
        values = [row[name] for row in measured.objects]
        right.hist(values, np.linspace(0, 1, 21), histtype="step", label=label)
    right.set(xlabel="IoU", ylabel="objects", xlim=(0, 1))
    right.legend(loc="upper left")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()


def _import_matplotlib():
    try:
        from matplotlib import figure
    except ImportError as error:
        raise CommandError(
            '--plot needs matplotlib. Install it with: pip install "keras-sam[plot]"', code=1
        ) from error
    return figure


def _click_counts(text):
    counts = tuple(options.positive_integer(part) for part in text.split(","))
    if any(a >= b for a, b in itertools.pairwise(counts)):
        raise argparse.ArgumentTypeError(f"expected rising numbers N,N,..., received {text!r}")
    return counts
