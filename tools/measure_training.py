"""Measures the memory and time of a training step, with recomputed encoder blocks and without.

    KERAS_BACKEND=torch python tools/measure_training.py --size base --side 512

Two steps on one box, from random weights, in a fresh process each way. The peak is of that
process's anonymous memory (Linux: RssAnon) above what it had with the model loaded and compiled,
so it holds gradients, the optimizer's state and everything that is kept for gradients. The time is
the second step's.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from memory import Peak

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SIZES = ("base", "large", "huge")


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--side", type=int, default=1024, help="of the image; default: 1024")
    parser.add_argument("--batch-size", type=int, default=1, help="default: 1")
    parser.add_argument("--in-process", choices=("keep", "recompute"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def measure(size: str, side: int, batch_size: int, recompute: bool) -> dict:
    import keras
    import numpy as np

    import keras_sam

    keras.utils.set_random_seed(0)  # the same weights both times, and so the same loss
    segmenter = keras_sam.SAMImageSegmenter.from_preset(
        f"sam_{size}_sa1b", load_weights=False, image_shape=(side, side)
    )
    segmenter.checkpoint_gradients(recompute)
    segmenter.compile(optimizer=keras.optimizers.SGD(1e-6))
    image = np.zeros((side, side, 3), "uint8")
    target = np.zeros((1, side, side), "uint8")
    target[0, side // 4 : side // 2, side // 4 : side // 2] = 1
    corner = [side // 4, side // 4, side // 2, side // 2]
    x = {"images": [image] * batch_size, "boxes": [[corner]] * batch_size}
    y = {"masks": [target] * batch_size}
    with Peak() as peak:
        for _ in range(2):
            start = time.perf_counter()
            loss = float(np.ravel(segmenter.train_on_batch(x, y))[0])
            seconds = time.perf_counter() - start
    return {"gib": peak.above / 2**30, "seconds": seconds, "loss": loss}


def main(arguments=None) -> int:
    args = parse(arguments)
    settings = (args.size, args.side, args.batch_size)
    if args.in_process:
        print(json.dumps(measure(*settings, args.in_process == "recompute")))
        return 0
    backend = os.environ.get("KERAS_BACKEND", "")
    print(f"{args.size}, {args.side} x {args.side}, batch {args.batch_size}, {backend}")
    for way in ("keep", "recompute"):
        words = ["--size", args.size, "--side", str(args.side)]
        words += ["--batch-size", str(args.batch_size), "--in-process", way]
        done = subprocess.run(
            [sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{way:>9}: {found['gib']:6.2f} GiB, {found['seconds']:6.1f} s a step, "
            f"loss {found['loss']:.4f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
