"""Run lengths of many masks, which need no model."""

from functools import partial

from benchmarks import models
from benchmarks.case import Case, Job, Side, need
from benchmarks.sizes import meta_code


def rle(job: Job) -> Case:
    """Of blobs as a model makes them; Meta's code and ours give the same numbers."""
    h, w = models.photo_size(job)
    sides = {"ours": ours, "Meta": meta, "pycocotools": pycocotools}
    return Case(
        f"run lengths of {_count(job)} masks of {h} x {w}",
        {name: Side(partial(prepare, job)) for name, prepare in sides.items()},
        repeats=15,
        unit="ms",
    )


def _count(job):
    return 8 if job.quick else 64


def masks(job):
    """Bool `(M, H0, W0)`: blobs of all sizes, from logits of 256 x 256."""
    import numpy as np

    from keras_sam.geometry import ResizePlan

    rng = np.random.default_rng(0)
    size = models.photo_size(job)
    plan, side = ResizePlan(size, 1024), 256
    y, x = np.mgrid[:side, :side]
    high = side * size[0] / max(size)
    stack = np.empty((_count(job), *size), bool)
    for mask in stack:
        radius = np.exp(rng.uniform(np.log(6), np.log(90)))
        angle = np.arctan2(y - (cy := rng.uniform(0, high)), x - (cx := rng.uniform(0, side)))
        waves = sum(
            rng.normal(0, 0.4 / n) * np.cos(n * angle + rng.uniform(0, 6)) for n in (2, 3, 5)
        )
        noise = 0.02 * rng.standard_normal((side, side))
        logits = 1 + waves + noise - np.hypot(x - cx, y - cy) / radius
        mask[:] = plan.masks_to_original(logits.astype("float32")) > 0
    return stack


def ours(job, shared):
    from keras_sam.masks import encode_rle

    stack = masks(job)
    return lambda: {"runs": count_runs(encode_rle(stack, compressed=False))}


def meta(job, shared):
    meta_code()
    import torch
    from segment_anything.utils.amg import mask_to_rle_pytorch

    stack = torch.from_numpy(masks(job))
    return lambda: {"runs": count_runs(mask_to_rle_pytorch(stack))}


def pycocotools(job, shared):
    need("pycocotools")
    import numpy as np
    from pycocotools import mask as coco

    stack = masks(job)

    def run():
        fortran = np.asfortranarray(stack.transpose(1, 2, 0).view("uint8"))
        return {"strings": len(coco.encode(fortran))}

    return run


def count_runs(rles):
    return sum(len(rle["counts"]) for rle in rles)
