"""transformers' pipeline "mask-generation", by the documented methods of model and processor."""

from __future__ import annotations

import inspect
import os
from typing import Any

import numpy as np
from PIL import Image

from keras_sam.compat.transformers.image_processing import SamImageProcessor
from keras_sam.compat.transformers.modeling import SamModel, without_effect
from keras_sam.images import load_image

TASK = "mask-generation"


class MaskGenerationPipeline:
    """Segments everything in an image.

    Args:
        model: a `SamModel`.
        image_processor: a `SamImageProcessor`.
        **defaults: call arguments, for the calls that do not have them.

    Call arguments:
        image: one image, see `SamImageProcessor.preprocess`, or a list of them.
        points_per_batch: int. Clicks whose masks are in memory together.
        pred_iou_thresh: float. Masks with a predicted IoU above it stay.
        stability_score_thresh: float. Masks of which the stability is above it stay.
        mask_threshold: float. Logits above it belong to the mask.
        stability_score_offset: float.
        crops_nms_thresh: float. Of masks whose boxes have a larger IoU, the best stays.
        crops_n_layers: int. Layers of crops besides the whole image.
        crop_overlap_ratio: float.
        points_per_crop: int. Clicks along a side.
        crop_n_points_downscale_factor: int.
        output_rle_mask: bool. Also return `rle_mask`, the masks' run lengths.
        output_bboxes_mask: bool. Also return `bounding_boxes` `(n, 4)`, x1 y1 x2 y2.

    Returns:
        Dict of `masks`, a list of bool arrays `(H0, W0)`, and `scores`, float32 `(n,)`, the best
        first; for a list of images a list of them.
    """

    def __init__(self, model: SamModel, image_processor: SamImageProcessor, **defaults: Any):
        self.model, self.image_processor, self.defaults = model, image_processor, defaults

    def __call__(self, image: Any, **kwargs: Any) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(image, (list, tuple)):
            return [self(one, **kwargs) for one in image]
        return self._generate(image, **{**self.defaults, **kwargs})

    def _generate(
        self,
        image,
        points_per_batch=64,
        pred_iou_thresh=0.88,
        stability_score_thresh=0.95,
        mask_threshold=0,
        stability_score_offset=1,
        crops_nms_thresh=0.7,
        crops_n_layers=0,
        crop_overlap_ratio=512 / 1500,
        points_per_crop=32,
        crop_n_points_downscale_factor=1,
        output_rle_mask=False,
        output_bboxes_mask=False,
    ):
        if isinstance(image, (str, os.PathLike, Image.Image)):
            image = Image.fromarray(load_image(image))  # upright by its EXIF, as in transformers
        processor = self.image_processor
        crops, clicks, images, labels = processor.generate_crop_boxes(
            image,
            processor.size["longest_edge"],
            crops_n_layers,
            crop_overlap_ratio,
            points_per_crop,
            crop_n_points_downscale_factor,
            return_tensors="np",
        )
        whole = tuple(int(n) for n in crops[0][:1:-1])
        found = []
        for number, crop in enumerate(images):
            inputs = processor(crop, return_tensors="np")
            embeddings = self.model.get_image_embeddings(inputs.pop("pixel_values"))
            for start in range(0, clicks.shape[1], points_per_batch):
                part = slice(start, start + points_per_batch)
                outputs = self.model(
                    image_embeddings=embeddings,
                    input_points=clicks[:, part, number : number + 1],
                    input_labels=labels[:, part, number : number + 1],
                )
                masks = processor.post_process_masks(
                    outputs.pred_masks, **inputs, binarize=False, return_tensors="np"
                )
                found.append(
                    processor.filter_masks(
                        masks[0],
                        outputs.iou_scores[0],
                        whole,
                        crops[number],
                        pred_iou_thresh,
                        stability_score_thresh,
                        mask_threshold,
                        stability_score_offset,
                        return_tensors="np",
                    )
                )
        rles, scores, boxes = zip(*found, strict=True)
        masks, scores, rles, boxes = processor.post_process_for_mask_generation(
            [rle for some in rles for rle in some],
            np.concatenate(scores),
            np.concatenate(boxes),
            crops_nms_thresh,
            return_tensors="np",
        )
        made = {"masks": masks, "scores": scores}
        if output_rle_mask:
            made["rle_mask"] = rles
        if output_bboxes_mask:
            made["bounding_boxes"] = boxes
        return made


def pipeline(
    task: str | None = None,
    model: Any = None,
    image_processor: Any = None,
    device: Any = None,
    *,
    feature_extractor: Any = None,
    revision: str | None = None,
    torch_dtype: Any = None,
    **kwargs: Any,
) -> MaskGenerationPipeline:
    """Makes the pipeline that segments everything.

    Args:
        task: `"mask-generation"`, the default; others are transformers' own.
        model: a `SamModel`, or what `SamModel.from_pretrained` takes.
        image_processor: optional `SamImageProcessor`. Defaults to that of the model's name, or to
            one of the model's size.
        device: optional, see `SamModel.to`; -1 is the CPU.
        feature_extractor: the earlier name of `image_processor`.
        revision: optional, see `SamModel.from_pretrained`.
        torch_dtype: optional, see `SamModel.from_pretrained`.
        **kwargs: defaults of the call, see `MaskGenerationPipeline`. What concerns transformers'
            way of loading has no effect.

    Raises:
        ValueError: for another task, or without a model.
        TypeError: for an unknown argument.
    """
    if task not in (None, TASK) or model is None:
        raise ValueError(
            f"`task` must be {TASK!r}, with a `model`. Received: task={task!r}, model={model!r}."
        )
    kwargs = without_effect(kwargs, ("framework", "use_fast"))
    known = [*inspect.signature(MaskGenerationPipeline._generate).parameters][2:]
    unknown = sorted(kwargs.keys() - known)
    if unknown:
        raise TypeError(
            f"`pipeline` takes no argument {', '.join(unknown)}; those of the call are "
            f"{', '.join(known)}."
        )
    name = model if isinstance(model, (str, os.PathLike)) else None
    if name is not None:
        model = SamModel.from_pretrained(name, revision=revision, torch_dtype=torch_dtype)
    image_processor = image_processor or feature_extractor
    if image_processor is None and name is not None:
        image_processor = SamImageProcessor.from_pretrained(name, revision=revision)
    elif image_processor is None:
        side = model.config.vision_config.image_size
        image_processor = SamImageProcessor(size={"longest_edge": side}, pad_size=side)
    device = "cpu" if device == -1 else device
    return MaskGenerationPipeline(model.to(device), image_processor, **kwargs)
