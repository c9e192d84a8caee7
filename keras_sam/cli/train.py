"""`keras-sam train`: goes on training a model on images whose masks are known."""

import argparse
import contextlib
import json
import tomllib
from pathlib import Path

from keras_sam.cli import datasets, model, options
from keras_sam.cli.failure import CommandError, bad_input, one_line
from keras_sam.cli.output import check_output_folder, made_folder
from keras_sam.cli.progress import Progress, quiet_stderr
from keras_sam.files import whole_file

SETTINGS_FILE = "settings.json"

HELP = "fine-tune a model on images whose masks are known"
DESCRIPTION = f"""\
Fine-tunes a model on images whose masks are known.

{datasets.HELP}

Clicks and boxes are simulated. Options may also come from a TOML file, CONFIG, as `epochs = 20` or
`learning_rate = 1e-4`; those on the command line come first, and paths in the file are meant from
its folder.

Writes into --out:
  best/          the preset of the best epoch, for --preset and from_preset
  log.csv        loss and mIoU of every epoch
  curves.png     the same drawn, where matplotlib is installed
  settings.json  what the run was started with
  state/         what it takes to go on

A run that was stopped or killed goes on after its last whole epoch when the same command is given
again, and ends as it would have ended. --epochs and --patience may change in between."""

EXAMPLES = """\
examples:
  keras-sam train --preset sam_tiny_demo --data photos --masks masks --out run
  keras-sam train --preset sam_base_sa1b --data coco/train.json --images coco/train \\
      --validation coco/val.json --validation-images coco/val --epochs 10 --cache embeddings \\
      --out run
  keras-sam train --preset sam_base_sa1b --data photos --masks masks --lora 8 \\
      --layer-decay 0.8 --out run
  keras-sam train config.toml --epochs 40"""

_PATHS = ("data", "images", "masks", "validation", "validation_images", "validation_masks")
_PATHS += ("checkpoint", "cache", "out")
# Neither changes what an epoch does.
_FREE = ("epochs", "patience", "out", "workers")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.argument_default = argparse.SUPPRESS  # what is not given may be in the file
    parser.set_defaults(quiet=False, debug=False)
    parser.add_argument(
        "config", type=Path, nargs="?", default=None, metavar="CONFIG", help="a .toml file"
    )
    _add_settings(parser)


def _add_settings(parser):
    data = parser.add_argument_group("data")
    datasets.add_data_options(data)
    datasets.add_data_options(data, "validation-")
    datasets.add_reading_options(data)
    data.add_argument(
        "--validation-split",
        type=options.fraction,
        metavar="X",
        help="without --validation: this part of the images is kept apart for it (default: 0)",
    )
    data.add_argument("--flips", action="store_true", help="mirror half of the images")
    data.add_argument(
        "--scales",
        type=_scales,
        metavar="LOW,HIGH",
        help="scale images by a random factor, 0.1,2.0 say (default: not)",
    )
    data.add_argument(
        "--max-objects",
        type=options.positive_integer,
        metavar="N",
        help="at most N objects of an image in a step (default: 16)",
    )
    data.add_argument(
        "--workers", type=options.positive_integer, metavar="N", help="reading threads (default: 1)"
    )
    training = parser.add_argument_group("training")
    training.add_argument(
        "--train",
        choices=("decoder", "all"),
        help="the mask decoder alone, or everything (default: decoder)",
    )
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
        help="with --train all or --lora: steps of each earlier block of the image encoder are X "
        "times as large, 0.8 say (default: 1)",
    )
    training.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="encode every image once, into this folder; with --train decoder and without --lora, "
        "--flips and --scales",
    )
    training.add_argument(
        "--epochs", type=options.positive_integer, metavar="N", help="(default: 20)"
    )
    training.add_argument(
        "--batch-size", type=options.positive_integer, metavar="N", help="images (default: 1)"
    )
    training.add_argument(
        "--learning-rate", type=options.positive_number, metavar="X", help="(default: 1e-4)"
    )
    training.add_argument("--weight-decay", type=options.fraction, metavar="X", help="(default: 0)")
    training.add_argument(
        "--num-clicks",
        type=options.whole_number,
        metavar="N",
        help="simulated corrections after the first click or box (default: 2)",
    )
    training.add_argument(
        "--box-probability",
        type=options.fraction,
        metavar="X",
        help="how often the first prompt is a box (default: 0.5)",
    )
    training.add_argument(
        "--patience",
        type=options.positive_integer,
        metavar="N",
        help="stop after N epochs without a better mIoU (default: never)",
    )
    training.add_argument("--seed", type=options.whole_number, metavar="N", help="(default: 0)")
    results = parser.add_argument_group("results")
    results.add_argument("--out", type=Path, metavar="DIR", help="folder of the run")
    options.add_model_options(parser, required=False)


_DEFAULTS = {
    **dict.fromkeys((*_PATHS, "preset", "image_shape", "dtype", "backend", "device")),
    "validation_split": 0.0,
    "label_map": False,
    "skip_unreadable": False,
    "flips": False,
    "scales": None,
    "max_objects": 16,
    "workers": 1,
    "train": "decoder",
    "lora": None,
    "layer_decay": None,
    "epochs": 20,
    "batch_size": 1,
    "learning_rate": 1e-4,
    "weight_decay": 0.0,
    "num_clicks": 2,
    "box_probability": 0.5,
    "patience": None,
    "seed": 0,
}


def run(args: argparse.Namespace) -> int:
    """Trains from where an earlier run stopped, or from the preset."""
    given = vars(args)
    config = given.pop("config", None)
    args = argparse.Namespace(**{**_DEFAULTS, **(_read_config(config) if config else {}), **given})
    _check(args)
    settings = _settings(args)
    _check_earlier_run(args, settings)
    progress = Progress(args.quiet)
    quiet = contextlib.nullcontext if args.debug else quiet_stderr
    with model.open_segmenter(args, progress) as segmenter:
        train, validation = _open_data(args)
        with made_folder(args.out), _as_options():
            with progress.step("Preparing"), quiet():
                from keras_sam.cli.training_run import TrainingRun, import_for_fit

                import_for_fit()
                training = TrainingRun(segmenter, train, validation, args)
            with whole_file(args.out / SETTINGS_FILE, text=True) as file:
                file.write(json.dumps(settings, indent=2) + "\n")
            training.fit(progress)
    _report(args, training)
    return 0


class _ConfigParser(argparse.ArgumentParser):
    def error(self, message):
        raise CommandError(message.removeprefix("argument "))


def _read_config(path):
    """The options in a TOML file, as if they had been given on the command line."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandError(f"CONFIG {path}: {error.strerror}") from error
    except ValueError as error:
        raise CommandError(f"CONFIG {path}: is no TOML file: {error}") from error
    parser = _ConfigParser(add_help=False, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    _add_settings(parser)
    words = []
    for name, value in content.items():
        flag = "--" + name.replace("_", "-")
        if name.replace("-", "_") not in _DEFAULTS:
            raise CommandError(f"CONFIG {path}: there is no option {name!r}")
        if isinstance(value, bool):
            words += [flag] if value else []
        elif isinstance(value, list):
            words.append(f"{flag}={','.join(map(str, value))}")
        elif isinstance(value, dict):
            raise CommandError(f"CONFIG {path}: options must not be in a table, as [{name}] is")
        else:
            words.append(f"{flag}={value}")
    try:
        values = vars(parser.parse_args(words))
    except CommandError as error:
        raise CommandError(f"CONFIG {path}: {error}") from error
    for name in _PATHS:
        if name in values:
            values[name] = path.parent / values[name]
    beside = path.parent / values.get("preset", "")
    if "preset" in values and (beside / "config.json").is_file():
        values["preset"] = str(beside)
    return values


def _check(args):
    for name in ("data", "out"):
        if getattr(args, name) is None:
            raise CommandError(f"--{name} is required, on the command line or in CONFIG")
    if (args.preset is None) == (args.checkpoint is None):
        raise CommandError("--preset or --checkpoint is required, one of them")
    if args.validation is None and (args.validation_images or args.validation_masks):
        raise CommandError("--validation-images and --validation-masks belong to --validation")
    if args.validation is not None and args.validation_split:
        raise CommandError("--validation and --validation-split cannot be combined")
    if args.cache is not None:
        for name in ("flips", "scales"):
            if getattr(args, name):
                raise CommandError(f"--cache and --{name} cannot be combined: images stay the same")
        if args.train != "decoder":
            raise CommandError("--cache needs --train decoder: the encoder must stay as it is")
        if args.lora is not None:
            raise CommandError(
                "--cache and --lora cannot be combined: the encoder must stay as it is"
            )
        check_output_folder(args.cache, "--cache")
    if args.layer_decay is not None and args.train == "decoder" and args.lora is None:
        raise CommandError("--layer-decay needs --train all or --lora: the encoder is not trained")
    check_output_folder(args.out)


def _settings(args):
    return {
        name: value if isinstance(value, (int, float, list, type(None))) else str(value)
        for name, value in sorted(vars(args).items())
        if name in _DEFAULTS and name not in _FREE
    }


def _check_earlier_run(args, settings):
    path = args.out / SETTINGS_FILE
    if not path.exists():
        if args.out.is_dir() and any(args.out.iterdir()):
            raise CommandError(f"--out {args.out}: holds other files: choose a new or empty folder")
        return
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        changed = [
            f"{k} was {earlier.get(k)}, is {v}"
            for k, v in settings.items()
            if earlier.get(k) != json.loads(json.dumps(v))
        ]
    except (AttributeError, ValueError) as error:
        raise CommandError(f"--out {args.out}: {SETTINGS_FILE} is damaged: {error}") from error
    if changed:
        raise CommandError(
            f"--out {args.out}: holds a run with other settings ({'; '.join(changed)}): choose "
            "another folder"
        )


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
    """`bad_input`, where the library names an argument that is an option here."""
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
        raise argparse.ArgumentTypeError(
            f"expected a number above 0, up to 1, received {one_line(text)!r}"
        )
    return value


def _scales(text):
    low, high = options.numbers(text, (2,), "LOW,HIGH")
    if not 0 < low <= high:
        raise argparse.ArgumentTypeError(f"expected 0 < LOW <= HIGH, received {one_line(text)!r}")
    return [low, high]
