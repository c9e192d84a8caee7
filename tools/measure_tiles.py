"""Measures how much memory a large picture takes beyond the loaded model.

    python tools/measure_tiles.py --sides 5000 10000 20000 40000 --folder /tmp/large

Makes a zarr of `side` by 3/4 `side` pixels with objects all over it, and segments it with
`sam_tiny_demo` tile by tile into a format, each side in a process of its own. Prints the peak of
the process's memory above what it had with the model loaded, and what was done.
`--points` are few by default: the peak depends on what is held at once, not on how many clicks
there are, and every window is read, encoded, decoded, joined and written all the same.
"""

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

CHUNK = 512
CELL = 160  # pixels between the objects' centres
PERIOD = 5120  # a multiple of 8 cells and of a chunk


def make(path, height, width):
    """A picture with an ellipse in every cell of a grid, and larger discs here and there."""
    import zarr

    array = zarr.create_array(
        str(path),
        shape=(height, width, 3),
        chunks=(CHUNK, CHUNK, 3),
        dtype="uint8",
        dimension_names=("y", "x", "c"),
        compressors=None,
    )
    for y in range(0, height, CHUNK):
        for x in range(0, width, CHUNK):
            part = drawn(x % PERIOD, y % PERIOD)[: height - y, : width - x]
            array[y : y + part.shape[0], x : x + part.shape[1]] = part


@functools.lru_cache(maxsize=(PERIOD // CHUNK) ** 2)
def drawn(x0, y0):
    """A chunk of the picture, which repeats every `PERIOD` pixels."""
    rng = np.random.default_rng([x0, y0])
    y, x = np.mgrid[y0 : y0 + CHUNK, x0 : x0 + CHUNK]
    row, column = y // CELL, x // CELL
    # A hash of the cell gives its object's radii and colour; some are larger than a halo.
    key = (row * 73856093) ^ (column * 19349663)
    radii = 25 + key % 50, 25 + (key // 64) % 50
    inside = ((y % CELL - CELL / 2) / radii[0]) ** 2 + ((x % CELL - CELL / 2) / radii[1]) ** 2 < 1
    big_row, big_column = y // (8 * CELL), x // (8 * CELL)
    big = np.hypot(y % (8 * CELL) - 4 * CELL, x % (8 * CELL) - 4 * CELL) < 2.2 * CELL
    big &= (big_row + big_column) % 3 == 0
    colours = np.stack([(key // n) % 200 for n in (1, 7, 61)], axis=-1) + 50
    pixels = np.where(inside[..., None], colours, 30)
    pixels = np.where(big[..., None], [200, 90, 40], pixels)
    return np.clip(pixels + rng.integers(-6, 7, pixels.shape), 0, 255).astype("uint8")


def resident():
    """Bytes of memory of this process."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


def measured(options, side):
    """Segments one picture in this process, and returns what it took."""
    import keras_sam
    from keras_sam import annotations
    from keras_sam.tiles import LabelMap, TiledMaskGenerator, open_labels, write_label_tiff

    path = options.folder / f"picture_{side}.zarr"
    segmenter = keras_sam.SAMImageSegmenter.from_preset(
        "sam_tiny_demo", image_shape=(options.frame, options.frame)
    )
    generator = TiledMaskGenerator(
        segmenter,
        tile_shape=options.tile,
        halo=options.halo,
        points_per_side=options.points,
        pred_iou_thresh=options.pred_iou_thresh,
        stability_score_thresh=options.stability_score_thresh,
    )
    picture = keras_sam.tiles.open_picture(path)
    peak, stop = [0], threading.Event()

    def watch():
        while not stop.wait(0.02):
            peak[0] = max(peak[0], resident())

    before, began, cpu = resident(), time.monotonic(), time.process_time()
    threading.Thread(target=watch, daemon=True).start()
    counts = {"tiles": 0, "masks": 0, "runs": 0}

    def counted(records):
        for record in records:
            counts["masks"] += 1
            counts["runs"] += len(record["segmentation"]["counts"])
            yield record

    tiles = options.folder / f"tiles_{side}"
    shutil.rmtree(tiles, ignore_errors=True)  # of an earlier run: its tiles would not be encoded
    records = counted(
        generator.stream(picture, tiles, lambda n: counts.__setitem__("tiles", counts["tiles"] + n))
    )
    out = options.folder / f"labels_{side}.zarr"
    with LabelMap(out, picture) as labels:
        for record in records:
            labels.paint(record)
    write_label_tiff(options.folder / f"labels_{side}.tif", open_labels(out), picture)
    again = generator.stream(picture, tiles)  # of the tiles on disk
    image = annotations.ImageAnnotations(path.name, picture.size, again, image_id=1)
    annotations.write_coco(options.folder / f"coco_{side}.json", [image])
    stop.set()
    return {
        "side": side,
        "size": list(picture.size),
        "gigabytes_of_pixels": round(3 * picture.size[0] * picture.size[1] / 1e9, 2),
        **counts,
        "before_gb": round(before / 1e9, 3),
        "peak_above_gb": round((peak[0] - before) / 1e9, 3),
        "wall_s": round(time.monotonic() - began),
        "processor_s": round(time.process_time() - cpu),
    }


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[5000, 10000, 20000, 40000])
    parser.add_argument("--folder", type=Path, required=True, help="for pictures and results")
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--halo", type=int, default=256)
    parser.add_argument("--frame", type=int, default=512, help="side of the model's frame")
    parser.add_argument("--points", type=int, default=4, help="clicks along each side of a window")
    parser.add_argument("--pred-iou-thresh", type=float, default=0.3)
    parser.add_argument("--stability-score-thresh", type=float, default=0.3)
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main():
    options = parse()
    options.folder.mkdir(parents=True, exist_ok=True)
    for side in options.sides:
        if options.in_process:
            print(json.dumps(measured(options, side)), flush=True)
            continue
        path = options.folder / f"picture_{side}.zarr"
        if not path.exists():
            make(path, side * 3 // 4, side)
        command = [sys.executable, *sys.argv, "--in-process", "--sides", str(side)]
        subprocess.run(command, check=True, env={"KERAS_BACKEND": "torch", **os.environ})


if __name__ == "__main__":
    main()
