"""The converter of a model without a preprocessor."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_sam.framing import batch_of, takes_unit_range
from keras_sam.geometry import ResizePlan
from keras_sam.images import load_image
from keras_sam.pixel_values import check_finite


class ExactFrame:
    """The converter of a model without a preprocessor: it takes images of the model's own size.

    `unit_range` says that the model takes 0..1, so that images stay as they are; `stretch` how
    prompts and masks of another size are scaled.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], unit_range: bool = False, stretch: bool = False
    ) -> None:
        self.pad_size, self.num_channels = tuple(image_shape[:2]), image_shape[2]
        self.unit_range = unit_range
        self.stretch = stretch

    @classmethod
    def for_encoder(cls, encoder: Any, stretch: bool = False) -> ExactFrame:
        """The stand-in that fits an image encoder."""
        statistics = (getattr(encoder, name, [255]) for name in ("pixel_mean", "pixel_std"))
        return cls(encoder.image_shape, takes_unit_range(*statistics), stretch)

    def __call__(self, images: Any) -> np.ndarray:
        return self.convert(images)[0]

    def convert(self, images: Any) -> tuple[np.ndarray, list[ResizePlan]]:
        """Reads a batch, see `SAMImageConverter.convert`; an image of another size is refused."""
        height, width = self.pad_size
        value_range = None if self.unit_range else "auto"
        images = [
            load_image(x, num_channels=self.num_channels, value_range=value_range)
            for x in batch_of(images)
        ]
        for image in images:
            check_finite(image)  # "auto" has done so, None has not
            if image.shape[:2] != (height, width):
                raise ValueError(
                    f"`images` must be {height} pixels high and {width} wide: without a "
                    "preprocessor the model works in its own frame. "
                    f"Received: shape={image.shape}. Resize them, or make the segmenter with "
                    "`preprocessor=`."
                )
        return np.stack(images).astype("float32"), [self.plan((height, width))] * len(images)

    def plan(self, original_size: tuple[int, int]) -> ResizePlan:
        """How prompts and masks of an image of this size are scaled."""
        return ResizePlan(tuple(original_size), self.pad_size, stretch=self.stretch)
