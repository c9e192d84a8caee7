"""Measures the memory of the driver of `keras-sam everything --ray` by the number of photographs.

    KERAS_BACKEND=torch python tools/measure_ray_memory.py --counts 250 1000 4000

Segments folders of small photographs with a tiny model in two workers of Ray, one after the other
in one cluster, and samples the anonymous memory of this process, in which nothing is segmented
(Linux). `--max-growth` fails if the last peak is higher than the first by more MB.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from memory import Peak

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", type=int, nargs="+", default=[250, 1000, 4000], metavar="N")
    parser.add_argument("--max-growth", type=float, metavar="MB")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    from keras_sam.ray import cluster
    from keras_sam.ray.results import Results
    from keras_sam.ray.run import Plan, Run
    from keras_sam.ray.sources import Source

    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "model")
        plan = Plan(
            {"model": model, "backend": os.environ.get("KERAS_BACKEND")},
            {"points_per_side": 2, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0},
            workers=2,
        )
        with cluster.connected("local", 2) as ray:
            for count in options.counts:
                photos = write_photos(Path(folder), count)
                began, worked = time.monotonic(), time.process_time()
                with Peak() as peak, Results(f"{folder}/out{count}") as results:
                    results.start({})
                    run = Run(ray, plan, results)
                    run.segment(Source([str(photos)]))
                    results.finish()
                    results.write_coco()
                    done, masks, failed = results.totals()
                if (done, failed) != (count, 0):
                    raise SystemExit(f"{done} of {count} photographs are done")
                peaks.append((peak.before + peak.above) / 1e6)
                size = sum(
                    path.stat().st_size for path in Path(f"{folder}/out{count}").glob("masks-*")
                )
                print(
                    f"{count} photographs, {masks} masks: peak {peaks[-1]:.1f} MB, shards "
                    f"{size / 1e6:.2f} MB, {time.monotonic() - began:.0f} s, of this process's "
                    f"processor {1000 * (time.process_time() - worked) / count:.1f} ms each",
                    flush=True,
                )
    growth = peaks[-1] - peaks[0]
    print(f"growth {growth:.1f} MB, load {os.getloadavg()[0]:.1f}")
    return int(options.max_growth is not None and growth > options.max_growth)


def write_model(folder: Path) -> str:
    """In a process of its own: the driver has no Keras."""
    code = "import sys; from tests.tiny import tiny_segmenter; "
    code += "tiny_segmenter().save_to_preset(sys.argv[1])"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(folder)], check=True, cwd=ROOT)
    return str(folder)


def write_photos(folder: Path, count: int) -> Path:
    """Links to one small photograph: each is read, hashed and segmented as any other."""
    import numpy as np
    from PIL import Image

    photos = folder / f"photos{count}"
    photos.mkdir()
    first = folder / f"first{count}.png"
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), "uint8")
    Image.fromarray(pixels).save(first)
    for number in range(count):
        os.link(first, photos / f"{number:07d}.png")
    return photos


if __name__ == "__main__":
    sys.exit(main())
