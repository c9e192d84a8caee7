"""The predictor: a click on a photograph that is encoded already."""

from functools import partial

from benchmarks import models
from benchmarks.case import Case, Job, Side
from benchmarks.sizes import meta_code


def click(job: Job) -> Case:
    """From the click to three masks of the photograph's size."""
    sides = {}
    for p in models.PRECISIONS:
        sides[f"ours, {p}"] = Side(partial(ours, job, p), models.precision_of(p))
    sides["Meta, float32"] = Side(partial(meta, job))
    h, w = models.photo_size(job)
    return Case(f"after `set_image`, three masks of {h} x {w}", sides, repeats=15, unit="ms")


def family(job: Job) -> Case:
    """A click with each of our models; SAM-HQ's answer is one mask."""
    files = {"SAM": "sam.pth", "MobileSAM": "mobile", "SAM-HQ": "hq", "SAM 2.1 tiny": "sam2"}
    sides = {f"ours, {n}": Side(partial(ours, job, None, file=f)) for n, f in files.items()}
    h, w = models.photo_size(job)
    return Case(f"after `set_image`, masks of {h} x {w}", sides, repeats=15, unit="ms")


def _click(job):
    h, w = models.photo_size(job)
    return [[w // 2, 3 * h // 5]]


def ours(job, precision, shared, file="sam.pth"):
    import keras_sam

    predictor = keras_sam.SAMPredictor(models.ours(job, precision, file=file))
    predictor.set_image(models.photograph(job))
    points = _click(job)
    return lambda: facts(predictor.predict(points=points, labels=[1])[0])


def meta(job, shared):
    segment_anything = meta_code()
    import numpy as np

    predictor = segment_anything.SamPredictor(models.meta(job))
    predictor.set_image(models.photograph(job))
    points = np.array(_click(job))
    return lambda: facts(predictor.predict(points, np.array([1]))[0])


def facts(masks):
    """The same for all that have the same weights: that they did the same work."""
    return {"pixels": int(masks.sum())}
