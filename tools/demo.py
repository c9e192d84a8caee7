#!/usr/bin/env python3
"""Segments a real photograph from a click and from a box; makes the environment it needs itself.

    python3 tools/demo.py                                     # the small model that comes along
    python3 tools/demo.py --model sam_base_sa1b               # downloads Meta's ViT-B, 375 MB
    python3 tools/demo.py --model sam_vit_b_01ec64.pth photo.jpg --point 300,200

Prints the scores and writes the picture with the masks to `demo_output/overlay.png`. The
environment (JAX for the CPU and this package, nothing with CUDA) is kept in `.demo/`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from environment import ROOT, Environment, SetupError, clean, require_python

SHIPPED_PRESET = "sam_tiny_demo"
# In scikit-image's photograph of Roman coins: one of them, and another.
COIN_POINT = (334.0, 43.0)
COIN_BOX = (314.0, 155.0, 381.0, 219.0)


def numbers(count):
    """A parser of `count` numbers with commas between them."""

    def read(text):
        try:
            values = tuple(float(word) for word in text.split(","))
        except ValueError:
            values = ()
        if len(values) != count:
            raise argparse.ArgumentTypeError(f"{count} numbers with commas expected, not {text!r}")
        return values

    return read


def preset_names():
    return sorted(path.parent.name for path in (ROOT / "presets").glob("*/config.json"))


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "photo", nargs="?", type=Path, help="a picture (default: scikit-image's old coins)"
    )
    parser.add_argument(
        "--model",
        default=SHIPPED_PRESET,
        help="weights: Meta's .pth, transformers' .safetensors, a preset folder, or the name of a "
        f"preset, of which all but {SHIPPED_PRESET}, the default, are downloaded: "
        f"{', '.join(preset_names())}",
    )
    parser.add_argument("--checkpoint", dest="model", help=argparse.SUPPRESS)  # an earlier name
    parser.add_argument("--point", type=numbers(2), metavar="X,Y", help="the click, in pixels")
    parser.add_argument("--box", type=numbers(4), metavar="X1,Y1,X2,Y2", help="the box, in pixels")
    parser.add_argument(
        "--out", type=Path, default=Path("demo_output"), help="folder for the picture"
    )
    parser.add_argument(
        "--folder", type=Path, default=ROOT / ".demo", help="place of the environment"
    )
    parser.add_argument(
        "--here", action="store_true", help="run with this Python, where the package is installed"
    )
    options = parser.parse_args(arguments)
    if options.model not in preset_names() and not Path(options.model).exists():
        parser.error(f"{options.model} is neither a file, nor a folder, nor a preset's name")
    if options.photo is not None and not options.photo.exists():
        parser.error(f"{options.photo} does not exist")
    return options


def install(environment):
    """JAX's plain wheel computes on the CPU; on Linux, PyTorch's would bring CUDA along."""
    constraints = str(ROOT / "constraints.txt")
    environment.pip("-c", constraints, "-e", f"{ROOT}[jax]", what="keras-sam with JAX (CPU)")
    environment.pip("-c", constraints, "scikit-image", what="scikit-image, for its photograph")


def run_inside(arguments, folder):
    """Sets up the environment if need be and runs this file there; gives its exit code."""
    environment = Environment(folder / "venv", folder / "setup.log")
    recipe = [(ROOT / name).read_text() for name in ("pyproject.toml", "constraints.txt")]
    try:
        environment.ensure([*recipe, Path(__file__).read_text()], install)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    command = [str(environment.python), __file__, "--here", *arguments]
    return subprocess.call(command, env=clean(KERAS_BACKEND="jax"))


def read_photograph(path):
    """The photograph as an RGB array and its name."""
    from keras_sam.images import load_image

    if path is not None:
        return load_image(path), path.name
    from skimage import data

    return load_image(data.coins()), "old coins (from scikit-image)"


def prompts_for(options, height, width):
    """The click and the box that were asked for, or ones that suit the photograph."""
    if options.photo is None:
        return options.point or COIN_POINT, options.box or COIN_BOX
    middle = (width / 2, height / 2)
    inner = (width * 0.2, height * 0.2, width * 0.8, height * 0.8)
    return options.point or middle, options.box or inner


def segment(options):
    """Loads the model, segments the photograph twice and writes the picture."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import numpy as np
    from PIL import Image

    import keras_sam
    from keras_sam.visualization import overlay

    started = time.monotonic()
    segmenter = keras_sam.SAMImageSegmenter.from_preset(options.model)
    print(
        f"model       {Path(options.model).name}, {segmenter.count_params():,} weights "
        f"({time.monotonic() - started:.1f} s to load)"
    )

    image, name = read_photograph(options.photo)
    height, width = image.shape[:2]
    point, box = prompts_for(options, height, width)
    predictor = keras_sam.SAMPredictor(segmenter)
    started = time.monotonic()
    predictor.set_image(image)
    print(f"photograph  {name}, {width} x {height} ({time.monotonic() - started:.1f} s to encode)")

    masks, scores, _ = predictor.predict(points=[point], labels=[1])
    print(f"click       at {point[0]:g},{point[1]:g}: three candidates")
    for mask, score in zip(masks, scores):
        print(f"              score {score:.3f}, {mask.mean():6.1%} of the picture")
    best = int(np.argmax(scores))
    clicked = overlay(image, masks[best], points=[point], scores=scores[best])

    masks, scores, _ = predictor.predict(boxes=box, multimask_output=False)
    print(f"box         {','.join(f'{value:g}' for value in box)}: one mask")
    print(f"              score {scores[0]:.3f}, {masks[0].mean():6.1%} of the picture")
    boxed = overlay(image, masks[0], boxes=[box], scores=scores[0])

    options.out.mkdir(parents=True, exist_ok=True)
    written = options.out / "overlay.png"
    Image.fromarray(np.hstack([clicked, boxed])).save(written)
    print(f"picture     {written} (left: the click's best mask, right: the box's)")


def main():
    require_python()
    options = parse()
    if not options.here:
        return run_inside(sys.argv[1:], options.folder.absolute())
    try:
        segment(options)
    except (ImportError, OSError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
