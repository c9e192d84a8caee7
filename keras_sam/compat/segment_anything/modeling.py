"""Meta's `Sam` and its three parts, as callables over a segmenter of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_sam import backends, converters
from keras_sam.compat.tensors import (
    OnDevice,
    channels_first,
    channels_last,
    first_given,
    like,
    native,
    no_prompts,
    restore,
)
from keras_sam.models.sam_image_segmenter import SAMImageSegmenter
from keras_sam.presets.assign import assign
from keras_sam.prompts import Prompts, read
from keras_sam.prompts.nested import to_numpy


class LoadedKeys(NamedTuple):
    """What `load_state_dict` returns: the names that only the model or only the dict has."""

    missing_keys: list[str]
    unexpected_keys: list[str]


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
    def pixel_mean(self) -> Any:
        """Float32 `(3, 1, 1)`, of pixels 0..255; a tensor of torch where torch is imported."""
        return native(self.image_encoder.pixel_mean)

    @property
    def pixel_std(self) -> Any:
        """Float32 `(3, 1, 1)`, of pixels 0..255; a tensor of torch where torch is imported."""
        return native(self.image_encoder.pixel_std)

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
        encoder = self.image_encoder
        pixels = (to_numpy(x).astype("float32") - encoder.pixel_mean) / encoder.pixel_std
        missing = [(0, encoder.img_size - n) for n in pixels.shape[-2:]]
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

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> LoadedKeys:
        """Sets the weights from tensors under Meta's names.

        Args:
            state_dict: dict of tensors or arrays.
            strict: bool. False: weights without a tensor stay as they are, and tensors without a
                weight are left out.

        Returns:
            Named tuple of the lists `missing_keys` and `unexpected_keys`.

        Raises:
            ValueError: if a tensor is missing, has another shape, or belongs to no weight; with
                `strict=False` if it has another shape, or none belongs to a weight.
        """
        keys = LoadedKeys([], [])
        if not strict:
            own = self.state_dict()
            keys = LoadedKeys(
                *(sorted(a.keys() - b) for a, b in ((own, state_dict), (state_dict, own)))
            )
            if len(keys.missing_keys) == len(own):
                raise ValueError(
                    "`state_dict` must have tensors under Meta's names, such as "
                    f"{next(iter(own))!r}. Received: {sorted(state_dict)[:3]}. With `strict=True` "
                    "other names are looked for, such as those of a module around the model."
                )
            state_dict = {name: state_dict.get(name, value) for name, value in own.items()}
        arrays = converters.rename({k: to_numpy(v) for k, v in state_dict.items()}).arrays
        assign(self.segmenter.weights, arrays, backends.assign_value)
        return keys

    def state_dict(self) -> dict[str, Any]:
        """The weights under Meta's names, tensors of torch where torch is imported.

        They are copies: to change the model, pass them to `load_state_dict`.
        """
        arrays = {v.path: backends.to_numpy(v.value) for v in self.segmenter.weights}
        return {k: native(np.array(v)) for k, v in converters.to_meta(arrays).items()}

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


class ImageEncoderViT(OnDevice):
    """`sam.image_encoder`: from what `sam.preprocess` returns to embeddings `(B, C, Eh, Ew)`."""

    def __init__(self, sam: Sam):
        self._sam = sam
        self.img_size = sam.segmenter.image_shape[0]
        encoder = sam.segmenter.image_encoder
        self.pixel_mean, self.pixel_std = (
            np.float32(values).reshape(-1, 1, 1)
            for values in (encoder.pixel_mean, encoder.pixel_std)
        )

    def __call__(self, x: Any) -> Any:
        return like(x, channels_first(self.encode(to_numpy(x))))

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Normalised pixels `(B, 3, H, W)` to embeddings `(B, Eh, Ew, C)`, both numpy."""
        # Our encoder normalises inside.
        pixels = x * self.pixel_std + self.pixel_mean
        return self._sam.segmenter.encode_frames(channels_last(pixels))["image_embeddings"]


class PromptEncoder(OnDevice):
    """`sam.prompt_encoder`: prompts in the model's frame to sparse and dense embeddings.

    Call arguments:
        points: optional pair of `(P, N, 2)` and labels `(P, N)`.
        boxes: optional `(P, 4)`.
        masks: optional `(P, 1, L, L)`.

    Returns:
        Tuple of float tensors `(P, T, C)` and `(P, C, Eh, Ew)`. Without a prompt P is 1, T is 0,
        and they are tensors of torch where torch is imported.
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
        reference = first_given(coords, boxes, masks)
        if reference is None:
            prompts = no_prompts(self._segmenter, 1).arrays()
        else:
            prompts = self.read(coords, labels, boxes, masks).arrays()
        if masks is None:
            del prompts["masks"], prompts["mask_given"]
        made = self._layer(**{k: keras.ops.convert_to_tensor(v) for k, v in prompts.items()})
        sparse = backends.to_numpy(made["prompt_sparse_embeddings"])[0]
        dense = channels_first(backends.to_numpy(made["prompt_dense_embeddings"])[0])
        dense = np.broadcast_to(dense, (len(sparse), *dense.shape[1:]))
        if reference is None:  # not the token of padding
            return native(sparse[:, :0]), native(dense)
        return like(reference, sparse), like(reference, dense)

    def get_dense_pe(self) -> Any:
        """The positions of the embedding's cells, float32 `(1, C, Eh, Ew)`.

        Returns:
            A tensor of torch where torch is imported, otherwise a numpy array.
        """
        positions = self._layer.positional_embedding.encode_image(self.image_embedding_size)
        return native(channels_first(backends.to_numpy(positions)[None]))

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
            given["masks"] = self.checked_masks(masks, ndim=4)[None, :, 0]  # (1, P, L, L)
        plans = self._segmenter.plans(None, None, 1)
        return read(given, 1).to_model(plans, self._segmenter.mask_size)

    def checked_masks(self, masks: Any, ndim: int) -> np.ndarray:
        """Mask prompts `(P, 1, L, L)`, or `(1, L, L)` of one object, as float32 array."""
        array = to_numpy(masks).astype("float32")
        if array.ndim != ndim or array.shape[-3:] != (1, *self.mask_input_size):
            shape = ", ".join(["P"] * (ndim - 3) + ["1", *map(str, self.mask_input_size)])
            raise ValueError(
                f"`mask_input` must have shape ({shape}), logits of an earlier call. Received: "
                f"shape={array.shape}. Of a mask of the image's size, "
                "`keras_sam.mask_to_logits(mask, sam.segmenter)[None, ..., 0]` makes logits "
                f"(1, {shape.partition('1, ')[2]}) for `predict`."
            )
        return array


class MaskDecoder(OnDevice):
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
