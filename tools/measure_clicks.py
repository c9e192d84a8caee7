#!/usr/bin/env python3
"""How long a click takes on the page of `keras-sam annotate`, beside the predictor's own.

    .check/venv/bin/python tools/measure_clicks.py
    .check/venv/bin/python tools/measure_clicks.py --photo truck.jpg --model sam_vit_b_01ec64.pth
    .check/venv/bin/python tools/measure_clicks.py --photo truck.jpg --image-shape 1024 1024

The same clicks are made in turn by the predictor in a thread of this process (`predictor`), by the
engine of the page, which makes run lengths of the masks, too (`engine`), by an HTTP client
(`http`), and in Chromium, from the pointer's release to the frame that shows the mask (`page`). It
prints the medians and their ratios to the predictor's, and how many runs the masks have, on
average: one of random weights has a hundred times those of an object. `--image-shape` loads a
preset at a larger frame, where a click takes longer, and the masks are still those of objects.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# From the release of the pointer to the end of the frame in which the mask was drawn first.
WATCH = """() => {
    const canvas = document.querySelector(".segment-canvas");
    window.waits = new Promise((resolve) => {
        canvas.addEventListener("pointerup", () => {
            const began = performance.now();
            const accept = document.getElementById("accept");
            const look = () => {
                if (accept.disabled) return;
                seen.disconnect();
                requestAnimationFrame(() => {
                    const channel = new MessageChannel();  // its message comes after the painting
                    channel.port1.onmessage = () => resolve(performance.now() - began);
                    channel.port2.postMessage(0);
                });
            };
            const seen = new MutationObserver(look);
            seen.observe(accept, { attributes: true, attributeFilter: ["disabled"] });
        }, { once: true });
    });
}"""


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="sam_tiny_demo", help="(default: sam_tiny_demo)")
    parser.add_argument(
        "--image-shape", type=int, nargs=2, metavar=("H", "W"), help="(default: the model's own)"
    )
    parser.add_argument("--photo", type=Path, help="a photograph (default: coins of scikit-image)")
    parser.add_argument("--clicks", type=int, default=40, help="clicks of each (default: 40)")
    return parser.parse_args(words)


def main(words: list[str]) -> int:
    options = parse(words)
    import numpy as np
    from PIL import Image
    from playwright.sync_api import sync_playwright

    import keras_sam
    from keras_sam.annotate.engine import Answer
    from keras_sam.annotate.worker import Worker
    from keras_sam.masks.rle import read_counts
    from tests.annotate.serving import serving
    from tools.browser import FLAGS, find_chromium

    frame = {"image_shape": options.image_shape} if options.image_shape else {}
    segmenter = keras_sam.SAMImageSegmenter.from_preset(options.model, **frame)
    with tempfile.TemporaryDirectory() as place, sync_playwright() as driver:
        folder = Path(place) / "photos"
        folder.mkdir()
        if options.photo is None:
            import skimage

            image = Image.fromarray(skimage.data.coins())
        else:
            image = Image.open(options.photo)
        image.convert("RGB").save(folder / "photo.png")
        width, height = image.size
        predictor = keras_sam.SAMPredictor(segmenter)
        predictor.set_image(folder / "photo.png")
        alone = Worker("the predictor's")
        browser = driver.chromium.launch(executable_path=find_chromium(), args=list(FLAGS))
        with serving(segmenter, folder, Path(place) / "out.json", ["object"]) as served:
            page = browser.new_page(viewport={"width": 1200, "height": 800})
            page.set_default_timeout(600_000)  # a large model encodes for a while
            page.goto(served.page)
            page.locator("#photo option").first.wait_for(state="attached")
            page.locator("#progress").wait_for(state="hidden")
            box = page.locator(".segment-canvas").bounding_box()
            scale = min((box["width"] - 24) / width, (box["height"] - 24) / height, 8)
            left = box["x"] + (box["width"] - width * scale) / 2
            top = box["y"] + (box["height"] - height * scale) / 2

            def by_predictor(point):
                alone.submit(lambda: predictor.predict(points=[point], labels=[1])).result()

            def by_engine(point):
                prompt = {"points": [point], "labels": [1]}
                answers.append(served.engine.predict("photo.png", **prompt).result())

            def by_http(point):
                prompt = {"photo": "photo.png", "points": [point], "labels": [1]}
                served.call("POST", "/api/predict", prompt)

            def timed(act):
                def run(point):
                    began = time.perf_counter()
                    act(point)
                    return (time.perf_counter() - began) * 1000

                return run

            def by_page(point):
                page.evaluate(WATCH)
                page.mouse.click(left + point[0] * scale, top + point[1] * scale)
                took = page.evaluate("window.waits")
                page.keyboard.press("Escape")
                return took

            ways = {
                "predictor": timed(by_predictor),
                "engine": timed(by_engine),
                "http": timed(by_http),
                "page": by_page,
            }
            answers: list[Answer] = []
            took: dict[str, list[float]] = {name: [] for name in ways}
            points = np.random.default_rng(0).uniform(0.1, 0.9, (options.clicks + 3, 2))
            for number, (x, y) in enumerate(points.tolist()):
                for name, act in ways.items():  # in turn, so that all have the same neighbours
                    time.sleep(0.1)  # until the browser has painted what came before
                    ms = act([x * width, y * height])
                    if number >= 3:  # the first ones compile and fill caches
                        took[name].append(ms)
        browser.close()
        alone.close()
    shown = [answer.candidates[answer.best]["segmentation"] for answer in answers]
    runs = statistics.mean(len(read_counts(mask)[0]) // 2 for mask in shown)
    print(f"{width} x {height} pixels, masks of {runs:.0f} runs")
    base = statistics.median(took["predictor"])
    for name, all_ms in took.items():
        median = statistics.median(all_ms)
        print(f"{name:10} {median:7.1f} ms  {median / base:.2f} x the predictor's click")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
