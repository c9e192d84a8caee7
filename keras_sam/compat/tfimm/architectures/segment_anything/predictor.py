"""Interactive segmentation of one image under tfimm's names, and how the image is resized."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from keras_sam import predictor as ours
from keras_sam.compat.tfimm.architectures.segment_anything.sam import SegmentAnythingModel, decode
from keras_sam.compat.tfimm.models.factory import preprocessing_of
from keras_sam.geometry import ResizePlan, resize_image
from keras_sam.preprocessing import SAMImageConverter
from keras_sam.prompts.nested import to_numpy

# The axes of one object's prompt, without the batch's.
_RANKS = {"points": 2, "labels": 1, "boxes": 2, "masks": 3}


class SAMPredictor:
    """Segments one image, prompt after prompt, in its own pixels.

    `image_set` says whether there is an image, `resizer` how it was resized, and
    `image_embedding` is its embedding.

    Args:
        model: a `SegmentAnythingModel`.
        preprocessing: optional function that normalises images `(N, H, W, C)`. Defaults to the
            one of the model's config.

    Example:

    ```python
    model = SegmentAnythingModel(
        {"input_size": (64, 96), "encoder_nb_blocks": 1, "encoder_embed_dim": 24}
    )
    predictor = SAMPredictor(model)
    predictor.set_image(np.zeros((60, 90, 3), "uint8"))
    masks, scores, logits = predictor([[45, 30]], [1])
    masks.shape  # (3, 60, 90)
    ```
    """

    def __init__(self, model: SegmentAnythingModel, preprocessing: Callable | None = None):
        self.model = model
        self.preprocessing = preprocessing or preprocessing_of(model.cfg)
        self.clear_image()

    def clear_image(self) -> None:
        """Forgets the image."""
        self.resizer = None
        self._predictor = None

    @property
    def image_set(self) -> bool:
        """Whether there is an image."""
        return self._predictor is not None

    @property
    def image_embedding(self) -> np.ndarray | None:
        """Float32 array `(1, H'', W'', D)`, the image's embedding, or None without an image."""
        return None if self._predictor is None else self._predictor.image_embeddings

    def set_image(self, image: Any) -> None:
        """Encodes an image for the calls that follow.

        Args:
            image: array `(H0, W0, C)`, 0..255, or what `keras_sam.SAMPredictor.set_image` takes.
                It is scaled and padded to the model's frame, or with `fixed_input_size=False` only
                padded, to a multiple of the patch size.
        """
        self.clear_image()
        cfg = self.model.cfg
        fixed, patch = cfg.fixed_input_size, cfg.encoder_patch_size
        mean, std = (255 * np.resize(values, cfg.in_channels) for values in (cfg.mean, cfg.std))
        converter = SAMImageConverter.for_encoder((*cfg.input_size, cfg.in_channels), mean, std)
        frames, plans = converter.convert([image], do_resize=fixed, do_pad=fixed)
        src_size, size = plans[0].original_size, cfg.input_size
        if not fixed:
            size = tuple(patch * math.ceil(side / patch) for side in src_size)
        resizer = ImageResizer(src_size, size, pad_only=not fixed)
        frames = resizer.pad_image(frames - mean) + mean  # padded with the mean colour
        frames = to_numpy(self.preprocessing(frames.astype("float32")))

        converter = SimpleNamespace(convert=lambda images: (frames, [resizer.plan]))
        predictor = ours.SAMPredictor(
            self.model.at_input_size(size).segmenter, SimpleNamespace(image_converter=converter)
        )
        predictor.set_image(image)
        self.resizer, self._predictor = resizer, predictor

    def input_size(self) -> tuple[int, int]:
        """Size `(H, W)` of the model's frame, with `fixed_input_size=False` for the image.

        Raises:
            ValueError: if it depends on the image, and none is set.
        """
        if self.image_set:
            return self.resizer.dst_size
        if self.model.cfg.fixed_input_size:
            return self.model.cfg.input_size
        raise _no_image()

    def mask_size(self) -> tuple[int, int]:
        """Size `(H', W')` of mask prompts and logits; see `input_size`."""
        return self.model.mask_size(self.input_size())

    def preprocess_masks(self, mask: ArrayLike) -> np.ndarray:
        """Logits of the original image's size as a mask prompt.

        Args:
            mask: float array `(M, H0, W0)` or `(N, M, H0, W0)` of logits, not of a binary mask.

        Returns:
            Float32 array `(M, H', W')` or `(N, M, H', W')`.

        Raises:
            ValueError: if no image is set, the size is not its size, or they are no finite floats.
        """
        return self._image().preprocess_masks(mask)

    def __call__(
        self,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        boxes: ArrayLike | None = None,
        masks: ArrayLike | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks of the image for one object, or with one more axis in front for N of them.

        Args:
            points: `(M1, 2)`, or `(N, M1, 2)`; x, y in pixels of the image.
            labels: `(M1,)`, or `(N, M1)`: 1 foreground, 0 background.
            boxes: `(M2, 4)`, or `(N, M2, 4)`; x1, y1, x2, y2. All of them are of one object.
            masks: `(M3, H', W')`, or `(N, M3, H', W')`, logits from an earlier call or from
                `preprocess_masks`. All of them are of one object: their embeddings are added up.
            multimask_output: bool. The masks of an ambiguous prompt, instead of the one mask.
            return_logits: bool. Float logits instead of masks.

        Returns:
            Tuple of masks, bool `(K, H0, W0)`, or float32 with `return_logits=True`; scores
            `(K,)`; and logits `(K, H', W')`. Prompts of N objects give one more axis `N` in front.

        Raises:
            ValueError: if no image is set, or the prompts do not fit together.
        """
        predictor = self._image()
        given = {"points": points, "labels": labels, "boxes": boxes, "masks": masks}
        given = {name: to_numpy(value) for name, value in given.items() if value is not None}
        leads = {name: value.shape[: -_RANKS[name]] for name, value in given.items()}
        if len({*leads.values()}) > 1 or any(len(lead) > 1 for lead in leads.values()):
            raise ValueError(
                "All prompts must be of one object, or of the same number of objects: "
                "`points` (N, M1, 2), `labels` (N, M1), `boxes` (N, M2, 4), `masks` "
                f"(N, M3, H', W'). Received: { {name: x.shape for name, x in given.items()} }."
            )
        batched = () not in leads.values()
        given = {name: value if batched else value[None] for name, value in given.items()}
        given = {name: value for name, value in given.items() if value.shape[1]}
        options = {"multimask_output": bool(multimask_output), "return_logits": return_logits}
        if "masks" in given and given["masks"].shape[1] > 1:
            outputs = self._predict_of_masks(given, **options)
        else:
            if "masks" in given:
                given["masks"] = given["masks"][:, 0]
            outputs = predictor.predict(**given, **options)
            if outputs[1].ndim == 1:  # one mask alone, which counts as one object's there
                outputs = tuple(x[None] for x in outputs)
        return outputs if batched else tuple(x[0] for x in outputs)

    def _predict_of_masks(self, given, multimask_output, return_logits):
        """For objects with several masks each, which our predictor does not know."""
        plan, segmenter = self.resizer.plan, self._predictor.segmenter
        given = {k: v.astype("float32") for k, v in given.items()}
        for name, to_model in (("points", plan.to_model), ("boxes", plan.boxes_to_model)):
            if name in given:
                given[name] = to_model(given[name])
        outputs = decode(segmenter, self.image_embedding, given, multimask_output)
        logits, scores = map(to_numpy, outputs)
        threshold = None if return_logits else self.model.mask_threshold
        return plan.masks_to_original(logits, threshold), scores, logits

    def _image(self):
        if self._predictor is None:
            raise _no_image()
        return self._predictor


def _no_image():
    return ValueError("No image is set: call `set_image` before this.")


class ImageResizer:
    """Scales images to the largest size that fits into a frame, and back; a `ResizePlan`, `plan`.

    `rescaled_size` is the image's size before padding, `scale` what it was multiplied by.

    Args:
        src_size: pair of ints `(H0, W0)`.
        dst_size: pair of ints `(H, W)`.
        pad_only: bool. Pads without scaling. Defaults to `False`.

    Example:

    ```python
    resizer = ImageResizer(src_size=(20, 10), dst_size=(30, 40))
    resizer.scale, resizer.rescaled_size  # (1.5, (30, 15))
    resizer.pad_image(resizer.scale_image(np.zeros((20, 10, 3)))).shape  # (30, 40, 3)
    ```
    """

    def __init__(
        self, src_size: tuple[int, int], dst_size: tuple[int, int], pad_only: bool = False
    ):
        for name, size in (("src_size", src_size), ("dst_size", dst_size)):
            if np.shape(size) != (2,):
                raise ValueError(f"`{name}` must be a pair of ints, (H, W). Received: {size!r}.")
        self.plan = ResizePlan(tuple(src_size), tuple(dst_size), pad_only)
        self.src_size, self.dst_size = self.plan.original_size, self.plan.model_size
        self.pad_only = self.plan.pad_only
        self.rescaled_size = self.plan.scaled_size
        ratios = [new / old for new, old in zip(self.dst_size, self.src_size, strict=True)]
        self.scale = 1.0 if pad_only else min(ratios)

    @staticmethod
    def scale_to_size(image: ArrayLike, size: tuple[int, int], channels_last: bool) -> np.ndarray:
        """Scales to a size, whatever the proportions, with antialiasing.

        Args:
            image: array `(H, W, C)`, or `(C, H, W)` with `channels_last=False`, or a batch of them
                with one more axis in front.
            size: pair of ints.
            channels_last: bool.

        Returns:
            Array of the same kind and dtype.
        """
        image = _checked(image)
        images = image if channels_last else np.moveaxis(image, -3, -1)
        batch = images.reshape(-1, *images.shape[-3:])
        scaled = np.stack([resize_image(one, tuple(size)) for one in batch])
        if image.dtype.kind in "iu":
            scaled = np.rint(scaled)
        scaled = scaled.reshape(*images.shape[:-3], *scaled.shape[1:]).astype(image.dtype)
        return scaled if channels_last else np.moveaxis(scaled, -1, -3)

    def scale_image(self, image: ArrayLike, channels_last: bool = True) -> np.ndarray:
        """Scales an image, or a batch, to `rescaled_size`; see `scale_to_size`."""
        return self.scale_to_size(image, self.rescaled_size, channels_last)

    def unscale_image(self, image: ArrayLike, channels_last: bool = True) -> np.ndarray:
        """Scales an image of `rescaled_size`, or a batch, to `src_size`; see `scale_to_size`."""
        return self.scale_to_size(image, self.src_size, channels_last)

    def pad_image(self, image: ArrayLike, channels_last: bool = True) -> np.ndarray:
        """Pads an image, or a batch, with zeros to `dst_size`, at the right and the bottom.

        Args:
            image: see `scale_to_size`.
            channels_last: bool. Defaults to `True`.

        Raises:
            ValueError: if the image is larger than `dst_size`.
        """
        image = _checked(image)
        first = image.ndim - (3 if channels_last else 2)
        missing = np.subtract(self.dst_size, image.shape[first : first + 2])
        if missing.min() < 0:
            raise ValueError(
                f"`image` must fit into dst_size={self.dst_size}. Received: shape={image.shape}. "
                "Scale it first, with `scale_image`."
            )
        padding = [(0, 0)] * image.ndim
        padding[first : first + 2] = [(0, int(n)) for n in missing]
        return np.pad(image, padding)

    def scale_points(self, points: ArrayLike) -> np.ndarray:
        """Points `(..., 2)` of the image, in the frame."""
        return self.plan.to_model(points)

    def scale_boxes(self, boxes: ArrayLike) -> np.ndarray:
        """Boxes `(..., 4)` of the image, in the frame."""
        return self.plan.boxes_to_model(boxes)

    def postprocess_mask(self, mask: ArrayLike, threshold: float | None = None) -> np.ndarray:
        """Cuts the padding off logits of the frame and scales them to `src_size`.

        Args:
            mask: float array `(..., H, W)` of logits.
            threshold: optional float. Return which logits are above it.

        Returns:
            Float32 array `(..., H0, W0)`, bool with a threshold.
        """
        return self.plan.masks_to_original(to_numpy(mask), threshold)


def _checked(image):
    image = to_numpy(image)
    if image.ndim not in (3, 4):
        raise ValueError(
            "`image` must have shape (H, W, C) or (N, H, W, C), with `channels_last=False` "
            f"(C, H, W) or (N, C, H, W). Received: shape={image.shape}."
        )
    return image
