"""Meta's `SamAutomaticMaskGenerator`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_sam.compat.segment_anything.modeling import Sam
from keras_sam.compat.segment_anything.predictor import SamPredictor
from keras_sam.mask_generator.generator import SAMAutomaticMaskGenerator


class SamAutomaticMaskGenerator:
    """Segments everything in an image.

    The defaults are Meta's, whatever the model recommends (`SAMImageSegmenter.generator_settings`).

    Args:
        model: a `Sam`, as `sam_model_registry` makes it.
        points_per_side: see `keras_sam.SAMAutomaticMaskGenerator`, which has all of these.
        points_per_batch: see there.
        pred_iou_thresh: see there.
        stability_score_thresh: see there.
        stability_score_offset: see there.
        box_nms_thresh: see there.
        crop_n_layers: see there.
        crop_nms_thresh: see there.
        crop_overlap_ratio: see there.
        crop_n_points_downscale_factor: see there.
        point_grids: see there.
        min_mask_region_area: see there.
        output_mode: see there.

    Raises:
        ValueError: if a parameter is out of range.
    """

    def __init__(
        self,
        model: Sam,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[Any] | None = None,
        min_mask_region_area: int = 0,
        output_mode: str = "binary_mask",
    ):
        self.predictor = SamPredictor(model)
        self.points_per_batch = points_per_batch
        self.pred_iou_thresh = pred_iou_thresh
        self.stability_score_thresh = stability_score_thresh
        self.stability_score_offset = stability_score_offset
        self.box_nms_thresh = box_nms_thresh
        self.crop_n_layers = crop_n_layers
        self.crop_nms_thresh = crop_nms_thresh
        self.crop_overlap_ratio = crop_overlap_ratio
        self.crop_n_points_downscale_factor = crop_n_points_downscale_factor
        self.min_mask_region_area = min_mask_region_area
        self.output_mode = output_mode
        grids = {"points_per_side": points_per_side, "point_grids": point_grids}
        self.point_grids = self._generator(**grids).point_grids

    def generate(self, image: np.ndarray) -> list[dict[str, Any]]:
        """Segments everything in one image.

        Args:
            image: uint8 array `(H0, W0, 3)`, RGB.

        Returns:
            List of Meta's records, a `keras_sam.mask_generator.MaskRecords`.

        Raises:
            ValueError: if the image is not usable.
        """
        generator = self._generator(points_per_side=None, point_grids=self.point_grids)
        return generator.generate(image)

    def _generator(self, **grids):
        # Made for each image, so that attributes which are set afterwards count, as in Meta's.
        return SAMAutomaticMaskGenerator(
            self.predictor.model.segmenter,
            points_per_batch=self.points_per_batch,
            pred_iou_thresh=self.pred_iou_thresh,
            stability_score_thresh=self.stability_score_thresh,
            stability_score_offset=self.stability_score_offset,
            box_nms_thresh=self.box_nms_thresh,
            crop_n_layers=self.crop_n_layers,
            crop_nms_thresh=self.crop_nms_thresh,
            crop_overlap_ratio=self.crop_overlap_ratio,
            crop_n_points_downscale_factor=self.crop_n_points_downscale_factor,
            min_mask_region_area=self.min_mask_region_area,
            output_mode=self.output_mode,
            use_m2m=False,
            **grids,
        )
