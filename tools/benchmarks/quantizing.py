"""The image encoder with 8-bit weights, and the IoU of its masks with those of float32."""

from functools import partial

from benchmarks import encoding, models
from benchmarks.case import Case, Job, LeftOut, Side, need


def int8(job: Job) -> Case:
    """Keras's own `quantize` of the encoder, beside float32."""
    sides = {
        "ours, float32": Side(partial(ours, job, False)),
        "ours, int8": Side(partial(ours, job, True)),
    }
    side = models.SIZES[job.size].side
    return Case(f"one image of {side} x {side} through the {job.size} encoder", sides)


def ours(job, is_quantized, shared):
    segmenter, frames = models.ours(job), models.frames(job)
    facts = {}
    if is_quantized:
        if job.backend == "openvino":
            raise LeftOut("Keras quantizes on the other backends")
        facts = {"mask IoU with float32, of 24 coins": mask_iou_of_coins()}
        segmenter.image_encoder.quantize("int8")

    def run():
        embeddings = segmenter.encode_frames(frames)["image_embeddings"]
        return {**encoding.facts(embeddings), **facts}

    return run


def mask_iou_of_coins():
    """The mean over the coins, each from its box, of the small preset that was trained."""
    need("skimage", "scipy")
    import numpy as np

    import keras_sam
    from tests.coins_truth import coins

    image, masks = coins()
    boxes = keras_sam.masks.mask_to_box(masks)
    found = []
    segmenter = keras_sam.SAMImageSegmenter.from_preset("sam_tiny_demo")
    for is_quantized in (False, True):
        if is_quantized:
            segmenter.image_encoder.quantize("int8")
        predictor = keras_sam.SAMPredictor(segmenter)
        predictor.set_image(image)
        found.append(predictor.predict(boxes=boxes, multimask_output=False)[0][:, 0])
    return float(np.mean(np.diag(keras_sam.masks.mask_iou(*found))))
