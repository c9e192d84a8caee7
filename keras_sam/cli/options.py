"""Options that several commands share, and the values that options take."""

import argparse
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from keras_sam.cli.errors import CommandError
from keras_sam.generator_settings import RECOMMENDABLE


def numbers(given: str | list, allowed_counts: tuple[int, ...], form: str) -> list[float]:
    """Reads finite numbers from a list, or from text with commas. `form` is for the error."""
    try:
        values = [float(part) for part in (given.split(",") if isinstance(given, str) else given)]
    except (OverflowError, TypeError, ValueError):
        values = []
    if len(values) not in allowed_counts or not all(map(math.isfinite, values)):
        raise argparse.ArgumentTypeError(f"expected {form}, received {given!r}")
    return values


def photograph(text: str) -> Path:
    """The path of a picture or a folder on this machine, with `~` for the home folder."""
    if re.match("https?://", text):
        raise CommandError(
            f"photographs must be on this machine: download it and give its path. Received: {text}"
        )
    return Path(os.path.expanduser(text))


def place(text: str) -> Path | str:
    """A path as by `photograph`, or an address of another file system, as it is."""
    return text if re.match(r"(?!https?:)[a-zA-Z][\w+.-]+://", text) else photograph(text)


def point(given: str | list) -> tuple[float, float, int]:
    """`X,Y` or `X,Y,LABEL`."""
    x, y, label = (*numbers(given, (2, 3), "X,Y or X,Y,LABEL in pixels"), 1)[:3]
    if label not in (0, 1):
        raise argparse.ArgumentTypeError(
            f"the label must be 1 (foreground) or 0 (background), received {given!r}"
        )
    return x, y, int(label)


def box(given: str | list) -> tuple[float, float, float, float]:
    """`X1,Y1,X2,Y2` with the top left corner first."""
    x1, y1, x2, y2 = numbers(given, (4,), "X1,Y1,X2,Y2 in pixels")
    if x2 < x1 or y2 < y1:
        raise argparse.ArgumentTypeError(
            f"the box is upside down: X1,Y1 is its top left corner, received {given!r}"
        )
    return x1, y1, x2, y2


def value_range(text: str) -> str | tuple[float, float]:
    """`auto`, `percentile`, or `LOW,HIGH`."""
    if text in ("auto", "percentile"):
        return text
    low, high = numbers(text, (2,), "auto, percentile or LOW,HIGH")
    if low >= high:
        raise argparse.ArgumentTypeError(f"LOW must be below HIGH, received {text!r}")
    return low, high


def image_shape(text: str) -> tuple[int, int]:
    """`1024`, or `768,1024` for height and width."""
    if not re.fullmatch(r"[1-9]\d{0,4}([,x][1-9]\d{0,4})?", text):
        raise argparse.ArgumentTypeError(
            f"expected SIDE or HEIGHT,WIDTH in whole pixels, received {text!r}"
        )
    sides = [int(side) for side in re.split("[,x]", text)]
    return sides[0], sides[-1]


def finite_number(text: str) -> float:
    """A number that is neither NaN nor infinite."""
    return numbers(text, (1,), "a number")[0]


def positive_number(text: str) -> float:
    """A number above 0."""
    value = finite_number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, received {text!r}")
    return value


def fraction(text: str) -> float:
    """A number from 0 up to 1."""
    value = finite_number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, received {text!r}")
    return value


def positive_integer(text: str) -> int:
    """A whole number from 1 on."""
    return whole_number(text, 1)


def whole_number(text: str, least: int = 0) -> int:
    """A whole number from `least` on."""
    if not re.fullmatch(r"\d{1,9}", text) or int(text) < least:
        raise argparse.ArgumentTypeError(
            f"expected a whole number, at least {least}, received {text!r}"
        )
    return int(text)


def device(text: str) -> str:
    """`cpu`, `gpu`, `gpu:1`, `tpu:0`, `mps`."""
    if not re.fullmatch(r"(cpu|gpu|cuda|tpu|mps|xpu)(:\d{1,3})?", text):
        raise argparse.ArgumentTypeError(f"expected cpu, gpu, gpu:0, gpu:1 ..., received {text!r}")
    return text.replace("cuda", "gpu")


class Repeated(argparse.Action):
    """Collects the values of a repeatable option; they replace those of a `--config` file."""

    def __call__(self, parser, namespace, values, option_string=None):
        """Adds a value; the first one replaces a default or a file's values, which are a tuple."""
        earlier = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*(earlier if isinstance(earlier, list) else ()), values])


def add_hidden_alias(group, name: str, option: argparse.Action) -> None:
    """Adds an earlier name of an option, which still works but is not in the help."""
    same = {name: getattr(option, name) for name in ("dest", "type", "choices", "default")}
    group.add_argument(name, **same, help=argparse.SUPPRESS)


def add_model_options(
    parser: argparse.ArgumentParser, makes_masks: bool = True, runs_exports: bool = False
) -> None:
    """Adds the options for the model, what it runs on, and the threshold of its masks."""
    group = parser.add_argument_group("model")
    source = group.add_mutually_exclusive_group()
    model = source.add_argument(
        "--model",
        metavar="NAME",
        help="built-in name (see `keras-sam presets`), kaggle:// or hf:// handle, folder, or a "
        ".pth, .safetensors, .h5 or .keras file, whose format and size are recognised"
        + (
            "; or a folder that `keras-sam export` wrote as onnx or openvino"
            if runs_exports
            else ""
        ),
    )
    model.required = True
    for name in ("--preset", "--checkpoint"):
        add_hidden_alias(source, name, model)
    group.add_argument(
        "--image-shape",
        type=image_shape,
        metavar="H,W",
        help="run the model at this input size (default: the preset's, 1024)",
    )
    group.add_argument(
        "--value-range",
        type=value_range,
        metavar="LOW,HIGH",
        help="the values of pictures that become 0 and 255, such as 0,4095 for cameras of 12 bits; "
        "or percentile, or auto: by their type (default: the model's, auto)",
    )
    if makes_masks:
        threshold = group.add_argument(
            "--mask-threshold",
            type=finite_number,
            metavar="LOGIT",
            help="logits above it belong to the mask (default: the model's, 0)",
        )
        add_hidden_alias(group, "--threshold", threshold)
    group.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16", "mixed_bfloat16", "mixed_float16"),
        help="number format of weights and computation (default: Keras's, float32)",
    )
    group.add_argument(
        "--backend",
        choices=("jax", "torch", "tensorflow", "openvino"),
        help="Keras backend (default: KERAS_BACKEND, otherwise the first one installed)",
    )
    group.add_argument(
        "--device", type=device, help="cpu, gpu, gpu:1 ... (default: the backend's choice)"
    )
    if runs_exports:
        group.add_argument(
            "--provider",
            action=Repeated,
            metavar="NAME",
            help="what runs an exported folder in ONNX Runtime, by its own name, such as "
            "CUDAExecutionProvider; repeatable, the preferred first (default: the processor)",
        )


class Parameter(NamedTuple):
    """A parameter of `SAMAutomaticMaskGenerator` as an option, with the generator's own default."""

    name: str
    type: Callable[[str], Any]
    default: Any  # None if it depends on the backend
    metavar: str
    help: str
    shapes_results: bool = True  # beyond their last bits

    @property
    def flag(self) -> str:
        """The option's name."""
        return "--" + self.name.replace("_", "-")


PARAMETERS = (
    Parameter("points_per_side", positive_integer, 32, "N", "clicks along each side"),
    Parameter("points_per_batch", positive_integer, 64, "N", "clicks in memory together", False),
    Parameter("pred_iou_thresh", finite_number, 0.88, "X", "keep masks of a higher predicted IoU"),
    Parameter(
        *("stability_score_thresh", finite_number, 0.95, "X"),
        "keep masks of at least this stability score",
    ),
    Parameter(
        *("stability_score_offset", finite_number, 1.0, "X"),
        "how far the mask threshold is moved up and down for the stability score",
    ),
    Parameter(
        *("box_nms_thresh", finite_number, 0.7, "X"),
        "of masks whose boxes overlap by more than this IoU, one is kept",
    ),
    Parameter(
        *("crop_n_layers", whole_number, 0, "N"),
        "layers of crops that are segmented besides the whole image",
    ),
    Parameter(
        *("crop_nms_thresh", finite_number, 0.7, "X"),
        "like --box-nms-thresh, for masks of different crops",
    ),
    Parameter("crop_overlap_ratio", finite_number, 512 / 1500, "X", "how much crops overlap"),
    Parameter(
        *("crop_n_points_downscale_factor", positive_integer, 1, "N"),
        "layer i has 1/N**i as many clicks per side",
    ),
    Parameter(
        *("min_mask_region_area", finite_number, 0, "PIXELS"),
        "remove smaller holes and islands from masks",
    ),
    Parameter("prompt_chunk", positive_integer, None, "N", "clicks decoded at once", False),
)


def add_generator_options(parser: argparse.ArgumentParser) -> None:
    """Adds an option for each parameter of the mask generator."""
    generator = parser.add_argument_group("mask generator (see SAMAutomaticMaskGenerator)")
    for parameter in PARAMETERS:
        default = parameter.default
        shown = "as suits the backend" if default is None else f"{default:.4g}"
        if parameter.name in RECOMMENDABLE:
            shown = f"the model's, or else {shown}"
        generator.add_argument(
            parameter.flag,
            type=parameter.type,
            metavar=parameter.metavar,
            help=f"{parameter.help} (default: {shown})",
        )
    generator.add_argument(
        "--point-grids",
        type=Path,
        metavar="FILE",
        help="a .json file of click grids instead, the image's and one per layer of crops: "
        "[[[x, y], ...], ...] in 0..1",
    )
    generator.add_argument(
        "--use-m2m",
        action=argparse.BooleanOptionalAction,
        help="decode every mask twice, for better edges (default: the model's, or else not)",
    )


def read_generator_options(args: argparse.Namespace) -> dict[str, Any]:
    """The generator's arguments. What was not given is left to its defaults."""
    given = {p.name: getattr(args, p.name) for p in PARAMETERS}
    given = {name: value for name, value in given.items() if value is not None}
    if args.use_m2m is not None:
        given["use_m2m"] = args.use_m2m
    if args.point_grids is not None:
        if "points_per_side" in given:
            raise CommandError("--point-grids and --points-per-side cannot be combined")
        given |= {"point_grids": _read_grids(args.point_grids), "points_per_side": None}
    return given


def generator_settings(args: argparse.Namespace, parameters: dict[str, Any]) -> dict[str, Any]:
    """What results depend on, of `read_generator_options`; None is left to the model."""
    names = [p.name for p in PARAMETERS if p.shapes_results]
    return {
        **{name: parameters.get(name) for name in names},
        "point_grids": parameters.get("point_grids"),
        "use_m2m": args.use_m2m,
    }


def _read_grids(path):
    import numpy as np

    wrong = f"--point-grids {path}: expected JSON, a list of grids [[x, y], ...]"
    try:
        grids = json.loads(path.read_text(encoding="utf-8"))
        shapes = [np.asarray(grid, "float64").shape for grid in grids]
    except OSError as error:
        raise CommandError(f"--point-grids {path}: {error.strerror}") from error
    except (TypeError, ValueError) as error:
        raise CommandError(f"{wrong} ({error})") from error
    if not shapes or any(len(shape) != 2 or shape[1] != 2 for shape in shapes):
        raise CommandError(f"{wrong}, received shapes {shapes}")
    return grids
