"""Meta's `SamPredictor`."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_sam.compat.segment_anything.modeling import Sam
from keras_sam.compat.segment_anything.utils.transforms import ResizeLongestSide
from keras_sam.compat.tensors import channels_first, channels_last, first_given, like, native
from keras_sam.images import load_image
from keras_sam.prompts.nested import to_numpy


class SamPredictor:
    """Encodes an image once, then segments what any number of prompts indicate.

    Args:
        sam_model: a `Sam`, as `sam_model_registry` makes it.

    Raises:
        ValueError: if it is something else.

    Example:

    ```python
    from keras_sam.compat.segment_anything import SamPredictor, sam_model_registry

    predictor = SamPredictor(sam_model_registry["vit_b"](checkpoint="sam_vit_b_01ec64.pth"))
    predictor.set_image(image)
    masks, scores, logits = predictor.predict(box=np.array([200, 100, 300, 250]))
    masks.shape  # (3, 400, 600)
    ```
    """

    def __init__(self, sam_model: Sam):
        if not isinstance(sam_model, Sam):
            raise ValueError(
                "`sam_model` must be a `Sam`, as `sam_model_registry` makes it. Received: "
                f"{sam_model!r:.80}. A `keras_sam.SAMImageSegmenter` becomes one with "
                "`keras_sam.compat.segment_anything.modeling.Sam(segmenter)`."
            )
        self.model = sam_model
        self.transform = ResizeLongestSide(sam_model.image_encoder.img_size)
        self.reset_image()

    @property
    def device(self) -> Any:
        """The model's device, see `Sam.to`."""
        return self.model.device

    def reset_image(self) -> None:
        """Forgets the image."""
        self.is_image_set = False
        # The embedding (1, C, Eh, Ew), and sizes (height, width) before and after resizing.
        self.features = self.original_size = self.input_size = None

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        """Encodes an image for the prompts that follow.

        Args:
            image: uint8 array `(H0, W0, 3)`, or whatever `keras_sam.SAMPredictor.set_image` reads.
            image_format: `"RGB"` or `"BGR"`, the order of the array's channels.

        Raises:
            ValueError: if the image or `image_format` is not usable.
        """
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"`image_format` must be 'RGB' or 'BGR'. Received: {image_format!r}.")
        pixels = load_image(image, channel_order=image_format.lower())
        resized = channels_first(self.transform.apply_image(pixels))[None]
        self.set_torch_image(native(resized), pixels.shape[:2])

    def set_torch_image(self, transformed_image: Any, original_image_size: tuple[int, int]) -> None:
        """Encodes an image that is resized already.

        Args:
            transformed_image: `(1, 3, h, w)`, pixels 0..255, of which the longer side is the
                model's.
            original_image_size: pair of ints, `(H0, W0)`, to which prompts and masks refer.

        Raises:
            ValueError: if the image has another shape.
        """
        side = self.model.image_encoder.img_size
        shape = tuple(transformed_image.shape)
        if len(shape) != 4 or shape[:2] != (1, 3) or max(shape[2:]) != side:
            raise ValueError(
                f"`transformed_image` must have shape (1, 3, h, w) with a longer side of {side}. "
                f"Received: shape={shape}. Resize it with `predictor.transform`."
            )
        self.reset_image()
        embedding = self.model.embed(to_numpy(transformed_image))
        self.original_size = tuple(int(n) for n in original_image_size)
        self.input_size = shape[2:]
        self.features = like(transformed_image, channels_first(embedding))
        self.is_image_set = True

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Segments one object.

        Args:
            point_coords: optional `(N, 2)`, x y in pixels of the image.
            point_labels: optional `(N,)`, 1 foreground, 0 background.
            box: optional `(4,)` or `(1, 4)`, x1 y1 x2 y2 in pixels of the image.
            mask_input: optional `(1, L, L)`, logits of an earlier call.
            multimask_output: bool. Three candidates, or one mask.
            return_logits: bool. Return float logits instead of masks.

        Returns:
            Tuple of masks `(K, H0, W0)`, bool or float32; scores `(K,)`; and logits
            `(K, L, L)`.

        Raises:
            RuntimeError: if no image is set.
            ValueError: if a prompt is malformed.
        """
        self._check_image()
        if point_coords is not None:
            shape = np.shape(to_numpy(point_coords))
            if len(shape) != 2 or shape[-1] != 2:
                raise ValueError(
                    "`point_coords` must have shape (N, 2), x y in pixels of the image. Received: "
                    f"shape={shape}. Pass the points of several objects to `predict_torch`."
                )
            point_coords = self.transform.apply_coords(point_coords, self.original_size)[None]
        if point_labels is not None:
            point_labels = to_numpy(point_labels)
            if point_coords is None or point_labels.shape != point_coords.shape[1:2]:
                raise ValueError(
                    "`point_labels` must have shape (N,), one label for each of `point_coords`. "
                    f"Received: shape={point_labels.shape}, with "
                    f"{0 if point_coords is None else point_coords.shape[1]} points."
                )
            point_labels = point_labels[None]
        if box is not None:
            box = self.transform.apply_boxes(box, self.original_size)
            if len(box) != 1:
                raise ValueError(
                    "`box` must be one box, of shape (4,) or (1, 4). Received: "
                    f"{len(box)} boxes. Pass several to `predict_torch`."
                )
        if mask_input is not None:
            mask_input = self.model.prompt_encoder.checked_masks(mask_input, ndim=3)[None]
        masks, scores, logits = self._decode(
            point_coords, point_labels, box, mask_input, multimask_output, return_logits
        )
        return masks[0], scores[0], logits[0]

    def predict_torch(
        self,
        point_coords: Any | None,
        point_labels: Any | None,
        boxes: Any | None = None,
        mask_input: Any | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Any, Any, Any]:
        """Segments P objects, by prompts in the model's frame, see `transform`.

        Args:
            point_coords: `(P, N, 2)` or None, x y in pixels of the resized image.
            point_labels: `(P, N)` or None.
            boxes: optional `(P, 4)`, x1 y1 x2 y2 in pixels of the resized image.
            mask_input: optional `(P, 1, L, L)`, logits.
            multimask_output: see `predict`.
            return_logits: see `predict`.

        Returns:
            Tuple of masks `(P, K, H0, W0)`, scores `(P, K)` and logits `(P, K, L, L)`: tensors
            of torch for prompts that are, numpy arrays otherwise.

        Raises:
            RuntimeError: if no image is set.
            ValueError: if a prompt is malformed.
        """
        self._check_image()
        reference = first_given(point_coords, boxes, mask_input)
        outputs = self._decode(
            point_coords, point_labels, boxes, mask_input, multimask_output, return_logits
        )
        return tuple(like(reference, output) for output in outputs)

    def get_image_embedding(self) -> Any:
        """The image's embedding `(1, C, Eh, Ew)`.

        Returns:
            A tensor of torch where torch is imported, as by every script that works with tensors;
            otherwise a numpy array.

        Raises:
            RuntimeError: if no image is set.
        """
        self._check_image()
        return self.features

    def _decode(self, points, labels, boxes, masks, multimask_output, return_logits):
        embedding = channels_last(to_numpy(self.features))
        logits, scores = self.model.decode(
            embedding, points, labels, boxes, masks, multimask_output
        )
        threshold = None if return_logits else self.model.mask_threshold
        restored = self.model.restored(logits, self.input_size, self.original_size, threshold)
        return restored, scores, logits

    def _check_image(self):
        if not self.is_image_set:
            raise RuntimeError("No image is set: call `set_image` before this.")
