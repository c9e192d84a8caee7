"""The part of transformers' `SamImageProcessor` that makes masks of what the model returns."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_sam import boxes as geometry
from keras_sam import masks as measures
from keras_sam.compat.tensors import TORCH, channels_first, restore, to_tensor
from keras_sam.compat.transformers.image_reading import FIRST, height_width, read_pixels
from keras_sam.geometry import ResizePlan
from keras_sam.prompts.nested import to_numpy


class MaskProcessing:
    """Methods of `SamImageProcessor`, which has `pad_size`."""

    pad_size: dict[str, int]

    def post_process_masks(
        self,
        masks: Any,
        original_sizes: Any,
        reshaped_input_sizes: Any,
        mask_threshold: float = 0.0,
        binarize: bool = True,
        pad_size: dict[str, int] | None = None,
        return_tensors: str = TORCH,
    ) -> list[Any]:
        """Masks of the images from the model's logits.

        Args:
            masks: float tensor `(B, P, K, L, L)`, or a list of one `(P, K, L, L)` per image.
            original_sizes: tensor or list `(B, 2)`, height and width of each image.
            reshaped_input_sizes: likewise, after resizing.
            mask_threshold: float.
            binarize: bool. Off: the enlarged logits.
            pad_size: optional dict, the model's frame. Defaults to the processor's.
            return_tensors: str, see `preprocess`.

        Returns:
            List of one tensor `(P, K, H0, W0)` per image, bool or float32.
        """
        frame = height_width(self.pad_size if pad_size is None else pad_size)
        frame = (frame["height"], frame["width"])
        threshold = mask_threshold if binarize else None
        sizes = zip(masks, to_numpy(original_sizes), to_numpy(reshaped_input_sizes), strict=True)
        restored = [restore(to_numpy(m), a, b, frame, threshold) for m, a, b in sizes]
        return [to_tensor(x, return_tensors) for x in restored]

    def generate_crop_boxes(
        self,
        image: Any,
        target_size: int,
        crop_n_layers: int = 0,
        overlap_ratio: float = 512 / 1500,
        points_per_crop: int | None = 32,
        crop_n_points_downscale_factor: int | None = 1,
        device: Any = None,
        input_data_format: str | None = None,
        return_tensors: str = TORCH,
    ) -> tuple[Any, Any, list[np.ndarray], Any]:
        """Divides an image into crops, and puts a grid of clicks on each.

        Args:
            image: one image, as in `preprocess`.
            target_size: int, the longer side of a resized crop.
            crop_n_layers: int. Layers of crops besides the whole image.
            overlap_ratio: float.
            points_per_crop: int. Clicks along a side.
            crop_n_points_downscale_factor: int. Must leave all crops as many clicks.
            device: optional, where tensors of torch are to be.
            input_data_format: see `preprocess`.
            return_tensors: see `preprocess`.

        Returns:
            Tuple of crops `(n, 4)`, x1 y1 x2 y2, float32; clicks `(1, N, n, 2)`, x y in pixels of
            the resized crop, float32; the list of the crops' pixels, in the image's format; and
            labels `(1, N, n)`, all 1.

        Raises:
            ValueError: for a list of images, or layers of different numbers of clicks.
        """
        if isinstance(image, (list, tuple)):
            raise ValueError("`image` must be one image. Received: a list.")
        pixels, layout = read_pixels(image, False, input_data_format)
        crops, layers = geometry.generate_crop_boxes(pixels.shape[:2], crop_n_layers, overlap_ratio)
        grids = geometry.build_layer_point_grids(
            points_per_crop, crop_n_layers, crop_n_points_downscale_factor
        )
        if len({len(grid) for grid in grids}) > 1:
            raise ValueError(
                "`crop_n_points_downscale_factor` must be 1 with layers of crops: all need as many "
                f"clicks. Received: {crop_n_points_downscale_factor}."
            )
        images, points = [], []
        for (x1, y1, x2, y2), layer in zip(crops.tolist(), layers, strict=True):
            crop = pixels[y1:y2, x1:x2]
            images.append(channels_first(crop) if layout == FIRST else crop)
            plan = ResizePlan(crop.shape[:2], target_size)
            points.append(plan.to_model(grids[layer] * [x2 - x1, y2 - y1]))
        clicks = np.stack(points, axis=1)[None]  # (1, N, n, 2)
        made = (crops.astype("float32"), clicks, np.ones(clicks.shape[:3], "int64"))
        boxes, clicks, labels = (to_tensor(x, return_tensors, device) for x in made)
        return boxes, clicks, images, labels

    def filter_masks(
        self,
        masks: Any,
        iou_scores: Any,
        original_size: tuple[int, int],
        cropped_box_image: Any,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        mask_threshold: float = 0,
        stability_score_offset: float = 1,
        return_tensors: str = TORCH,
    ) -> tuple[list[dict], Any, Any]:
        """Keeps the masks of a crop that are good, stable and not cut off.

        Args:
            masks: float logits `(P, K, h, w)`, of the crop's size.
            iou_scores: float `(P, K)`.
            original_size: pair of ints, `(H0, W0)`.
            cropped_box_image: four numbers, the crop, x1 y1 x2 y2.
            pred_iou_thresh: float. Scores above it stay; 0 keeps all.
            stability_score_thresh: float, likewise.
            mask_threshold: float.
            stability_score_offset: float.
            return_tensors: see `preprocess`.

        Returns:
            Tuple of run lengths of the whole image, scores `(n,)`, and boxes `(n, 4)`,
            x1 y1 x2 y2 in pixels of the image.
        """
        logits, scores = to_numpy(masks), to_numpy(iou_scores).reshape(-1)
        logits = logits.reshape(-1, *logits.shape[-2:])
        if len(logits) != len(scores):
            raise ValueError(
                "`masks` and `iou_scores` must have the same axes P and K. Received: "
                f"{len(logits)} masks and {len(scores)} scores."
            )
        crop = [int(n) for n in to_numpy(cropped_box_image)]
        size = tuple(int(n) for n in to_numpy(original_size))
        good = np.ones(len(scores), bool)
        if pred_iou_thresh > 0:
            good &= scores > pred_iou_thresh
        if stability_score_thresh > 0:
            stability = measures.stability_score(logits, mask_threshold, stability_score_offset)
            good &= stability > stability_score_thresh
        scores, binary = scores[good], logits[good] > mask_threshold
        boxes = measures.mask_to_box(binary)
        whole = ~geometry.boxes_near_crop_edge(boxes, crop, size)
        boxes = geometry.uncrop_boxes(boxes[whole], crop)
        rles = measures.encode_rle(
            binary[whole], compressed=False, crop_box=crop, original_size=size
        )
        return (
            rles,
            to_tensor(scores[whole], return_tensors),
            to_tensor(boxes, return_tensors),
        )

    def post_process_for_mask_generation(
        self,
        all_masks: list[dict],
        all_scores: Any,
        all_boxes: Any,
        crops_nms_thresh: float,
        return_tensors: str = TORCH,
    ) -> tuple[list[Any], Any, list[dict], Any]:
        """Keeps the best of masks whose boxes overlap.

        Args:
            all_masks: list of run lengths, as `filter_masks` returns them.
            all_scores: float `(n,)`.
            all_boxes: `(n, 4)`.
            crops_nms_thresh: float. Of boxes with a larger IoU, one stays.
            return_tensors: see `preprocess`.

        Returns:
            Tuple of a list of bool masks `(H0, W0)`, and their scores, run lengths and boxes, the
            best first.
        """
        scores, boxes = to_numpy(all_scores).reshape(-1), to_numpy(all_boxes)
        kept = geometry.nms(boxes, scores, crops_nms_thresh)
        rles = [all_masks[i] for i in kept]
        masks = [to_tensor(measures.decode_rle(rle), return_tensors) for rle in rles]
        return (
            masks,
            to_tensor(scores[kept], return_tensors),
            rles,
            to_tensor(boxes[kept], return_tensors),
        )
