"""transformers' `SamProcessor`: images and prompts to a model's inputs."""

from __future__ import annotations

import os
from typing import Any, Self

import numpy as np

from keras_sam.compat.tensors import NUMPY, to_tensor
from keras_sam.compat.transformers.image_processing import SamImageProcessor
from keras_sam.compat.transformers.outputs import BatchFeature
from keras_sam.geometry import ResizePlan
from keras_sam.prompts import PADDING
from keras_sam.prompts.nested import leaves, nesting_depth, pad_nested, read_nested, to_numpy


class SamProcessor:
    """Makes a model's inputs from images of any size and prompts in their pixels.

    Args:
        image_processor: a `SamImageProcessor`.

    Call arguments:
        images: see `SamImageProcessor.preprocess`.
        input_points: optional list or array `(B, N, 2)` or `(B, P, N, 2)`, x y in pixels of each
            image. Where images or objects have fewer points, padding is added, and labels.
        input_labels: optional, as `input_points` without the last axis.
        input_boxes: optional list or array `(B, P, 4)`, x1 y1 x2 y2.
        return_tensors: optional, see `SamImageProcessor.preprocess`.
        **kwargs: other arguments of `SamImageProcessor.preprocess`.

    Returns:
        `BatchFeature` of `pixel_values`, `original_sizes`, `reshaped_input_sizes`, and the prompts
        in pixels of the model's frame: `model(**inputs)`.

    Raises:
        ValueError: if an image or a prompt is malformed.
    """

    point_pad_value = PADDING

    def __init__(self, image_processor: SamImageProcessor):
        self.image_processor = self.current_processor = image_processor
        self.target_size = image_processor.size["longest_edge"]

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> Self:
        """See `SamImageProcessor.from_pretrained`."""
        return cls(SamImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs))

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """See `SamImageProcessor.save_pretrained`."""
        self.image_processor.save_pretrained(save_directory)

    @property
    def model_input_names(self) -> list[str]:
        """What a processor of images makes for the model."""
        return list(self.image_processor.model_input_names)

    def __call__(
        self,
        images: Any = None,
        input_points: Any = None,
        input_labels: Any = None,
        input_boxes: Any = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        if images is None:
            raise ValueError("`images` must be given. Received: None.")
        encoded = self.image_processor(images, return_tensors=return_tensors, **kwargs)
        sizes = [tuple(size) for size in to_numpy(encoded["original_sizes"]).tolist()]
        prompts = {}
        if input_boxes is not None:
            boxes = _rectangular(input_boxes)
            prompts["input_boxes"] = self._scaled(boxes.reshape(*boxes.shape[:2], 2, 2), sizes)
            prompts["input_boxes"] = prompts["input_boxes"].reshape(boxes.shape)
        if input_points is not None:
            prompts |= self._points(input_points, input_labels, sizes)
        elif input_labels is not None:
            raise ValueError("`input_labels` must come with `input_points`. Received: None.")
        if return_tensors not in (None, NUMPY):  # with an axis for the objects
            rank = {"input_points": 4, "input_labels": 3, "input_boxes": 3}
            for name, value in prompts.items():
                prompts[name] = value if value.ndim == rank[name] else value[:, None]
        tensors = {k: to_tensor(v, return_tensors) for k, v in prompts.items()}
        return BatchFeature({**encoded, **tensors})

    def post_process_masks(self, *args: Any, **kwargs: Any) -> list[Any]:
        """See `SamImageProcessor.post_process_masks`."""
        return self.image_processor.post_process_masks(*args, **kwargs)

    def _points(self, points, labels, sizes):
        node = read_nested(points, "input_points")
        depth = nesting_depth(node, "input_points")
        if depth not in (3, 4) or {leaf.shape[-1] for leaf in leaves(node)} != {2}:
            raise ValueError(
                "`input_points` must be nested as (B, N, 2) or (B, P, N, 2): images, objects, "
                f"points, x y. Received: {points!r:.80}."
            )
        padded = pad_nested(node, depth, _longest(node), np.nan)
        missing = np.isnan(padded).any(axis=-1)
        made = {"input_points": self._scaled(padded, sizes)}
        made["input_points"][missing] = self.point_pad_value
        if labels is not None:
            of_points = read_nested(labels, "input_labels")
            nested = nesting_depth(of_points, "input_labels") == depth - 1
            given = (
                pad_nested(of_points, depth - 1, _longest(of_points), np.nan) if nested else None
            )
            if not nested or given.shape != missing.shape or (np.isnan(given) != missing).any():
                raise ValueError(
                    "`input_labels` must hold one label per point, nested as `input_points` "
                    "without its last axis. Received: "
                    f"{labels!r:.80} with input_points={points!r:.80}."
                )
            made["input_labels"] = np.where(missing, self.point_pad_value, given).astype("int64")
        elif missing.any():
            made["input_labels"] = np.where(missing, self.point_pad_value, 1)
        return made

    def _scaled(self, points, sizes):
        """Points `(B, ..., 2)` in pixels of images of these sizes, to the resized images."""
        if len(points) != len(sizes):  # several prompts of one image
            if len(sizes) > 1:
                raise ValueError(
                    "`input_points` and `input_boxes` must have one entry per image. Received: "
                    f"{len(points)} for {len(sizes)} images."
                )
            sizes = sizes * len(points)
        plans = [ResizePlan(size, self.target_size) for size in sizes]
        scales = [np.divide(plan.scaled_size, plan.original_size)[::-1] for plan in plans]
        return points * np.reshape(scales, (-1, *[1] * (points.ndim - 2), 2))


def _longest(node):
    return max(len(image) for image in node)


def _rectangular(boxes):
    node = read_nested(boxes, "input_boxes")
    if not isinstance(node, np.ndarray) or node.ndim != 3 or node.shape[-1] != 4:
        raise ValueError(
            "`input_boxes` must be nested as (B, P, 4), as many for each image: images, boxes, "
            f"x1 y1 x2 y2. Received: {boxes!r:.80}."
        )
    return node.astype("float64")
