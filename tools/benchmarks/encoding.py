"""The image encoder: ours, and that of every other implementation that is installed."""

import dataclasses
import time
from functools import partial

from benchmarks import models
from benchmarks.case import Case, Job, LeftOut, Side
from benchmarks.files import need_file


def encoder(job: Job) -> Case:
    """In float32 and bfloat16. All but ours are given normalised pixels."""
    sides = {f"ours, {p}": _ours(job, p) for p in models.PRECISIONS}
    sides["Meta, float32"] = Side(partial(meta, job))
    for p in models.PRECISIONS:
        sides[f"transformers, {p}"] = Side(partial(transformers, job, p))
    for p in models.PRECISIONS:
        sides[f"Meta's ONNX in OpenVINO, {p}"] = Side(partial(in_openvino, job, p))
    # It keeps 6 GB for its next run.
    sides["Meta's ONNX in ONNX Runtime, float32"] = Side(partial(in_onnxruntime, job), restart=True)
    if job.keras_hub:
        for p in models.PRECISIONS:
            found = {"PYTHONPATH": job.keras_hub}
            sides[f"KerasHub, {p}"] = Side(partial(keras_hub, job, p), found)
    for p in models.PRECISIONS:
        sides[f"the backend's matrix products alone, {p}"] = Side(partial(floor, job, p))
    return Case(_about(job), sides)


def huge(job: Job) -> Case:
    """ViT-H in float32, each side alone in memory."""
    job = job if job.quick else dataclasses.replace(job, size="huge")
    sides = {"ours, float32": _ours(job, "float32"), "Meta, float32": Side(partial(meta, job))}
    return Case(_about(job), sides, repeats=3, together=False)


def hiera(job: Job) -> Case:
    """The tiny SAM 2.1 beside transformers' and beside our ViT-B, in float32 and bfloat16."""
    sides = {}
    for p in models.PRECISIONS:
        found = models.precision_of(p)
        sides[f"ours, SAM 2.1 tiny, {p}"] = Side(partial(our_hiera, job, p), found)
        sides[f"transformers, SAM 2.1 tiny, {p}"] = Side(partial(transformers_hiera, job, p))
        sides[f"ours, ViT-B, {p}"] = _ours(job, p)
    return Case("one image through the encoder of the tiny SAM 2.1", sides)


def mobile(job: Job) -> Case:
    """MobileSAM beside its own code, and beside our ViT-B, in float32 and bfloat16."""
    sides = {}
    for p in models.PRECISIONS:
        found = models.precision_of(p)
        sides[f"ours, MobileSAM, {p}"] = Side(partial(our_encoder, job, p, "mobile"), found)
        sides[f"ours, ViT-B, {p}"] = _ours(job, p)
    sides["MobileSAM's own code, float32"] = Side(partial(mobile_sams, job))
    return Case("one image through the encoder of MobileSAM", sides)


def mobile_sams(job, shared):
    models.need("torch", "mobile_sam")
    import json

    import numpy as np
    import torch
    from safetensors.torch import load_file

    from tests.mobile_sam_oracle import mobile_like

    with open(f"{need_file(job, 'mobile')}/config.json", encoding="utf-8") as file:
        parts = json.load(file)["config"]
    names = ("image_encoder", "prompt_encoder", "mask_decoder")
    model = mobile_like(*(parts[name]["config"] for name in names))
    # Without the classifier, which is no part of this one.
    model.load_state_dict(load_file(need_file(job, "mobile.safetensors")), strict=False)
    encoder = model.eval().to(models.torch_device()).image_encoder
    side = parts["image_encoder"]["config"]["image_shape"][0]
    frame = np.random.default_rng(0).uniform(0, 255, (1, side, side, 3)).astype("float32")
    mean, std = np.float32(models.PIXEL_MEAN), np.float32(models.PIXEL_STD)
    pixels = np.ascontiguousarray(((frame - mean) / std).transpose(0, 3, 1, 2))
    pixels = torch.from_numpy(pixels).to(models.torch_device())

    def run():
        with torch.no_grad():
            return facts(encoder(pixels).permute(0, 2, 3, 1).cpu().numpy())

    return run


def our_hiera(job, precision, shared):
    return our_encoder(job, precision, "sam2", shared)


def our_encoder(job, precision, file, shared):
    import numpy as np

    segmenter = models.ours(job, precision, file=file)
    frame = np.random.default_rng(0).uniform(0, 255, (1, *segmenter.image_shape))
    frame = frame.astype("float32")
    return lambda: facts(segmenter.encode_frames(frame, batch_size=1)["image_embeddings"])


def transformers_hiera(job, precision, shared):
    models.need("torch", "transformers")
    import numpy as np
    import torch
    from transformers import Sam2Model

    path = need_file(job, "sam2_transformers")
    settings = {"dtype": getattr(torch, precision), "attn_implementation": "sdpa"}
    model = Sam2Model.from_pretrained(path, **settings).eval().to(models.torch_device())
    side = model.config.vision_config.backbone_config.image_size[0]
    frame = np.random.default_rng(0).uniform(0, 255, (1, side, side, 3)).astype("float32")
    mean, std = np.float32(models.PIXEL_MEAN), np.float32(models.PIXEL_STD)
    pixels = np.ascontiguousarray(((frame - mean) / std).transpose(0, 3, 1, 2))
    pixels = torch.from_numpy(pixels).to(models.torch_device(), getattr(torch, precision))

    def run():
        return facts(model.get_image_embeddings(pixels)[-1].float().cpu().numpy())

    return run


def _about(job):
    side = models.SIZES[job.size].side
    images = "one image" if job.batch == 1 else f"{job.batch} images"
    return f"{images} of {side} x {side} through the {job.size} encoder"


def _ours(job, precision):
    return Side(partial(ours, job, precision), models.precision_of(precision))


def ours(job, precision, shared):
    segmenter, frames = models.ours(job, precision), models.frames(job)

    def run():
        return facts(segmenter.encode_frames(frames, batch_size=len(frames))["image_embeddings"])

    return run


def meta(job, shared):
    return _torch(models.meta(job).image_encoder, "float32", job)


def transformers(job, precision, shared):
    encoder = models.transformers(job, precision).vision_encoder
    return _torch(lambda pixels: encoder(pixels).last_hidden_state, precision, job)


def _torch(encode, precision, job):
    import torch

    pixels = torch.from_numpy(models.pixel_values(job))
    pixels = pixels.to(models.torch_device(), getattr(torch, precision))

    def run():
        with torch.inference_mode():
            return facts(encode(pixels).float().cpu().numpy())

    return run


def in_openvino(job, precision, shared):
    return _program(models.openvino_program(need_file(job, "encoder.onnx"), precision), job)


def in_onnxruntime(job, shared):
    return _program(models.onnxruntime_program(need_file(job, "encoder.onnx")), job)


def _program(program, job):
    pixels = models.pixel_values(job)
    return lambda: facts(program(pixels)[0])


def keras_hub(job, precision, shared):
    model, frames = models.keras_hub_encoder(job, precision), models.frames(job) / 255
    return lambda: facts(model.predict(frames, batch_size=len(frames), verbose=0))


def floor(job, precision, shared):
    """How long the encoder's products would take at the backend's best: as large square ones."""
    if job.backend == "openvino":
        raise LeftOut("this backend has no products outside a compiled model")
    import numpy as np
    from keras import ops

    n = 256 if job.quick else 2048
    square = np.random.default_rng(0).standard_normal((n, n), "float32")
    square = ops.cast(ops.convert_to_tensor(square), precision)
    products = 4
    part = job.batch * multiplications(models.SIZES[job.size]) / (products * n**3)

    def run():
        began, worked = time.perf_counter(), time.process_time()
        for _ in range(products):
            product = ops.matmul(square, square)
            ops.convert_to_numpy(ops.cast(product[0, 0], "float32"))  # waits for it
        seconds = part * (time.perf_counter() - began)
        cpu_seconds = part * (time.process_time() - worked)
        rate = 2e-9 * job.batch * multiplications(models.SIZES[job.size]) / seconds
        return {"GFLOP/s": rate, "measured": {"seconds": seconds, "cpu_seconds": cpu_seconds}}

    return run


def multiplications(sizes):
    """Of an image: 468 thousand millions in ViT-B."""
    grid = sizes.side // sizes.patch
    tokens, windows = grid**2, -(-grid // sizes.window)
    linear = sizes.depth * 12 * tokens * sizes.width**2
    whole = len(sizes.whole) * 2 * tokens**2 * sizes.width
    parted = sizes.depth - len(sizes.whole)
    parted *= 2 * windows**2 * sizes.window**4 * sizes.width
    ends = tokens * (3 * sizes.patch**2 * sizes.width + 256 * sizes.width + 9 * 256**2)
    return linear + whole + parted + ends


def facts(embeddings):
    """The same for all that have the same weights: that they did the same work."""
    return {"largest value": float(embeddings.astype("float32").max())}
