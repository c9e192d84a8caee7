"""Prompt encoder and mask decoder, for clicks on one image whose embedding is given."""

from functools import partial
from pathlib import Path

from benchmarks import models
from benchmarks.case import Case, Job, Side
from benchmarks.files import PROMPTS, need_file


def decoder(job: Job) -> Case:
    """From numpy to numpy: the logits of three masks, and their scores."""
    sides = {}
    for p in models.PRECISIONS:
        sides[f"ours, {p}"] = Side(partial(ours, job, p), models.precision_of(p))
    sides["Meta, float32"] = Side(partial(meta, job))
    for p in models.PRECISIONS:
        sides[f"transformers, {p}"] = Side(partial(transformers, job, p))
    for p in models.PRECISIONS:
        sides[f"Meta's ONNX in OpenVINO, {p}"] = Side(partial(in_openvino, job, p))
    return Case(
        "one click each, on one image",
        sides,
        variants={_variant(count): count for count in PROMPTS},
        unit="ms per prompt",
    )


def _variant(count):
    return f"{count} prompt{'s' * (count > 1)}"


def _runs(run, job):
    """A function to time for each number of prompts: `run` of clicks `(P, 1, 2)`."""
    import numpy as np

    side = models.SIZES[job.size].side
    clicks = np.random.default_rng(1).uniform(0, side, (max(PROMPTS), 1, 2)).astype("float32")
    return {_variant(count): partial(_timed, run, clicks[:count]) for count in PROMPTS}


def _timed(run, clicks):
    # The same for all that have the same weights: that they did the same work.
    # Mask by mask, as it takes memory as well.
    masks = run(clicks)
    masks = masks.reshape(-1, *masks.shape[-2:])
    return {"deviation": sum(float(mask.std()) for mask in masks) / len(masks)}


def embedding(job):
    """As the encoders of torch return it, float32 `(1, C, Eh, Ew)`."""
    import numpy as np

    sizes = models.SIZES[job.size]
    grid = sizes.side // sizes.patch
    return np.random.default_rng(0).standard_normal((1, 256, grid, grid), "float32")


def ours(job, precision, shared):
    import numpy as np

    segmenter = models.ours(job, precision)
    embeddings = np.ascontiguousarray(embedding(job).transpose(0, 2, 3, 1))
    frame = [segmenter.image_shape[:2]]

    def run(clicks):
        labels = np.ones((1, *clicks.shape[:2]), "int32")
        prompts = {"points": clicks[None], "labels": labels}
        outputs = segmenter.decode(embeddings, prompts, frame, multimask_output=True)
        return outputs["masks"][0]

    return _runs(run, job)


def meta(job, shared):
    model = models.meta(job)
    import torch

    device = models.torch_device()
    embeddings = torch.from_numpy(embedding(job)).to(device)

    def run(clicks):
        points = torch.from_numpy(clicks).to(device)
        labels = torch.ones(points.shape[:2], device=device)
        with torch.inference_mode():
            sparse, dense = model.prompt_encoder((points, labels), boxes=None, masks=None)
            masks, _ = model.mask_decoder(
                image_embeddings=embeddings,
                image_pe=model.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )
        return masks.cpu().numpy()

    return _runs(run, job)


def transformers(job, precision, shared):
    model = models.transformers(job, precision)
    import torch

    device, dtype = models.torch_device(), getattr(torch, precision)
    embeddings = torch.from_numpy(embedding(job)).to(device, dtype)

    def run(clicks):
        points = torch.from_numpy(clicks[None]).to(device, dtype)
        labels = torch.ones(points.shape[:3], dtype=torch.int64, device=device)
        with torch.inference_mode():
            outputs = model(image_embeddings=embeddings, input_points=points, input_labels=labels)
        return outputs.pred_masks.float().cpu().numpy()

    return _runs(run, job)


def in_openvino(job, precision, shared):
    import numpy as np

    folder = Path(need_file(job, "decoders"))
    programs = {n: models.openvino_program(str(folder / f"{n}.onnx"), precision) for n in PROMPTS}
    embeddings = embedding(job)

    def run(clicks):
        points = np.concatenate([clicks, np.zeros_like(clicks)], axis=1)
        labels = np.tile(np.float32([1, -1]), (len(clicks), 1))
        return programs[len(clicks)](embeddings, points, labels)[0]

    return _runs(run, job)
