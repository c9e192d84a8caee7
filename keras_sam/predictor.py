"""Interactive segmentation: an image is encoded once, then any number of prompts is decoded."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from keras_sam.encode_decode import EMBEDDINGS, EncodesAndDecodes, check_segmenter
from keras_sam.files import whole_file
from keras_sam.framing import check_batch
from keras_sam.geometry import SIZES, ResizePlan
from keras_sam.namespaces import import_with_keras
from keras_sam.prompts import PromptLike, read
from keras_sam.prompts.nested import to_numpy
from keras_sam.prompts.spellings import refuses_unknown_arguments

_EMBEDDING_FORMAT = "keras_sam image embedding 1"


class SAMPredictor:
    """Segments one image, or a few, prompt after prompt: original pixels in, original size out.

    `set_image` runs the image encoder, which takes seconds; each `predict` after it runs only the
    prompt encoder and the mask decoder. A predictor belongs to one thread, but predictors in
    several threads may share a segmenter.

    Args:
        segmenter: a `SAMImageSegmenter`, or what `SAMImageSegmenter.from_preset` takes: the name,
            address or path of a preset; or an `ExportedSegmenter`, with which nothing here needs
            Keras.
        preprocessor: optional `SAMImageSegmenterPreprocessor`. Defaults to the segmenter's own,
            or to one that fits its backbone if it has none.

    Raises:
        ValueError: if `segmenter` is something else, or the preprocessor makes images of another
            size than the model takes.

    Source:
        `SamPredictor` in facebookresearch/segment-anything@dca509f.

    Example:

    ```python
    predictor = keras_sam.SAMPredictor(tiny_segmenter)
    predictor.set_image(np.zeros((60, 90, 3), "uint8"))
    masks, scores, logits = predictor.predict(points=[[45, 30]], labels=[1])
    masks.shape  # (3, 60, 90)
    best = logits[np.argmax(scores)]
    refined, _, _ = predictor.predict(
        points=[[45, 30], [10, 10]], labels=[1, 0], masks=best, multimask_output=False
    )
    ```
    """

    @refuses_unknown_arguments
    def __init__(self, segmenter: EncodesAndDecodes | str | os.PathLike, preprocessor: Any = None):
        if isinstance(segmenter, (str, os.PathLike)):
            home = "keras_sam.models.sam_image_segmenter"
            models = import_with_keras(home, "SAMImageSegmenter")
            segmenter = models.SAMImageSegmenter.from_preset(segmenter)
        check_segmenter(segmenter)
        self.segmenter = segmenter
        self.preprocessor = segmenter.predicting_preprocessor(preprocessor)
        self.reset()

    def reset(self) -> None:
        """Forgets the image, so that `predict` cannot answer for an old one."""
        # Features by name and plans, together: whatever interrupts, they belong together.
        self._images: tuple[dict[str, np.ndarray], list[ResizePlan]] | None = None

    @property
    def is_image_set(self) -> bool:
        """Whether there is an image to predict for."""
        return self._images is not None

    @property
    def image_embeddings(self) -> np.ndarray:
        """Float32 array `(B, Eh, Ew, C)`, read-only: the embeddings of the images that are set."""
        return self.features[EMBEDDINGS]

    @property
    def features(self) -> dict[str, np.ndarray]:
        """`image_embeddings`, and the encoder's other features if it has any, all read-only."""
        return dict(self._images_set()[0])

    @property
    def original_sizes(self) -> list[tuple[int, int]]:
        """Height and width in pixels of each image that is set."""
        return [plan.original_size for plan in self._images_set()[1]]

    @refuses_unknown_arguments
    def set_image(self, image: Any, channel_order: str | None = None) -> None:
        """Encodes an image for the calls of `predict` that follow.

        Args:
            image: array `(H0, W0, 3)`, `(H0, W0)` or `(1, H0, W0, 3)`, PIL image or path; values
                0..255.
            channel_order: optional `"rgb"` or `"bgr"`, the order of an array's channels.
                Defaults to the preprocessor's, which is `"rgb"` unless it was made otherwise.

        Raises:
            ValueError: if the image is empty, not finite or has the wrong channels; the
                image that was set before is then gone.
            FileNotFoundError: if there is no such file.
        """
        if len(getattr(image, "shape", ())) == 4 and len(image) == 1:
            image = image[0]
        self.set_images([image], channel_order=channel_order, verbose=0)

    @refuses_unknown_arguments
    def set_images(
        self, images: Sequence[Any], channel_order: str | None = None, verbose="auto"
    ) -> None:
        """Encodes several images; `predict(..., image_index=i)` picks one.

        Args:
            images: list of images of any size, each as in `set_image`.
            channel_order: optional `"rgb"` or `"bgr"`, see `set_image`.
            verbose: `"auto"` or 1 for a progress bar over several images, 0 for none.

        Raises:
            ValueError: if there is no image, and see `set_image`.
        """
        self.reset()
        check_batch(images)
        overrides = {} if channel_order is None else {"channel_order": channel_order}
        self._encode(images, verbose, **overrides)

    def set_pixels(self, pixels: np.ndarray) -> None:
        """`set_image` of an image whose values are read already.

        Args:
            pixels: array `(H0, W0, channels)`, RGB and 0..255, as the preprocessor's
                `image_converter.read` returns it.
        """
        self.reset()
        read = {"channel_order": "rgb", "data_format": "channels_last", "value_range": None}
        self._encode([pixels], 0, **read)

    def _encode(self, images, verbose, **overrides):
        progress = verbose not in (0, False) and len(images) > 1
        advance = self.segmenter.progress_bar(len(images), "image") if progress else None
        encoded, plans = [], []
        for image in images:
            frame, plan = self.preprocessor.image_converter.convert([image], **overrides)
            encoded.append(self.segmenter.checked_features(self.segmenter.encode_frames(frame)))
            plans += plan
            if advance:
                advance(1)
        self._set({name: np.concatenate([x[name] for x in encoded]) for name in encoded[0]}, plans)

    @refuses_unknown_arguments
    def predict(
        self,
        points: PromptLike = None,
        labels: PromptLike = None,
        boxes: PromptLike = None,
        masks: PromptLike = None,
        multimask_output: bool | str = True,
        return_logits: bool = False,
        mask_threshold: float | None = None,
        image_index: int = 0,
        prompt_chunk: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks of the original image for one object, or for P objects at once.

        Args:
            points: `(N, 2)`, or `(P, N, 2)` for P objects, or a ragged list, or `(2,)` for one
                click; x, y in pixels of the original image.
            labels: as `points` without the last axis: 1 foreground, 0 background. Defaults to
                foreground.
            boxes: `(4,)`, or `(P, 4)` for P objects, or `(P, M, 4)` for M boxes of each;
                x1, y1, x2, y2 in pixels of the original image. With `(0, 4)`, from a detector
                that found nothing, the results have `P = 0`.
            masks: mask logits to refine, `(L, L)` or `(P, L, L)`, from an earlier call or from
                `mask_to_logits`; or logits of the original image's size. `(1, L, L)` counts as
                one object's, too. Binary masks of these sizes, bool or black and white, become
                logits as by `mask_to_logits`.
            multimask_output: `True` for the three candidates of an ambiguous prompt, `False`
                for the one mask of an unambiguous prompt, `"auto"` for one mask, chosen as
                `select_masks` says.
            return_logits: bool. Return float logits of the original size instead of masks.
            mask_threshold: optional float. Logits above it belong to the mask. Defaults to
                the segmenter's.
            image_index: int. Which of the images of `set_images`.
            prompt_chunk: optional int. Prompts that are decoded at once. By default as many as suit
                the backend.

        Returns:
            Tuple of `masks`, bool `(K, H0, W0)`, or float32 with `return_logits=True`;
            `scores`, float32 `(K,)`, the predicted IoU of each; and `logits`, float32
            `(K, L, L)`, to be passed as `masks` again. With prompts for P objects each has one
            more axis `P` in front.

        Raises:
            RuntimeError: if no image is set.
            ValueError: if a prompt is malformed; the message names it and the remedy.
            IndexError: if there is no image `image_index`.
            TypeError: if there is another argument; the message says which may be meant.
        """
        features, plan = self._image(image_index)
        prompt_chunk = self.segmenter.checked_chunk(prompt_chunk)
        given = {"points": points, "labels": labels, "boxes": boxes, "masks": masks}
        mask_size = self.segmenter.mask_size
        prompts = read(given, mask_sizes=(mask_size, plan.original_size))
        prompts = prompts.to_model([plan], mask_size)
        outputs = self.segmenter.decode_prompts(features, prompts, prompt_chunk, multimask_output)
        scores, logits = outputs["iou_pred"][0], outputs["masks"][0]  # ([P,] K), ([P,] K, L, L)
        threshold = self.segmenter.mask_threshold if mask_threshold is None else mask_threshold
        restored = plan.masks_to_original(logits, None if return_logits else threshold)
        return restored, scores, self.segmenter.logits_as_prompt(logits)

    def preprocess_masks(self, masks: Any, image_index: int = 0) -> np.ndarray:
        """Mask logits of the original image, in the frame of the model's mask prompts.

        Args:
            masks: float array `(..., H0, W0)` of logits. A binary mask goes into `predict` as
                it is.
            image_index: int. Which of the images of `set_images`.

        Returns:
            Float32 array `(..., L, L)`.

        Raises:
            RuntimeError: if no image is set.
            IndexError: if there is no image `image_index`.
            ValueError: if the size is not the image's, or they are no finite floats.
        """
        _, plan = self._image(image_index)
        masks = to_numpy(masks)
        if masks.dtype.kind != "f" or not np.isfinite(masks).all():
            raise ValueError(
                "`masks` must be finite float logits. Received: "
                f"{'values that are not finite' if masks.dtype.kind == 'f' else masks.dtype}. "
                "A binary mask goes into `predict` as it is."
            )
        return plan.masks_to_model(masks, self.segmenter.mask_size)

    def save_embedding(self, path: str | os.PathLike) -> None:
        """Writes the embeddings of the images that are set, to be loaded without the encoder.

        Args:
            path: file to write, in the safetensors format, whole or not at all.

        Raises:
            RuntimeError: if no image is set.
            OSError: if the file cannot be written.
        """
        features, plans = self._images_set()
        tensors = {
            # safetensors writes the bytes as they lie in memory.
            **{name: np.ascontiguousarray(x) for name, x in features.items()},
            "original_sizes": np.array([plan.original_size for plan in plans], "int64"),
            "scaled_sizes": np.array([plan.scaled_size for plan in plans], "int64"),
        }
        metadata = {"format": _EMBEDDING_FORMAT, "model": self._fingerprint()}
        content = safetensors.numpy.save(tensors, metadata)
        with whole_file(path) as file:
            file.write(content)

    def load_embedding(self, path: str | os.PathLike) -> None:
        """Sets the images whose embeddings `save_embedding` wrote, without encoding them again.

        Args:
            path: file to read.

        Raises:
            ValueError: if the file is damaged, no embedding, or made by another model or with
                another preprocessing; the images that were set before stay.
            OSError: if there is no such file, or it cannot be read.
        """
        tensors, model = _read_embedding(path)
        if model != self._fingerprint():
            raise ValueError(
                f"The embedding in {path} was made by another model, with other weights or another "
                "image size: its masks would be wrong. Encode the image again with `set_image`."
            )
        sizes = [tensors.pop(name, None) for name in SIZES]
        wanted = self.segmenter.feature_shapes
        if tensors.keys() != wanted.keys() or any(x is None for x in sizes):
            raise _damaged(path, f"it holds {sorted(tensors)}")
        count = len(sizes[0])
        shapes = {name: (count, *shape) for name, shape in wanted.items()}
        if {name: x.shape for name, x in tensors.items()} != shapes or any(
            x.shape != (count, 2) for x in sizes
        ):
            raise _damaged(path, f"its shapes are {[x.shape for x in tensors.values()]}")
        plan = self.preprocessor.image_converter.plan
        plans = [plan(tuple(size)) for size in sizes[0].tolist()]
        if [list(plan.scaled_size) for plan in plans] != sizes[1].tolist():
            raise ValueError(
                f"The image of the embedding in {path} was scaled in another way than this "
                "predictor's preprocessor scales: its masks would be wrong. Encode the image again "
                "with `set_image`."
            )
        self._set(tensors, plans)

    def _set(self, features, plans):
        for x in features.values():
            x.setflags(write=False)
        self._images = (features, plans)

    def _images_set(self):
        images = self._images
        if images is None:
            raise RuntimeError("No image is set: call `set_image` before this.")
        return images

    def _image(self, image_index):
        """One image's features, `B = 1`, and its plan."""
        features, plans = self._images_set()
        if not 0 <= image_index < len(plans):
            raise IndexError(
                f"`image_index` must be 0 to {len(plans) - 1}, one of the images that are set. "
                f"Received: image_index={image_index}."
            )
        chosen = slice(image_index, image_index + 1)
        return {name: x[chosen] for name, x in features.items()}, plans[image_index]

    def _fingerprint(self):
        return self.segmenter.encoder_fingerprint()


def _read_embedding(path):
    """The tensors of an embedding's file by name, and the fingerprint of its model."""
    with open(path, "rb") as file:
        content = file.read()
    try:
        tensors = safetensors.numpy.load(content)
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    except (safetensors.SafetensorError, ValueError) as error:
        raise _damaged(path, error) from error
    if metadata.get("format") != _EMBEDDING_FORMAT:
        raise ValueError(f"`path` must be a file that `save_embedding` wrote. Received: {path}.")
    return tensors, metadata.get("model")


def _damaged(path, reason):
    return ValueError(
        f"`path` must be a file that `save_embedding` wrote. Received: {path}, which is damaged or "
        f"something else ({reason}). Save it again."
    )
