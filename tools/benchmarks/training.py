"""A training step: of the decoder alone on embeddings, and of everything at a small frame."""

from functools import partial

from benchmarks import models
from benchmarks.case import Case, Job, LeftOut, Side
from benchmarks.decoding import embedding

OBJECTS = 8
ALONE, WHOLE = "decoder alone", "everything"
RATE = 1e-5


def train(job: Job) -> Case:
    """One image, one box for each object, SAM's loss, AdamW."""
    return Case(
        f"a step on {OBJECTS} boxes; everything at {_small_side(job)} x {_small_side(job)}",
        {"ours": Side(partial(ours, job)), "Meta": Side(partial(meta, job))},
        variants={ALONE: 1, WHOLE: 1},
    )


def _small_side(job):
    return 64 if job.quick else 256


def objects(side):
    """Boxes, float32 `(P, 4)`, and the discs in them, uint8 `(P, side, side)`."""
    import numpy as np

    rng = np.random.default_rng(0)
    size = rng.uniform(0.2, 0.5, (OBJECTS, 1)) * side
    centre = rng.uniform(size / 2, side - size / 2, (OBJECTS, 2))
    boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    pixels = np.arange(side) + 0.5
    x, y = (pixels - centre[:, axis, None] for axis in (0, 1))  # (P, side)
    inside = np.hypot(x[:, None, :], y[:, :, None]) < size[:, :, None] / 2
    return boxes.astype("float32"), inside.astype("uint8")


def picture(side):
    from tests.tiny import photograph

    return photograph((side, side))


def ours(job, shared):
    if job.backend == "openvino":
        raise LeftOut("this backend only predicts")
    import keras
    import numpy as np

    def step(segmenter, side, **x):
        boxes, targets = objects(side)
        x, y = {**x, "boxes": boxes[None]}, {"masks": targets[None]}
        segmenter.compile(optimizer=keras.optimizers.AdamW(RATE), metrics=None)

        def run():
            return {"loss": float(np.ravel(segmenter.train_on_batch(x, y))[0])}

        return run

    decoder = models.ours(job)
    decoder.freeze("image_encoder")
    embeddings = embedding(job).transpose(0, 2, 3, 1)
    side = _small_side(job)
    return {
        ALONE: step(decoder, models.SIZES[job.size].side, image_embeddings=embeddings),
        WHOLE: step(models.ours(job, image_shape=(side, side)), side, images=[picture(side)]),
    }


def meta(job, shared):
    """Meta's model, with the loss written down in torch."""
    decoder, whole = models.meta(job), models.meta(job, _small_side(job))
    import torch

    device = models.torch_device()
    embeddings = torch.from_numpy(embedding(job)).to(device)
    pixels = torch.from_numpy(picture(_small_side(job))).to(device).permute(2, 0, 1)[None]

    def step(model, side, embed):
        boxes, targets = (torch.from_numpy(x).to(device) for x in objects(side))
        trained = [values for values in model.parameters() if values.requires_grad]
        optimizer = torch.optim.AdamW(trained, RATE)

        def run():
            sparse, dense = model.prompt_encoder(points=None, boxes=boxes, masks=None)
            logits, scores = model.mask_decoder(
                image_embeddings=embed(),
                image_pe=model.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
            small = torch.nn.functional.interpolate(
                targets[:, None].float(), logits.shape[2:], mode="area"
            )
            loss = loss_of(logits[:, 0], scores[:, 0], (small[:, 0] >= 0.5).float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return {"loss": loss.item()}

        return run

    decoder.image_encoder.requires_grad_(False)
    return {
        ALONE: step(decoder, models.SIZES[job.size].side, lambda: embeddings),
        WHOLE: step(whole, _small_side(job), lambda: whole.image_encoder(whole.preprocess(pixels))),
    }


def loss_of(logits, scores, targets):
    """20 x focal + dice + squared error of the predicted IoU, the mean over the objects."""
    import torch

    def total(x):
        return x.sum((1, 2))

    found = logits.sigmoid()
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, targets, reduction="none"
    )
    miss = found + targets - 2 * found * targets
    focal = ((0.75 - 0.5 * targets) * miss**2 * entropy).mean((1, 2))
    dice = 1 - (2 * total(found * targets) + 1) / (total(found) + total(targets) + 1)
    binary = (logits.detach() > 0).float()
    both = total(binary * targets)
    iou = both / (total(binary) + total(targets) - both).clamp(min=1)
    return (20 * focal + dice + (scores - iou) ** 2).mean()
