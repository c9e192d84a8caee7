"""`keras-sam train`: fine-tunes a model on images with known masks."""

import argparse
import contextlib
import json
import shutil
from pathlib import Path

from keras_sam.cli import datasets, model, options
from keras_sam.cli.config import GENERAL
from keras_sam.cli.errors import CommandError, bad_input
from keras_sam.cli.output import (
    add_overwrite_option,
    check_output_folder,
    check_same_settings,
    made_folder,
)
from keras_sam.cli.progress import Progress, quiet_stderr
from keras_sam.files import whole_file

SETTINGS_FILE = "settings.json"

HELP = "fine-tune a model on images whose masks are known"
DESCRIPTION = f"""\
Fine-tunes a model on images whose masks are known.

{datasets.HELP}

Clicks and boxes are simulated.

Writes into --out:
  best/          the preset of the best epoch, for --model and from_preset
  log.csv        loss and mIoU of every epoch
  curves.png     the same drawn, where matplotlib is installed
  settings.json  what the run was started with
  state/         what a run needs to continue

A run that was stopped or killed continues after its last complete epoch when the same command is
given again, and ends as it would have ended. --epochs and --patience may change in between."""

EXAMPLES = """\
examples:
  keras-sam train --model sam_tiny_demo --data photos --masks masks --out run
  keras-sam train --model sam_base_sa1b --data coco/train.json --images coco/train \\
      --validation coco/val.json --validation-images coco/val --epochs 10 --cache embeddings \\
      --out run
  keras-sam train --model sam_base_sa1b --data photos --masks masks --lora 8 \\
      --layer-decay 0.8 --out run
  keras-sam train --config run.toml --epochs 40"""

# Settings that do not change the result of an epoch.
_FREE = (*GENERAL, "epochs", "patience", "out", "overwrite", "workers")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    # Before there was --config, the file was a positional argument.
    parser.add_argument("config_file", type=Path, nargs="?", help=argparse.SUPPRESS)
    data = parser.add_argument_group("data")
    datasets.add_data_options(data)
    datasets.add_data_options(data, "validation-")
    datasets.add_reading_options(data)
    data.add_argument(
        "--validation-split",
        type=options.fraction,
        default=0.0,
        metavar="X",
        help="without --validation: this fraction of the images is kept for it (default: 0)",
    )
    data.add_argument("--flips", action="store_true", help="mirror half of the images")
    data.add_argument(
        "--scales",
        type=_scales,
        metavar="LOW,HIGH",
        help="scale images by a random factor, for example 0.1,2.0 (default: no scaling)",
    )
    data.add_argument(
        "--max-objects",
        type=options.positive_integer,
        default=16,
        metavar="N",
        help="at most N objects per image in a step (default: 16)",
    )
    data.add_argument(
        "--workers",
        type=options.positive_integer,
        default=1,
        metavar="N",
        help="reading threads (default: 1)",
    )
    training = parser.add_argument_group("training")
    parts = training.add_argument(
        "--parts",
        choices=("decoder", "all"),
        default="decoder",
        help="train the mask decoder alone, or everything (default: decoder)",
    )
    options.add_hidden_alias(training, "--train", parts)
    training.add_argument(
        "--lora",
        type=options.positive_integer,
        metavar="RANK",
        help="train the image encoder too, but through small additions of this rank to its kernels",
    )
    training.add_argument(
        "--layer-decay",
        type=_decay,
        metavar="X",
        help="with --parts all or --lora: multiply the learning rate by X, for example 0.8, for "
        "each block towards the image encoder's input (default: 1)",
    )
    training.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="encode every image once, into this folder; needs --parts decoder, and excludes "
        "--lora, --flips and --scales",
    )
    for name, read, default, metavar, about in (
        ("--epochs", options.positive_integer, 20, "N", ""),
        ("--batch-size", options.positive_integer, 1, "N", "images "),
        ("--learning-rate", options.positive_number, 1e-4, "X", ""),
        ("--weight-decay", options.fraction, 0.0, "X", ""),
        (
            *("--num-clicks", options.whole_number, 2, "N"),
            "simulated corrections after the first click or box ",
        ),
        (
            *("--box-probability", options.fraction, 0.5, "X"),
            "probability that the first prompt is a box ",
        ),
        ("--seed", options.whole_number, 0, "N", ""),
    ):
        training.add_argument(
            name,
            type=read,
            default=default,
            metavar=metavar,
            help=f"{about}(default: {default:g})",
        )
    training.add_argument(
        "--patience",
        type=options.positive_integer,
        metavar="N",
        help="stop after N epochs without a better mIoU (default: never)",
    )
    results = parser.add_argument_group("results")
    results.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the run")
    add_overwrite_option(results)
    options.add_model_options(parser, makes_masks=False)


def run(args: argparse.Namespace) -> int:
    """Trains, from where an earlier run stopped if there is one."""
    _check(args)
    settings = _settings(args)
    _check_earlier_run(args, settings)
    progress = Progress(args.quiet)
    quiet = contextlib.nullcontext if args.debug else quiet_stderr
    with model.open_segmenter(args, progress) as segmenter:
        train, validation = _open_data(args)
        with made_folder(args.out), _as_options():
            with progress.step("Preparing"), quiet():
                from keras_sam.cli.training_run import STATE, TrainingRun, import_for_fit

                import_for_fit()
                if args.overwrite:
                    shutil.rmtree(args.out / STATE, ignore_errors=True)
                training = TrainingRun(segmenter, train, validation, args)
            with whole_file(args.out / SETTINGS_FILE, text=True) as file:
                file.write(json.dumps(settings, indent=2) + "\n")
            training.fit(progress)
    _report(args, training)
    return 0


def _check(args):
    if args.validation is None and (args.validation_images or args.validation_masks):
        raise CommandError("--validation-images and --validation-masks belong to --validation")
    if args.validation is not None and args.validation_split:
        raise CommandError("--validation and --validation-split cannot be combined")
    if args.cache is not None:
        for name in ("flips", "scales"):
            if getattr(args, name):
                raise CommandError(f"--cache and --{name} cannot be combined: images stay the same")
        if args.parts != "decoder":
            raise CommandError("--cache needs --parts decoder: the encoder must stay as it is")
        if args.lora is not None:
            raise CommandError(
                "--cache and --lora cannot be combined: the encoder must stay as it is"
            )
        check_output_folder(args.cache, "--cache")
    if args.layer_decay is not None and args.parts == "decoder" and args.lora is None:
        raise CommandError("--layer-decay needs --parts all or --lora: the encoder is not trained")
    check_output_folder(args.out)


def _settings(args):
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in sorted(vars(args).items())
        if name not in _FREE
    }


def _check_earlier_run(args, settings):
    path = args.out / SETTINGS_FILE
    if not path.exists():
        if args.out.is_dir() and any(args.out.iterdir()):
            raise CommandError(f"--out {args.out}: holds other files: choose a new or empty folder")
        return
    if args.overwrite:
        return
    try:
        earlier = dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise CommandError(
            f"--out {args.out}: {SETTINGS_FILE} is damaged; --overwrite starts from scratch"
        ) from error
    check_same_settings(args.out, earlier, settings)


def _open_data(args):
    """The images to train on and those to validate on, or None."""
    train = datasets.open_data(args)
    if args.validation is not None:
        return train, datasets.open_data(args, "validation-")
    if not args.validation_split:
        return train, None
    from keras_sam.cli.training_run import split

    with bad_input():
        return split(train, args.validation_split, args.seed)


@contextlib.contextmanager
def _as_options():
    """`bad_input` that replaces a library argument in messages by the option of that name."""
    try:
        yield
    except ValueError as error:
        message = str(error).replace("Pass `skip_unreadable=True`", "Give --skip-unreadable")
        raise CommandError(message) from error


def _report(args, training):
    best = training.best_row
    print(
        f"best epoch {best['epoch']} of {len(training.rows)}: {training.monitor} "
        f"{float(best[training.monitor]):.3f}\npreset: {args.out / 'best'}"
    )


def _decay(text):
    value = options.finite_number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, up to 1, received {text!r}")
    return value


def _scales(text):
    low, high = options.numbers(text, (2,), "LOW,HIGH")
    if not 0 < low <= high:
        raise argparse.ArgumentTypeError(f"expected 0 < LOW <= HIGH, received {text!r}")
    return low, high
