"""An image and a click beside another program that takes a whole processor core."""

import contextlib
import functools
import subprocess
import sys
import time

from benchmarks import models
from benchmarks.case import Case, Job, Side, need

BACKENDS = ("torch", "jax", "tensorflow", "openvino")
NEIGHBOUR = "print(flush=True)\nwhile True: pass"


def busy(job: Job) -> Case:
    """`set_image` and a click with the small preset, whose weights come with the package.

    PyTorch's threads take their settings from what is imported first.
    """
    sides = {f"on {name}": _side(job, name) for name in BACKENDS}
    sides["on torch, imported before us"] = _side(job, "torch", torch_first=True)
    for setting in ("OMP_WAIT_POLICY=passive", "GOMP_SPINCOUNT=300000"):  # which is torch's own
        sides[f"on torch, {setting}"] = _side(job, "torch", dict([setting.split("=")]))
    return Case(
        "`set_image` and a click, beside a busy loop on another core",
        sides,
        variants={"idle": 1, "busy": 1},
        unit="ms",
    )


def _side(job, backend, variables=None, torch_first=False):
    prepare = functools.partial(ours, job, backend, torch_first)
    return Side(prepare, {"KERAS_BACKEND": backend, **(variables or {})})


def ours(job, backend, torch_first, shared):
    need(backend)
    if torch_first:
        import torch  # noqa: F401
    import keras_sam

    segmenter = keras_sam.SAMImageSegmenter.from_preset("sam_tiny_demo")
    predictor = keras_sam.SAMPredictor(segmenter)
    image = models.photograph(job)
    h, w = models.photo_size(job)

    def run(beside):
        with beside():
            began, worked = time.perf_counter(), time.process_time()
            predictor.set_image(image)
            masks, _, _ = predictor.predict(points=[[w // 2, 3 * h // 5]], labels=[1])
            spent = time.perf_counter() - began, time.process_time() - worked
        measured = dict(zip(("seconds", "cpu_seconds"), spent, strict=True))
        return {"measured": measured, "pixels": int(masks.sum())}

    beside = {"idle": contextlib.nullcontext, "busy": neighbour}
    return {name: functools.partial(run, context) for name, context in beside.items()}


@contextlib.contextmanager
def neighbour():
    """Another process, which computes without end while the block runs."""
    loop = subprocess.Popen([sys.executable, "-c", NEIGHBOUR], stdout=subprocess.PIPE)
    try:
        loop.stdout.readline()  # it runs
        yield
    finally:
        loop.kill()
        loop.wait()
        loop.stdout.close()
