"""Meta's `ResizeLongestSide`, over `keras_sam.ResizePlan`."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_sam.compat.tensors import channels_first, channels_last, like
from keras_sam.geometry import ResizePlan, resize_image
from keras_sam.prompts.nested import to_numpy


class ResizeLongestSide:
    """Resizes images, points and boxes so that the image's longer side has a given length.

    Args:
        target_length: int, pixels.
    """

    def __init__(self, target_length: int):
        self.target_length = target_length

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """Resizes an image `(H0, W0, C)` with antialiasing; uint8 stays uint8."""
        image = to_numpy(image)
        return resize_image(image, self._size(image.shape[:2]))

    def apply_coords(self, coords: np.ndarray, original_size: tuple[int, int]) -> np.ndarray:
        """Maps points `(..., 2)`, x y in pixels of the image, to the resized one, as float64.

        Args:
            coords: array `(..., 2)`.
            original_size: pair of ints, `(H0, W0)`.
        """
        h, w = original_size
        new_h, new_w = self._size(original_size)
        return to_numpy(coords).astype("float64") * [new_w / w, new_h / h]

    def apply_boxes(self, boxes: np.ndarray, original_size: tuple[int, int]) -> np.ndarray:
        """Maps boxes, x1 y1 x2 y2 in pixels of the image, to the resized one, as `(P, 4)`.

        Args:
            boxes: array `(P, 4)` or `(4,)`.
            original_size: pair of ints, `(H0, W0)`.
        """
        corners = to_numpy(boxes).reshape(-1, 2, 2)
        return self.apply_coords(corners, original_size).reshape(-1, 4)

    def apply_image_torch(self, image: Any) -> Any:
        """Resizes images `(B, C, H0, W0)` with antialiasing, as float32."""
        images = channels_last(to_numpy(image).astype("float32"))
        size = self._size(images.shape[1:3])
        return like(image, channels_first(np.stack([resize_image(x, size) for x in images])))

    def apply_coords_torch(self, coords: Any, original_size: tuple[int, int]) -> Any:
        """`apply_coords` of a tensor, as float32."""
        return like(coords, self.apply_coords(coords, original_size).astype("float32"))

    def apply_boxes_torch(self, boxes: Any, original_size: tuple[int, int]) -> Any:
        """`apply_boxes` of a tensor, as float32."""
        return like(boxes, self.apply_boxes(boxes, original_size).astype("float32"))

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> tuple[int, int]:
        """The size `(height, width)` of an image whose longer side gets a given length."""
        return ResizePlan((oldh, oldw), long_side_length).scaled_size

    def _size(self, original_size):
        return self.get_preprocess_shape(*(int(n) for n in original_size), self.target_length)
