"""Meta's `Sam` and its three parts, as callables over a segmenter of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_sam import backends, converters
from keras_sam.compat.tensors import (
    OnDevice,
    channels_first,
    channels_last,
    first_given,
    like,
    restore,
)
from keras_sam.models.sam_image_segmenter import SAMImageSegmenter
from keras_sam.presets.assign import assign
from keras_sam.prompts import Prompts, read
from keras_sam.prompts.nested import to_numpy


class Sam(OnDevice):
    """Meta's `Sam`: a `keras_sam.SAMImageSegmenter` that is called as Meta's model is.

    Args:
        segmenter: a `SAMImageSegmenter` for square RGB images. It is kept as `segmenter`, for
            everything that Meta's class cannot do, such as `fit`.

    Call arguments:
        batched_input: list of dicts, one per image: `image` `(3, h, w)`, pixels 0..255 that were
            resized with `ResizeLongestSide`; `original_size` `(H0, W0)`; and at least one of
            `point_coords` `(P, N, 2)` with `point_labels` `(P, N)`, `boxes` `(P, 4)`, x y in
            pixels of `image`, and `mask_inputs` `(P, 1, L, L)`.
        multimask_output: bool. Masks 1 to 3, or mask 0 alone.

    Returns:
        List of dicts: `masks` `(P, K, H0, W0)`, bool; `iou_predictions` `(P, K)`;
        `low_res_logits` `(P, K, L, L)`; tensors of torch where `image` is one.

    Raises:
        ValueError: if the segmenter's frame is not square or not RGB, or a prompt is malformed.
    """

    image_format = "RGB"

    def __init__(self, segmenter: SAMImageSegmenter):
        h, w, channels = segmenter.image_shape
        if h != w or channels != 3:
            raise ValueError(
                "`segmenter` must take square RGB images, as Meta's models do. Received: "
                f"image_shape={segmenter.image_shape}. Use `keras_sam.SAMPredictor` instead."
            )
        self.segmenter = segmenter
        self.image_encoder = ImageEncoderViT(self)
        self.prompt_encoder = PromptEncoder(self)
        self.mask_decoder = MaskDecoder(self)

    @property
    def mask_threshold(self) -> float:
        """Logits above it belong to the mask."""
        return self.segmenter.mask_threshold

    @mask_threshold.setter
    def mask_threshold(self, value: float) -> None:
        self.segmenter.mask_threshold = value

    @property
    def pixel_mean(self) -> np.ndarray:
        """Float32 array `(3, 1, 1)`, of pixels 0..255."""
        return np.float32(self.segmenter.image_encoder.pixel_mean).reshape(-1, 1, 1)

    @property
    def pixel_std(self) -> np.ndarray:
        """Float32 array `(3, 1, 1)`, of pixels 0..255."""
        return np.float32(self.segmenter.image_encoder.pixel_std).reshape(-1, 1, 1)

    def __call__(
        self, batched_input: Sequence[dict[str, Any]], multimask_output: bool
    ) -> list[dict[str, Any]]:
        outputs = []
        for record in batched_input:
            image = to_numpy(record["image"])
            embedding = self.embed(image[None])
            logits, scores = self.decode(
                embedding,
                *(record.get(n) for n in ("point_coords", "point_labels", "boxes", "mask_inputs")),
                multimask_output=multimask_output,
            )
            original_size = record["original_size"]
            masks = self.restored(logits, image.shape[-2:], original_size, self.mask_threshold)
            made = {"masks": masks, "iou_predictions": scores, "low_res_logits": logits}
            outputs.append({name: like(record["image"], x) for name, x in made.items()})
        return outputs

    forward = __call__

    def preprocess(self, x: Any) -> Any:
        """Normalises pixels `(..., 3, h, w)` of 0..255 and pads them to the model's frame.

        Returns:
            Float tensor `(..., 3, H, W)`; its padding is 0.
        """
        pixels = (to_numpy(x).astype("float32") - self.pixel_mean) / self.pixel_std
        missing = [(0, self.image_encoder.img_size - n) for n in pixels.shape[-2:]]
        return like(x, np.pad(pixels, [(0, 0)] * (pixels.ndim - 2) + missing))

    def postprocess_masks(
        self, masks: Any, input_size: tuple[int, int], original_size: tuple[int, int]
    ) -> Any:
        """Cuts off the padding of mask logits and enlarges them to the image's size.

        Args:
            masks: float tensor `(P, K, L, L)`.
            input_size: pair of ints, the resized image's `(h, w)`.
            original_size: pair of ints, `(H0, W0)`.

        Returns:
            Float tensor `(P, K, H0, W0)`.
        """
        return like(masks, self.restored(to_numpy(masks), input_size, original_size, None))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Sets the weights from tensors under Meta's names.

        Raises:
            ValueError: if a tensor is missing, has another shape, or belongs to no weight.
        """
        arrays = converters.rename({k: to_numpy(v) for k, v in state_dict.items()}).arrays
        assign(self.segmenter.weights, arrays, backends.assign_value)

    def state_dict(self) -> dict[str, np.ndarray]:
        """The weights as numpy arrays under Meta's names."""
        arrays = {v.path: backends.to_numpy(v.value) for v in self.segmenter.weights}
        return {k: np.asarray(v) for k, v in converters.to_meta(arrays).items()}

    # --- in numpy, for the predictor ---

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Pixels 0..255 `(B, 3, h, w)`, resized already, to embeddings `(B, Eh, Ew, C)`."""
        return self.image_encoder.encode(self.preprocess(images))

    def decode(
        self,
        embedding: np.ndarray,
        points: Any = None,
        labels: Any = None,
        boxes: Any = None,
        masks: Any = None,
        multimask_output: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Logits `(P, K, L, L)` and scores `(P, K)` of P prompts in the model's frame."""
        first = first_given(points, boxes, masks)
        if first is not None and not len(first):  # a detector that has found nothing
            count = self.mask_decoder.num_mask_tokens - 1 if multimask_output else 1
            shape = (0, count)
            return np.zeros((*shape, *self.segmenter.mask_size), "f4"), np.zeros(shape, "f4")
        prompts = self.prompt_encoder.read(points, labels, boxes, masks)
        outputs = self.segmenter.decode_prompts(
            self.segmenter.checked_features(embedding),
            prompts,
            backends.PROMPT_CHUNK,
            bool(multimask_output),
        )
        return outputs["masks"][0], outputs["iou_pred"][0]

    def restored(
        self,
        logits: np.ndarray,
        input_size: tuple[int, int],
        original_size: tuple[int, int],
        threshold: float | None,
    ) -> np.ndarray:
        """`postprocess_masks` in numpy, of the logits or of the masks above a threshold."""
        frame = self.segmenter.image_shape[:2]
        return restore(logits, original_size, input_size, frame, threshold)


class ImageEncoderViT:
    """`sam.image_encoder`: from what `sam.preprocess` returns to embeddings `(B, C, Eh, Ew)`."""

    def __init__(self, sam: Sam):
        self._sam = sam
        self.img_size = sam.segmenter.image_shape[0]

    def __call__(self, x: Any) -> Any:
        return like(x, channels_first(self.encode(to_numpy(x))))

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Normalised pixels `(B, 3, H, W)` to embeddings `(B, Eh, Ew, C)`, both numpy."""
        # Our encoder normalises inside.
        pixels = x * self._sam.pixel_std + self._sam.pixel_mean
        return self._sam.segmenter.encode_frames(channels_last(pixels))["image_embeddings"]


class PromptEncoder:
    """`sam.prompt_encoder`: prompts in the model's frame to sparse and dense embeddings.

    Call arguments:
        points: optional pair of `(P, N, 2)` and labels `(P, N)`.
        boxes: optional `(P, 4)`.
        masks: optional `(P, 1, L, L)`.

    Returns:
        Tuple of float tensors `(P, T, C)` and `(P, C, Eh, Ew)`.
    """

    def __init__(self, sam: Sam):
        self._segmenter = sam.segmenter
        self._layer = sam.segmenter.prompt_encoder
        self.embed_dim = self._layer.hidden_size
        self.input_image_size = self._segmenter.image_shape[:2]
        self.image_embedding_size = self._segmenter.embedding_size
        self.mask_input_size = self._segmenter.mask_size

    def __call__(
        self, points: tuple[Any, Any] | None = None, boxes: Any = None, masks: Any = None
    ) -> tuple[Any, Any]:
        coords, labels = points or (None, None)
        prompts = self.read(coords, labels, boxes, masks).arrays()
        if masks is None:
            del prompts["masks"], prompts["mask_given"]
        made = self._layer(**{k: keras.ops.convert_to_tensor(v) for k, v in prompts.items()})
        sparse = backends.to_numpy(made["prompt_sparse_embeddings"])[0]
        dense = channels_first(backends.to_numpy(made["prompt_dense_embeddings"])[0])
        dense = np.broadcast_to(dense, (len(sparse), *dense.shape[1:]))
        reference = first_given(coords, boxes, masks)
        return like(reference, sparse), like(reference, dense)

    def get_dense_pe(self) -> np.ndarray:
        """The positions of the embedding's cells, float32 array `(1, C, Eh, Ew)`."""
        positions = self._layer.positional_embedding.encode_image(self.image_embedding_size)
        return channels_first(backends.to_numpy(positions)[None])

    def read(self, points: Any, labels: Any, boxes: Any, masks: Any) -> Prompts:
        """Prompts of one image in the model's frame, each with the axis `P`."""
        if points is not None and labels is None:
            raise ValueError(
                "`point_labels` must be given with `point_coords`: 1 for a point on the object, 0 "
                "for one on the background. Received: point_labels=None."
            )
        given = {"points": points, "labels": labels, "boxes": boxes}
        given = {k: to_numpy(v)[None] for k, v in given.items() if v is not None}
        if masks is not None:
            given["masks"] = to_numpy(masks).astype("float32")[None, :, 0]  # (1, P, L, L)
        plans = self._segmenter.plans(None, None, 1)
        return read(given, 1).to_model(plans, self._segmenter.mask_size)


class MaskDecoder:
    """`sam.mask_decoder`: embeddings of one image and of P prompts to masks.

    Call arguments:
        image_embeddings: `(1, C, Eh, Ew)`.
        image_pe: `(1, C, Eh, Ew)`.
        sparse_prompt_embeddings: `(P, T, C)`.
        dense_prompt_embeddings: `(P, C, Eh, Ew)`.
        multimask_output: bool. Masks 1 to 3, or mask 0 alone.

    Returns:
        Tuple of logits `(P, K, L, L)` and scores `(P, K)`.
    """

    def __init__(self, sam: Sam):
        self._layer = sam.segmenter.mask_decoder
        self.num_mask_tokens = self._layer.num_mask_tokens

    def __call__(
        self,
        image_embeddings: Any,
        image_pe: Any,
        sparse_prompt_embeddings: Any,
        dense_prompt_embeddings: Any,
        multimask_output: bool,
    ) -> tuple[Any, Any]:
        def maps(x):
            return keras.ops.convert_to_tensor(channels_last(to_numpy(x)))

        outputs = self._layer(
            image_embeddings=maps(image_embeddings),
            prompt_dense_positional_embeddings=maps(image_pe),
            prompt_sparse_embeddings=keras.ops.convert_to_tensor(
                to_numpy(sparse_prompt_embeddings)[None]
            ),
            prompt_dense_embeddings=maps(dense_prompt_embeddings)[None],
            multimask_output=bool(multimask_output),
        )
        names = ("masks", "iou_pred")
        return tuple(like(image_embeddings, backends.to_numpy(outputs[name])[0]) for name in names)
