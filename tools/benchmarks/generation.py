"""The mask generator: all masks of a photograph, and the memory that they take."""

from functools import partial

from benchmarks import models
from benchmarks.case import Case, Job, Side
from benchmarks.sizes import meta_code

# A third of the candidates is good enough, as of trained weights on a photograph. No mask is
# dropped for its stability: that of random weights' masks is arbitrary.
GOOD_ENOUGH = 1 / 3


def everything(job: Job) -> Case:
    """All masks of a photograph, as both packages make them."""
    sides = {"ours": Side(partial(ours, job))}
    if job.backend in ("tensorflow", "torch"):  # OpenVINO chooses by itself; JAX gains nothing
        sides["ours, bfloat16"] = Side(partial(ours, job, precision="bfloat16"))
    sides["Meta"] = Side(partial(meta, job))
    return Case(
        f"all masks of a photograph, {_points(job) ** 2} points",
        sides,
        repeats=2 if job.quick else 3,
        warmups=0,
    )


def _points(job):
    return 4 if job.quick else 16


def _settings(job, threshold):
    return {
        "points_per_side": _points(job),
        "pred_iou_thresh": threshold,
        "stability_score_thresh": 0.0,
        "output_mode": "uncompressed_rle",
    }


def ours(job, shared, precision=None):
    import numpy as np

    import keras_sam

    image, segmenter = models.photograph(job), models.ours(job, precision)
    generator = keras_sam.SAMAutomaticMaskGenerator(segmenter, **_settings(job, 2.0))
    # The first run compiles, and finds the threshold that a third of the candidates exceeds.
    records = generator.generate(image, keep_candidates=True)
    scores = np.concatenate(
        [batch.scores.reshape(-1) for _, batches in records.candidates.crops() for batch in batches]
    )
    threshold = float(np.quantile(scores, 1 - GOOD_ENOUGH))
    shared.setdefault("pred_iou_thresh", threshold)
    generator = keras_sam.SAMAutomaticMaskGenerator(segmenter, **_settings(job, threshold))
    good = int((scores > threshold).sum())

    def run():
        return {"candidates": len(scores), "good": good, "records": len(generator.generate(image))}

    return run


def meta(job, shared):
    segment_anything = meta_code()
    image, settings = models.photograph(job), _settings(job, shared["pred_iou_thresh"])
    generator = segment_anything.SamAutomaticMaskGenerator(models.meta(job), **settings)
    return lambda: {"records": len(generator.generate(image))}


def memory(job: Job) -> Case:
    """Every candidate survives the thresholds, which is the most that can be in memory."""
    sides = {"set_image alone": Side(partial(encode, job))}
    for points in (2, 4) if job.quick else (8, 16, 32):
        sides[f"{points} x {points} points"] = Side(partial(generate, job, points))
    about = "the mask generator's, by the number of points"
    return Case(about, sides, repeats=1, warmups=0, together=False)


def encode(job, shared):
    import keras_sam

    image, predictor = models.photograph(job), keras_sam.SAMPredictor(models.ours(job))

    def run():
        predictor.set_image(image)
        return {}

    return run


def generate(job, points, shared):
    import keras_sam

    image, segmenter = models.photograph(job), models.ours(job)
    generator = keras_sam.SAMAutomaticMaskGenerator(
        segmenter,
        points_per_side=points,
        pred_iou_thresh=0.0,
        stability_score_thresh=0.0,
        output_mode="coco_rle",
    )
    return lambda: {"candidates": 3 * points**2, "records": len(generator.generate(image))}
