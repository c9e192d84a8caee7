"""Options that several commands share, and the values that options take."""

import argparse
import math
import re
from pathlib import Path


def numbers(text: str, allowed_counts: tuple[int, ...], form: str) -> list[float]:
    """Reads comma-separated finite numbers. `form` names what is expected, `X,Y` say."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in allowed_counts or not all(math.isfinite(value) for value in values):
        raise argparse.ArgumentTypeError(f"expected {form}, received {text!r}")
    return values


def point(text: str) -> tuple[float, float, int]:
    """`X,Y` or `X,Y,LABEL`."""
    x, y, label = (*numbers(text, (2, 3), "X,Y or X,Y,LABEL in pixels"), 1)[:3]
    if label not in (0, 1):
        raise argparse.ArgumentTypeError(
            f"the label must be 1 (foreground) or 0 (background), received {text!r}"
        )
    return x, y, int(label)


def box(text: str) -> tuple[float, float, float, float]:
    """`X1,Y1,X2,Y2`, right way up."""
    x1, y1, x2, y2 = numbers(text, (4,), "X1,Y1,X2,Y2 in pixels")
    if x2 < x1 or y2 < y1:
        raise argparse.ArgumentTypeError(
            f"the box is upside down: X1,Y1 is its top left corner, received {text!r}"
        )
    return x1, y1, x2, y2


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
    return _integer(text, 1)


def whole_number(text: str) -> int:
    """A whole number from 0 on."""
    return _integer(text, 0)


def _integer(text, least):
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


def add_model_options(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Adds what says which model runs, and on what; `required=False` where a file may say it."""
    group = parser.add_argument_group("model")
    source = group.add_mutually_exclusive_group(required=required)
    source.add_argument(
        "--preset",
        metavar="NAME",
        help="built-in name (see `keras-sam presets`), kaggle:// or hf:// handle, or folder",
    )
    source.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="a .pth, .safetensors, .h5 or .keras file; its format and size are recognised",
    )
    group.add_argument(
        "--image-shape",
        type=image_shape,
        metavar="H,W",
        help="run the model at this input size (default: the preset's, 1024)",
    )
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
