"""The task: images and prompts in, masks and their predicted quality out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_sam import backends
from keras_sam.geometry import ResizePlan
from keras_sam.layers.prompt_tensors import canonical_inputs
from keras_sam.models.fine_tuning import FineTuning
from keras_sam.models.image_segmenter import ImageSegmenter
from keras_sam.models.outputs import select_masks
from keras_sam.models.programs import Programs, join_batches
from keras_sam.models.sam_backbone import SAMBackbone
from keras_sam.models.trainable import TrainableSegmenter
from keras_sam.models.vit_det_backbone import check_frame
from keras_sam.preprocessing.batches import Batch, iterate_batches
from keras_sam.preprocessing.converter import ExactFrame, batch_of, check_keys
from keras_sam.preprocessing.preprocessor import (
    Prepared,
    SAMImageSegmenterPreprocessor,
    check_preprocessor,
)
from keras_sam.prompts import CANONICAL_KEYS, PromptDict, Prompts, read, read_canonical
from keras_sam.prompts.nested import check_at_least_one, to_numpy
from keras_sam.prompts.reading import no_prompt


@keras.saving.register_keras_serializable(package="keras_sam")
class SAMImageSegmenter(FineTuning, TrainableSegmenter, ImageSegmenter):
    """Segment Anything: segments what points, boxes and masks indicate, in images of any size.

    `predict` takes images of any size and prompts in their pixels, and returns mask logits in
    the model's mask frame. Calling the model on tensors works in the model frame: images
    `(B, H, W, channels)`, prompts in its pixels.

    Args:
        backbone: a `SAMBackbone`.
        preprocessor: optional `SAMImageSegmenterPreprocessor`. Without one, images must have
            the model's `image_shape`, with pixel values 0..255 and prompts in that frame.
        mask_threshold: float. Logits above it belong to the mask. Defaults to `0.0`.

    Call arguments:
        inputs: dict of `images` and prompts, see `SAMBackbone`; or of `image_embeddings`
            `(B, Eh, Ew, C)` and the canonical prompts.

    Returns:
        Dict of `masks`, logits `(B, P, K, Lh, Lw)`, and `iou_pred` `(B, P, K)`, with
        `K = 1 + num_multimask_outputs`. `P` is missing when every prompt came in the
        single-object form: `points (B, N, 2)`, `boxes (B, 1, 2, 2)`, `masks (B, 1, Lh, Lw, 1)`.

    Raises:
        ValueError: if prompts do not fit together, see `predict`, or the preprocessor does not
            fit the backbone.

    Source:
        Kirillov et al. 2023, https://arxiv.org/abs/2304.02643.

    Example:

    ```python
    segmenter = keras_sam.SAMImageSegmenter(tiny_backbone)
    outputs = segmenter.predict(
        {
            "images": np.zeros((1, *tiny_backbone.image_shape)),
            "points": [[[20, 30]]],
            "labels": [[1]],
        },
        verbose=0,
    )
    best = keras_sam.best_mask(keras_sam.select_masks(outputs, multimask_output=True))
    best["masks"].shape  # (1, 1, Lh, Lw)
    ```
    """

    backbone_cls = SAMBackbone
    preprocessor_cls = SAMImageSegmenterPreprocessor

    def __init__(
        self,
        backbone: SAMBackbone,
        preprocessor: SAMImageSegmenterPreprocessor | None = None,
        mask_threshold: float = 0.0,
        dtype: str | keras.DTypePolicy | None = None,
        **kwargs: Any,
    ):
        check_preprocessor(preprocessor, backbone)
        inputs = backbone.input
        outputs = backbone.mask_decoder(**backbone(inputs))
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)
        if dtype is not None:
            self.dtype_policy = keras.dtype_policies.get(dtype)
        self.backbone = backbone
        self.preprocessor = preprocessor
        self.mask_threshold = mask_threshold
        self.image_shape = backbone.image_shape  # (H, W, channels) of the model frame
        self.embedding_size = backbone.embedding_size  # (Eh, Ew) of the image embedding
        self.mask_size = backbone.mask_size  # (Lh, Lw) of mask prompts and mask logits
        self._programs = Programs(backbone)

    @property
    def input_spec(self) -> None:
        # As in `SAMBackbone`: other forms of prompts must reach `call`, which converts them.
        return None

    @property
    def image_encoder(self) -> keras.Model:
        """The image encoder, a model of its own."""
        return self.backbone.image_encoder

    @property
    def prompt_encoder(self) -> keras.layers.Layer:
        """The prompt encoder, a layer of its own."""
        return self.backbone.prompt_encoder

    @property
    def mask_decoder(self) -> keras.layers.Layer:
        """The mask decoder, a layer of its own."""
        return self.backbone.mask_decoder

    def call(self, inputs: dict[str, Any], training: bool | None = None, mask: Any = None) -> dict:
        if "image_embeddings" in inputs:  # training on what `CachedEmbeddings` holds
            prompts = self.prompt_encoder(**{name: inputs[name] for name in CANONICAL_KEYS})
            embeddings = inputs["image_embeddings"]
            return self.mask_decoder(image_embeddings=embeddings, **prompts, training=training)
        check_frame(inputs["images"], self.image_shape)
        inputs, single_object = canonical_inputs(inputs, self.mask_size)
        outputs = super().call(inputs, training=training)
        if single_object:
            outputs = {name: x[:, 0] for name, x in outputs.items()}
        return outputs

    def predict(
        self,
        x: Any,
        batch_size: int | None = 1,
        verbose: str | int = "auto",
        steps: int | None = None,
        callbacks: Sequence[keras.callbacks.Callback] | None = None,
        prompt_chunk: int = backends.PROMPT_CHUNK,
    ) -> dict[str, np.ndarray]:
        """Segments what the prompts indicate, in one call for all images.

        Args:
            x: dict of `images` and at least one kind of prompt, arrays, backend tensors or
                nested lists, ragged where needed; or a `tf.data.Dataset`,
                `keras.utils.PyDataset`, torch `DataLoader` or other iterable of batches of
                such dicts, or of tuples whose first entry is one. In pixels of each image:

                * `images`: `(B, H0, W0, 3)`, or a list of arrays `(H0, W0, 3)`, paths or PIL
                  images of any size.
                * `points` with `labels`: `(B, N, 2)` for one object per image or
                  `(B, P, N, 2)` for P objects; x, y; 1 is foreground, 0 background. They
                  may lie outside the image.
                * `boxes`: `(B, P, 4)` or `(B, P, 2, 2)`, one object each, or `(B, P, M, 4)`, M
                  boxes of one object; x1, y1, x2, y2.
                * `masks`: logits `(B, P, Lh, Lw, 1)` in the model's mask frame, or
                  `(B, P, H0, W0, 1)` in the image's.
            batch_size: int. Images that are encoded at once, when `x` is a dict.
            verbose: `"auto"`, 0, 1 or 2, as in `keras.Model.predict`.
            steps: optional int. The number of batches to stop after.
            callbacks: optional list of `keras.callbacks.Callback`.
            prompt_chunk: int. Prompts of an image that are decoded at once.

        Returns:
            Dict of arrays: `masks`, logits `(B, P, K, Lh, Lw)`; `iou_pred` `(B, P, K)`;
            `lone_click` `(B, P)`, True where a prompt is ambiguous, see `select_masks`;
            `num_prompts` `(B,)`: where images have fewer than `P` prompts, the rest of
            `masks` and `iou_pred` is NaN. The axis `P` and `num_prompts` are missing when
            every prompt came in the single-object form. `restore_masks` takes the logits
            to the original images.

        Raises:
            ValueError: if there is no image or prompt, or one of them is malformed; the
                message names the argument, what was received, and the remedy.
        """
        check_at_least_one(prompt_chunk, "prompt_chunk")
        batches, total = iterate_batches(x, batch_size, steps)
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = keras.callbacks.CallbackList(
                callbacks,
                add_progbar=verbose != 0,
                verbose=1 if verbose == "auto" else verbose,
                epochs=1,
                steps=total,
                model=self,
            )
        self.stop_predicting = False  # a callback may set it
        results = []
        callbacks.on_predict_begin()
        for step, batch in enumerate(batches):
            callbacks.on_predict_batch_begin(step)
            results.append(self._predict_batch(batch, prompt_chunk))
            callbacks.on_predict_batch_end(step, {"outputs": join_batches(results[-1:])})
            if self.stop_predicting:
                break
        callbacks.on_predict_end()
        outputs = join_batches(results)
        if not outputs["masks"].shape[1]:
            raise no_prompt("any image")
        return outputs

    def _predict_batch(self, batch, prompt_chunk):
        if batch.prompts is not None and not batch.prompts.num_prompts.any():
            # No image has an object, so there is nothing to encode.
            return self._programs.decode_nothing(batch.prompts)
        prepared = self.prepare_batch(batch)
        embeddings = self._programs.encode(prepared.images)
        return self._programs.decode(embeddings, prepared.prompts, prompt_chunk)

    def prepare(self, batch: dict) -> dict:
        """Turns one batch of images and prompts into the canonical inputs.

        Args:
            batch: dict as `predict` takes it. Prompts that come with `mask_given` are
                canonical already, and their images in the model frame.

        Returns:
            Dict of numpy arrays, see `SAMImageSegmenterPreprocessor`.

        Raises:
            ValueError: see `predict`.
        """
        return self.prepare_batch(Batch.read(batch)).arrays()

    def prepare_batch(self, batch: Batch) -> Prepared:
        """Takes a batch whose prompts are read to the model frame.

        What was `image_embeddings` stays so, in place of images.
        """
        x, prompts = batch.x, batch.prompts
        if "images" not in x:
            images = self.checked_embeddings(x["image_embeddings"])
        elif batch.in_model_frame:
            images = _checked_frames(x["images"], self.image_shape, "images")
        elif _is_customized(self.preprocessor):
            made = self.preprocessor(x)  # which may add prompts of its own
            plans = self.plans(made.get("original_sizes"), len(made["images"]))
            return Prepared(made["images"], read_canonical(made), plans)
        else:
            check_keys(x)
            if prompts is None:
                raise no_prompt("the whole call")
            images, plans = self._image_converter.convert(x["images"])
            return Prepared(images, prompts.to_model(plans, self.mask_size), plans)
        plans = self.plans(x.get("original_sizes"), len(images))
        if prompts is not None and not batch.in_model_frame:
            prompts = prompts.to_model(plans, self.mask_size)
        return Prepared(images, prompts, plans)

    @property
    def _image_converter(self):
        """The preprocessor's, or without one a stand-in that takes the model's own size alone."""
        if self.preprocessor is None:
            return ExactFrame.for_encoder(self.image_encoder)
        return self.preprocessor.image_converter

    def encode(
        self,
        images: Any,
        batch_size: int = 1,
        return_hidden_states: bool = False,
        return_attentions: bool = False,
    ) -> np.ndarray | dict[str, Any]:
        """Encodes images: the expensive part, which does not depend on prompts.

        Args:
            images: as in `predict`.
            batch_size: int. Images that are encoded at once.
            return_hidden_states: bool. Also return the embedded patches and every block's
                output.
            return_attentions: bool. Also return every block's attention map.

        Returns:
            Float32 array `(B, Eh, Ew, C)`. With a `return_` argument, a dict with the array as
            `image_embeddings`, and the lists `hidden_states` and `attentions`, see
            `ViTDetBackbone.with_outputs`.

        Raises:
            ValueError: for images that `predict` would refuse.
        """
        returned = (return_hidden_states, return_attentions)
        return self._encode(batch_of(images), batch_size, self._image_converter, *returned)

    def encode_frames(
        self,
        frames: Any,
        batch_size: int = 1,
        return_hidden_states: bool = False,
        return_attentions: bool = False,
    ) -> np.ndarray | dict[str, Any]:
        """`encode` for images that are in the model frame already; no preprocessor is used.

        Args:
            frames: float or uint8 array `(B, H, W, channels)`, pixel values 0..255.
            batch_size: this and the others as in `encode`, which returns the same.

        Raises:
            ValueError: if `frames` has another shape.
        """
        frames = _checked_frames(frames, self.image_shape, "frames")
        returned = (return_hidden_states, return_attentions)
        return self._encode(frames, batch_size, lambda batch: batch, *returned)

    def _encode(self, images, batch_size, to_frames, hidden_states, attentions):
        check_at_least_one(batch_size, "batch_size")
        parts = []
        for start in range(0, len(images), batch_size):  # read when needed: frames are large
            frames = to_frames(images[start : start + batch_size])
            if hidden_states or attentions:
                parts.append(self._programs.inspect(frames, hidden_states, attentions))
            else:
                parts.append(self._programs.encode(frames))
        return keras.tree.map_structure(lambda *arrays: np.concatenate(arrays), *parts)

    def decode(
        self,
        image_embeddings: Any,
        prompts: PromptDict | dict[str, Any],
        original_sizes: Any = None,
        prompt_chunk: int = backends.PROMPT_CHUNK,
        attention_similarity: Any = None,
        target_embedding: Any = None,
        return_attentions: bool = False,
        multimask_output: bool | str | None = None,
    ) -> dict[str, np.ndarray]:
        """Decodes prompts for images that `encode` has encoded.

        Args:
            image_embeddings: float array `(B, Eh, Ew, C)`.
            prompts: dict of prompts as in `predict`, without `images`; or the canonical ones
                that `prepare` returns, in the model frame.
            original_sizes: optional int array `(B, 2)`, height and width in pixels of the
                images that prompts refer to, or a list of `ResizePlan`. By default prompts
                are in the model frame.
            prompt_chunk: int. Prompts of an image that are decoded at once.
            attention_similarity: optional float array that broadcasts to
                `(B, P, D, 1 + K + T, Eh * Ew)`, see `SAMMaskDecoder`.
            target_embedding: optional float array that broadcasts to
                `(B, P, 1 + K + T, C)`, see `SAMMaskDecoder`.
            return_attentions: bool. Also return the decoder's attention maps, as
                `attentions`, see `TwoWayTransformer`.
            multimask_output: optional. Which masks to compute and return, as in
                `select_masks`. By default all `K`.

        Returns:
            Dict as `predict` returns it. Hooks and attention maps run the decoder layer by layer
            and all prompts at once, which is slower.

        Raises:
            ValueError: for malformed prompts, or embeddings of another shape.
        """
        check_at_least_one(prompt_chunk, "prompt_chunk")
        embeddings = self.checked_embeddings(image_embeddings)
        plans = self.plans(original_sizes, len(embeddings))
        if isinstance(prompts, dict) and "mask_given" in prompts:
            prompts = read_canonical(prompts)
        else:
            prompts = read(prompts, len(embeddings)).to_model(plans, self.mask_size)
        return self.decode_prompts(
            embeddings,
            prompts,
            prompt_chunk,
            multimask_output,
            attention_similarity=attention_similarity,
            target_embedding=target_embedding,
            return_attentions=return_attentions,
        )

    def decode_prompts(
        self,
        embeddings: np.ndarray,
        prompts: Prompts,
        prompt_chunk: int,
        multimask_output: bool | str | None,
        return_attentions: bool = False,
        **hooks: Any,
    ) -> dict[str, np.ndarray]:
        """`decode` of `Prompts` in the model frame, and of embeddings that are checked already."""
        hooks = {name: to_numpy(x) for name, x in hooks.items() if x is not None}
        if not hooks and not return_attentions:
            made = None if multimask_output == "auto" else multimask_output
            outputs = self._programs.decode(embeddings, prompts, prompt_chunk, made)
            outputs = join_batches([outputs])
            return select_masks(outputs, "auto") if multimask_output == "auto" else outputs
        outputs = self._programs.inspect_decoder(embeddings, prompts, hooks, return_attentions)
        attentions = outputs.pop("attentions", None)
        outputs = join_batches([outputs])
        if multimask_output is not None:
            outputs = select_masks(outputs, multimask_output)
        return outputs if attentions is None else {**outputs, "attentions": attentions}

    def at_image_shape(self, image_shape: Sequence[int]) -> SAMImageSegmenter:
        """A segmenter with the same weights for another input size.

        Position tables are interpolated, as when a preset is loaded with `image_shape=`. The new
        segmenter has a preprocessor for its frame if this one has one, and shares no weights with
        it.

        Args:
            image_shape: tuple `(H, W)` or `(H, W, channels)` of the new model frame.

        Returns:
            A new segmenter.

        Raises:
            ValueError: if the sides are not multiples of the patch size.
        """
        backbone = self.backbone.at_image_shape(image_shape)
        preprocessor = None
        if self.preprocessor is not None:
            preprocessor = self.preprocessor_cls.for_backbone(backbone)
        return type(self)(backbone, preprocessor, mask_threshold=self.mask_threshold)

    def plans(self, original_sizes: Any, count: int) -> list[ResizePlan]:
        """How `count` images of these sizes are scaled to the model frame.

        `original_sizes` may be an int array `(B, 2)`, a list of pairs `(H0, W0)` or of
        `ResizePlan`, or None for images that are in the model frame already.
        """
        frame = self.image_shape[:2]
        if original_sizes is None:
            return [ResizePlan(frame, frame)] * count
        is_list = isinstance(original_sizes, (list, tuple)) and len(original_sizes) == count
        if is_list and all(isinstance(size, ResizePlan) for size in original_sizes):
            return list(original_sizes)
        sizes = to_numpy(original_sizes)
        if sizes.shape != (count, 2) or sizes.dtype.kind not in "iu":
            raise ValueError(
                "`original_sizes` must have one (height, width) in pixels per image, integers of "
                f"shape ({count}, 2). Received: {original_sizes!r:.80}."
            )
        sizes = [tuple(size) for size in sizes.tolist()]
        return [self._image_converter.plan(size) for size in sizes]

    def checked_embeddings(self, embeddings: Any) -> np.ndarray:
        """Embeddings as float32 numpy `(B, Eh, Ew, C)`, or a ValueError for another shape."""
        embeddings = to_numpy(embeddings).astype("float32", copy=False)
        wanted = (*self.embedding_size, self.prompt_encoder.hidden_size)
        if embeddings.shape[1:] != wanted or not len(embeddings):
            raise ValueError(
                f"`image_embeddings` must have shape (B, {', '.join(map(str, wanted))}), as this "
                f"model's `encode` returns them. Received: shape={embeddings.shape}."
            )
        return embeddings

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "mask_threshold": self.mask_threshold}


def _checked_frames(frames, image_shape, name):
    """Arrays in the model frame as one float32 array `(B, H, W, channels)`, or an error."""
    frames = to_numpy(frames)
    if frames.shape[1:] != tuple(image_shape) or not len(frames):
        raise ValueError(
            f"`{name}` must have shape (B, {', '.join(map(str, image_shape))}), images in the "
            f"model frame, pixel values 0..255. Received: shape={frames.shape}."
        )
    return frames.astype("float32", copy=False)


def _is_customized(preprocessor):
    """Whether a preprocessor is of another class than ours, or a subclass that is called its way.

    It is then called with the dict as it is, and what it returns is trusted.
    """
    if preprocessor is None:
        return False
    ours = SAMImageSegmenterPreprocessor
    own = (type(preprocessor).__call__, getattr(type(preprocessor), "call", None))
    return own != (ours.__call__, ours.call)
