#!/usr/bin/env python3
"""Draws the pictures of the documentation: `sam_tiny_demo` on coins and on drawn scenes.

    python tools/gallery.py                 replaces docs/pictures/
    python tools/gallery.py --out FOLDER    draws them elsewhere

Runs where keras_sam, a backend and scikit-image are installed, such as the environment of
`tools/check.py`. The checks draw every picture again and compare it with the one that is kept
(`tests/test_gallery.py`). The photograph is scikit-image's, of Roman coins.
"""

from __future__ import annotations

import argparse
import functools
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import keras_sam  # noqa: E402
from keras_sam.visualization import candidates, overlay  # noqa: E402

MODEL = "sam_tiny_demo"
QUALITY = 80  # of JPEG
SCENE = (13, 5)  # a seed that training never used
CLICK = [[101.0, 196.0]]
BESIDE = [[101.0, 196.0], [128.0, 196.0]]


@functools.cache
def segmenter() -> keras_sam.SAMImageSegmenter:
    return keras_sam.SAMImageSegmenter.from_preset(MODEL)


@functools.cache
def coins() -> np.ndarray:
    from skimage import data

    return np.stack([data.coins()] * 3, axis=-1)


@functools.cache
def predictor() -> keras_sam.SAMPredictor:
    """One that knows the coins."""
    made = keras_sam.SAMPredictor(segmenter())
    made.set_image(coins())
    return made


def click():
    """Three candidates of one click."""
    masks, scores, _ = predictor().predict(points=CLICK, labels=[1])
    return candidates(coins(), masks, scores, points=CLICK)


def refine():
    """The largest candidate, and the mask after a second click that says where the coin ends."""
    masks, _, logits = predictor().predict(points=CLICK, labels=[1])
    before = overlay(coins(), masks[0], points=CLICK)
    masks, _, _ = predictor().predict(
        points=BESIDE, labels=[1, 0], masks=logits[0], multimask_output=False
    )
    return beside(before, overlay(coins(), masks, points=BESIDE, labels=[1, 0]))


def boxes():
    """One mask for each of 24 boxes, decoded in one call."""
    from tests.coins_truth import coins as known

    found = [keras_sam.masks.mask_to_box(mask) for mask in known()[1]]
    masks, _, _ = predictor().predict(boxes=found, multimask_output=False)
    return overlay(coins(), masks[:, 0], boxes=found)


def everything():
    """All coins, found by a grid of clicks."""
    generator = keras_sam.SAMAutomaticMaskGenerator(segmenter(), pred_iou_thresh=0.85)
    return overlay(coins(), generator.generate(coins()))


def scene():
    """A drawn scene as training never had it, and its objects, each from its box."""
    from tools.demo_scenes import scene as draw_scene

    image, known = draw_scene(SCENE, "easy")
    made = keras_sam.SAMPredictor(segmenter())
    made.set_image(image)
    found = [keras_sam.masks.mask_to_box(mask) for mask in known]
    masks, _, _ = made.predict(boxes=found, multimask_output=False)
    return beside(image, overlay(image, masks[:, 0], boxes=found))


def too_dark():
    """A camera's 12 bits in a file of 16, as they are and with `value_range=(0, 4095)`."""
    camera = (coins().astype("uint16") * 12) + 300
    converter = segmenter().preprocessor.image_converter
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that all values are small is what the picture shows
        dark = converter.read(camera)
    bright = type(converter)(value_range=(0, 4095)).read(camera)
    return beside(
        *(Image.fromarray(np.asarray(p, "float32").astype("uint8")) for p in (dark, bright))
    )


def beside(*pictures) -> Image.Image:
    """Pictures in a row, scaled to the height of the first."""
    pictures = [
        picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        for picture in pictures
    ]
    height, gap = pictures[0].height, 8
    scaled = [p.resize((round(p.width * height / p.height), height)) for p in pictures]
    width = sum(p.width for p in scaled) + gap * (len(scaled) - 1)
    row, x = Image.new("RGB", (width, height), "white"), 0
    for picture in scaled:
        row.paste(picture, (x, 0))
        x += picture.width + gap
    return row


PICTURES: dict[str, Callable] = {
    function.__name__: function for function in (click, refine, boxes, everything, scene, too_dark)
}


def draw(name: str, folder: Path) -> Path:
    """Draws one picture and gives its file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jpg"
    picture = PICTURES[name]()
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.convert("RGB").save(path, quality=QUALITY, optimize=True)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures")
    options = parser.parse_args()
    for name in PICTURES:
        path = draw(name, options.out)
        print(f"{path} ({path.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    main()
