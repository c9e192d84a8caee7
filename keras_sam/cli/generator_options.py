"""The mask generator's parameters as options of a command."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from keras_sam.cli import options
from keras_sam.cli.failure import CommandError


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter of `SAMAutomaticMaskGenerator` as an option.

    Args:
        name: str, the parameter's name.
        type: function that reads the option's value.
        default: the generator's own, or None if it depends on the backend.
        metavar: str, for the help.
        help: str.
        shapes_results: bool. Whether results depend on it, beyond their last bits.
    """

    name: str
    type: Any
    default: Any
    metavar: str
    help: str
    shapes_results: bool = True


PARAMETERS = (
    Parameter("points_per_side", options.positive_integer, 32, "N", "clicks along each side"),
    Parameter(
        "points_per_batch", options.positive_integer, 64, "N", "clicks in memory together", False
    ),
    Parameter(
        "pred_iou_thresh", options.finite_number, 0.88, "X", "keep masks the model is so sure of"
    ),
    Parameter(
        "stability_score_thresh",
        options.finite_number,
        0.95,
        "X",
        "keep masks that change so little with the mask threshold",
    ),
    Parameter(
        "stability_score_offset",
        options.finite_number,
        1.0,
        "X",
        "how far the mask threshold is moved for that",
    ),
    Parameter(
        "box_nms_thresh",
        options.finite_number,
        0.7,
        "X",
        "of masks whose boxes overlap more, one stays",
    ),
    Parameter(
        "crop_n_layers", options.whole_number, 0, "N", "layers of crops that are segmented, too"
    ),
    Parameter(
        "crop_nms_thresh",
        options.finite_number,
        0.7,
        "X",
        "as --box-nms-thresh, among masks of different crops",
    ),
    Parameter(
        "crop_overlap_ratio", options.finite_number, 512 / 1500, "X", "how much crops overlap"
    ),
    Parameter(
        "crop_n_points_downscale_factor",
        options.positive_integer,
        1,
        "N",
        "layer i has 1/N**i as many clicks per side",
    ),
    Parameter(
        "min_mask_region_area",
        options.finite_number,
        0,
        "PIXELS",
        "remove smaller holes and islands from masks",
    ),
    Parameter("prompt_chunk", options.positive_integer, None, "N", "clicks decoded at once", False),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds an option for each parameter."""
    generator = parser.add_argument_group("mask generator (see SAMAutomaticMaskGenerator)")
    for parameter in PARAMETERS:
        generator.add_argument(
            _flag(parameter.name),
            type=parameter.type,
            metavar=parameter.metavar,
            help=f"{parameter.help} (default: {_shown(parameter.default)})",
        )
    generator.add_argument(
        "--point-grids",
        type=Path,
        metavar="FILE",
        help="a .json file of click grids instead, the image's and one per layer of crops: "
        "[[[x, y], ...], ...] in 0..1",
    )
    generator.add_argument(
        "--use-m2m", action="store_true", help="decode every mask twice, for better edges"
    )


def read_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the generator is made with; what was not given is left to its defaults.

    Raises:
        CommandError: if options exclude each other, or the file of click grids is no such file.
    """
    given = {p.name: getattr(args, p.name) for p in PARAMETERS}
    given = {name: value for name, value in given.items() if value is not None}
    if args.use_m2m:
        given["use_m2m"] = True
    if args.point_grids is not None:
        if "points_per_side" in given:
            raise CommandError("--point-grids and --points-per-side cannot be combined")
        given |= {"point_grids": _read_grids(args.point_grids), "points_per_side": None}
    return given


def shaping(args: argparse.Namespace, parameters: dict[str, Any]) -> dict[str, Any]:
    """What of `read_options` results depend on, with the defaults of what was not given."""
    defaults = {p.name: p.default for p in PARAMETERS if p.shapes_results}
    return {
        **{name: parameters.get(name, default) for name, default in defaults.items()},
        "point_grids": parameters.get("point_grids"),
        "use_m2m": args.use_m2m,
    }


def _flag(name):
    return "--" + name.replace("_", "-")


def _shown(default):
    return "as suits the backend" if default is None else f"{default:.4g}"


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
