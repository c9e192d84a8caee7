"""Measures `sam_tiny_demo` with `keras-sam evaluate`: held-out scenes, and a photograph of coins.

    KERAS_BACKEND=torch python -m tools.measure_demo_preset FOLDER

writes both data sets into FOLDER, with a report and a plot beside each, and what was reached and
what was wanted into results.json.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from keras_sam import annotations
from keras_sam.cli import main as keras_sam_command
from tests.coins_truth import coins
from tools.demo_scenes import scene

HELD_OUT = 20_000  # training's seeds are (5, part, step, image); these are (HELD_OUT, image)
BARS = {
    "scenes": {"oracle_miou@1": 0.80, "box_miou": 0.88, "miou@9": 0.88},
    "coins": {"oracle_miou@1": 0.75, "box_miou": 0.85, "recall@70": 20 / 24},
}


def write_data_set(folder, images):
    """Images with their masks as a folder of PNGs and a COCO file."""
    photos = folder / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    annotated = []
    for number, (image, masks) in enumerate(images):
        name = f"{number:03d}.png"
        Image.fromarray(image).save(photos / name)
        records = [{"segmentation": mask.astype(bool)} for mask in masks]
        annotated.append(annotations.ImageAnnotations(name, image.shape[:2], records))
    annotations.write_coco(folder / "coco.json", annotated)


def measure(folder, model, *more):
    words = ["evaluate", "--data", folder / "coco.json", "--images", folder / "photos"]
    words += ["--model", model, "--out", folder / "report", "--overwrite", "--plot"]
    words += ["--max-clicks", "9", *more]
    code = keras_sam_command([str(word) for word in words])
    if code:
        raise SystemExit(code)
    return json.loads((folder / "report" / "summary.json").read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="sam_tiny_demo", help="default: sam_tiny_demo")
    parser.add_argument("--scenes", type=int, default=40)
    options = parser.parse_args()
    write_data_set(options.folder / "scenes", (scene((HELD_OUT, i)) for i in range(options.scenes)))
    write_data_set(options.folder / "coins", [coins()])
    results = {}
    for name, more in (("scenes", ()), ("coins", ("--everything",))):
        summary = measure(options.folder / name, options.model, *more)
        results[name] = {k: v for k, v in summary.items() if isinstance(v, float)}
        results[name]["objects"] = summary["objects"]
    for name, bars in BARS.items():
        for measure_name, bar in bars.items():
            reached = results[name][measure_name]
            sign = "reached" if np.round(reached, 3) >= np.round(bar, 3) else "MISSED"
            print(f"{name:7s} {measure_name:14s} {reached:.3f} of {bar:.3f} {sign}")
    (options.folder / "results.json").write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
