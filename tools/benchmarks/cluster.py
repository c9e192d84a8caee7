"""Photographs per second with one worker of Ray and with two, of one thread each."""

import atexit
import contextlib
import os
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.case import Case, Job, Side, need
from benchmarks.files import need_file


def ray(job: Job) -> Case:
    """The mask generator's photographs, from the first that is done while all workers work."""
    sides = {
        f"{words}": Side(partial(segment, job, count), {"OMP_NUM_THREADS": "1"})
        for count, words in ((1, "one worker"), (2, "two workers"))
    }
    model = "`sam_tiny_demo`" if job.quick else "ViT-B"
    about = f"a photograph in `everything --ray`, {model}, {_points(job) ** 2} points"
    return Case(about, sides, repeats=2 if job.quick else 3, warmups=0, unit="s")


def _points(job):
    return 4 if job.quick else 8


def _photos(job):
    """A folder of drawn scenes, made by the side that comes first."""
    from PIL import Image

    from tests.scenes import scene

    folder = Path(job.folder) / "photos"
    if not folder.is_dir():
        folder.mkdir()
        for seed in range(48 if job.quick else 10):
            pixels = scene((480, 640), (8, 6), seed)[0]
            Image.fromarray(pixels).save(folder / f"{seed}.png")
    return folder


def segment(job, workers, shared):
    need("ray", "pyarrow")
    from keras_sam.ray import cluster
    from keras_sam.ray.results import Results
    from keras_sam.ray.run import Plan, Run
    from keras_sam.ray.sources import Source

    folder = _photos(job)
    model = "sam_tiny_demo" if job.quick else str(need_file(job, "sam.pth"))
    plan = Plan(
        {"model": model, "backend": job.backend},
        {
            "points_per_side": _points(job),
            "pred_iou_thresh": 0.45,
            "stability_score_thresh": 0.5,
        },
        workers=workers,
    )
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    connected = stack.enter_context(cluster.connected("local", 2))

    def run():
        done = []  # when, once all workers work

        def advanced():
            if made.ready == workers:
                done.append(time.perf_counter())

        with tempfile.TemporaryDirectory() as out, Results(f"{out}/masks") as results:
            results.start({})
            made = Run(connected, plan, results, advanced=advanced)
            made.segment(Source([str(folder)]))
            results.finish()
            shards = sum(path.stat().st_size for path in Path(out).rglob("*.parquet"))
            masks = results.totals()[1]
        if made.failed:
            raise RuntimeError(f"{made.failed} photographs failed")
        spent = (done[-1] - done[0]) / (len(done) - 1)
        load = round(os.getloadavg()[0], 1)
        facts = {"photographs": len(done) - 1, "masks": masks, "bytes": shards, "load": load}
        return {**facts, "measured": {"seconds": spent}}

    return run
