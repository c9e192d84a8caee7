"""The task: images and prompts in, masks and their predicted quality out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_sam import backends
from keras_sam.backends import private
from keras_sam.encode_decode import EMBEDDINGS, EncodesAndDecodes, checked_frames, join_batches
from keras_sam.generator_settings import check_generator_settings
from keras_sam.geometry import SIZES
from keras_sam.layers.arguments import of_one_kind
from keras_sam.layers.prompt_tensors import canonical_inputs, prompt_axes
from keras_sam.models.fine_tuning import FineTuning
from keras_sam.models.image_segmenter import ImageSegmenter
from keras_sam.models.programs import Programs
from keras_sam.models.sam_backbone import SAMBackbone
from keras_sam.models.trainable import TrainableSegmenter
from keras_sam.models.vit_det_backbone import check_frame, encoder_fingerprint
from keras_sam.preprocessing.batches import Batch, iterate_batches
from keras_sam.preprocessing.converter import check_images
from keras_sam.preprocessing.exact_frame import ExactFrame
from keras_sam.preprocessing.preprocessor import (
    Prepared,
    SAMImageSegmenterPreprocessor,
    check_preprocessor,
    resizing_preprocessor,
)
from keras_sam.prompts import CANONICAL_KEYS, KEYS, read_canonical
from keras_sam.prompts.reading import no_prompt
from keras_sam.prompts.spellings import refuses_unknown_arguments, unknown_names


@keras.saving.register_keras_serializable(package="keras_sam")
class SAMImageSegmenter(EncodesAndDecodes, FineTuning, TrainableSegmenter, ImageSegmenter):
    """Segment Anything: segments what points, boxes and masks indicate, in images of any size.

    `predict` takes images of any size and prompts in their pixels, and returns mask logits in
    the model's mask frame. Calling the model on tensors works in the model frame: images
    `(B, H, W, channels)`, prompts in its pixels.

    Args:
        backbone: a `SAMBackbone`.
        preprocessor: optional `SAMImageSegmenterPreprocessor`. Without one, images must have
            the model's `image_shape`, with pixel values 0..255 and prompts in that frame.
        mask_threshold: float. Logits above it belong to the mask. Defaults to `0.0`.
        generator_settings: optional dict of parameters of `SAMAutomaticMaskGenerator`, such as
            `{"pred_iou_thresh": 0.7}`, which it takes for this model where they are not passed.
            Files and presets keep them.

    Call arguments:
        inputs: dict of `images` and prompts, see `SAMBackbone`; or of `image_embeddings`
            `(B, Eh, Ew, C)`, the encoder's other features if it has any, and the canonical prompts.

    Returns:
        Dict of `masks`, logits `(B, P, K, Lh, Lw)`, and `iou_pred` `(B, P, K)`, with
        `K = 1 + num_multimask_outputs`. `P` is missing when every prompt came in the
        single-object form: `points (B, N, 2)`, `boxes (B, 1, 2, 2)`, `masks (B, 1, Lh, Lw, 1)`.

    Raises:
        ValueError: if prompts do not fit together, see `predict`, the preprocessor does not fit
            the backbone, or `generator_settings` names a parameter that the generator does not
            have.

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

    prompt_chunk = backends.PROMPT_CHUNK
    backbone_cls = SAMBackbone
    preprocessor_cls = SAMImageSegmenterPreprocessor

    def __init__(
        self,
        backbone: SAMBackbone,
        preprocessor: SAMImageSegmenterPreprocessor | None = None,
        mask_threshold: float = 0.0,
        dtype: str | keras.DTypePolicy | None = None,
        generator_settings: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        if not isinstance(backbone, SAMBackbone):
            raise ValueError(
                f"`backbone` must be a `SAMBackbone`. Received: {backbone!r:.80}. A preset is "
                "loaded by its name with `SAMImageSegmenter.from_preset(name)`."
            )
        check_preprocessor(preprocessor, backbone)
        generator_settings = check_generator_settings(generator_settings)
        inputs = backbone.input
        outputs = backbone.mask_decoder(**backbone(inputs))
        super().__init__(inputs=inputs, outputs=outputs, dtype=dtype, **kwargs)
        self.backbone = backbone
        self.preprocessor = preprocessor
        self.mask_threshold = mask_threshold
        self.generator_settings = generator_settings
        self.image_shape = backbone.image_shape  # (H, W, channels) of the model frame
        self.embedding_size = backbone.embedding_size  # (Eh, Ew) of the image embedding
        self.mask_size = backbone.mask_size  # (Lh, Lw) of mask prompts and mask logits
        self._programs = Programs(backbone)

    @property
    def input_spec(self) -> None:
        # As in `SAMBackbone`: other forms of prompts must reach `call`, which converts them.
        return None

    @functools.cached_property
    def feature_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes, without the axis `B`, of what `encode` returns for `decode`, sizes aside."""
        return self.backbone.feature_shapes

    @property
    def num_mask_tokens(self) -> int:
        """How many masks `decode` makes of a prompt, `K`."""
        return self.mask_decoder.num_mask_tokens

    def predicting_preprocessor(self, preprocessor: Any = None) -> Any:
        """The preprocessor for images of any size: the given one if it fits, or a default."""
        preprocessor = preprocessor or resizing_preprocessor(self)
        check_preprocessor(preprocessor, self.backbone)
        return preprocessor

    def encoder_fingerprint(self) -> str:
        """A hash of everything that embeddings depend on, see `ViTDetBackbone.fingerprint`."""
        return encoder_fingerprint(self.image_encoder)

    def progress_bar(self, total: int, unit: str) -> Callable[[int], Any]:
        """Shows a progress bar of `total` units, and returns a function that advances it."""
        return keras.utils.Progbar(total, unit_name=unit).add

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

    def __call__(self, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> dict:
        if not isinstance(inputs, dict) or EMBEDDINGS not in inputs:
            check_images(inputs)
        return super().__call__(of_one_kind(inputs), *args, **kwargs)

    def call(self, inputs: dict[str, Any], training: bool | None = None, mask: Any = None) -> dict:
        if EMBEDDINGS in inputs:  # training on what `CachedEmbeddings` holds
            prompts = self.prompt_encoder(**{name: inputs[name] for name in CANONICAL_KEYS})
            features = {name: inputs[name] for name in self.feature_shapes}
            return self.mask_decoder(**features, **prompts, training=training)
        check_frame(inputs["images"], self.image_shape)
        inputs, single_object = canonical_inputs(inputs, self.mask_size)
        outputs = super().call(inputs, training=training)
        if single_object:
            outputs = {name: x[:, 0] for name, x in outputs.items()}
        return outputs

    def compute_output_spec(self, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> dict:
        # Inside a functional model of the user's own, whose inputs may be any of the prompts:
        # Keras would look for all of this model's inputs among them.
        check_frame(inputs["images"], self.image_shape)
        axes = prompt_axes(inputs)
        return {
            name: keras.KerasTensor((*axes, *x.shape[2:]), x.dtype)
            for name, x in self.output.items()
        }

    @refuses_unknown_arguments
    def predict(
        self,
        x: Any,
        batch_size: int | None = 1,
        verbose: str | int = "auto",
        steps: int | None = None,
        callbacks: Sequence[keras.callbacks.Callback] | None = None,
        prompt_chunk: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Segments what the prompts indicate, in one call for all images.

        Args:
            x: dict of `images` and at least one kind of prompt, arrays, backend tensors or
                nested lists, ragged where needed; or a `tf.data.Dataset`,
                `keras.utils.PyDataset`, torch `DataLoader` or other iterable of batches of
                such dicts, or of tuples whose first entry is one. In pixels of each image:

                * `images`: `(B, H0, W0, 3)`, or a list of arrays `(H0, W0, 3)`, paths or PIL
                  images of any size; or one of them, whose prompts then have no axis `B`
                  either, as in `SAMPredictor.predict`.
                * `points` with `labels`: `(B, N, 2)` for one object per image or
                  `(B, P, N, 2)` for P objects; x, y; 1 is foreground, 0 background. They
                  may lie outside the image. Without `labels` all are foreground.
                * `boxes`: `(B, P, 4)` or `(B, P, 2, 2)`, one object each, or `(B, P, M, 4)`, M
                  boxes of one object; x1, y1, x2, y2.
                * `masks`: logits `(B, P, Lh, Lw, 1)` in the model's mask frame, or
                  `(B, P, H0, W0, 1)` in the image's; or binary masks of these shapes, bool
                  or black and white.
            batch_size: int. Images that are encoded at once, when `x` is a dict.
            verbose: `"auto"`, 0, 1 or 2, as in `keras.Model.predict`.
            steps: optional int. The number of batches to stop after.
            callbacks: optional list of `keras.callbacks.Callback`.
            prompt_chunk: optional int. Prompts of an image that are decoded at once. By default as
                many as suit the backend.

        Returns:
            Dict of arrays: `masks`, logits `(B, P, K, Lh, Lw)`; `iou_pred` `(B, P, K)`;
            `lone_click` `(B, P)`, True where a prompt is ambiguous, see `select_masks`;
            `num_prompts` `(B,)`: where images have fewer than `P` prompts, the rest of
            `masks` and `iou_pred` is NaN. The axis `P` and `num_prompts` are missing when
            every prompt came in the single-object form. `P` is 0 where boxes are given and no
            image has one. `restore_masks(outputs)` takes the logits to the original images, by
            `original_sizes`, `scaled_sizes` and `model_sizes`, int32 `(B, 2)`.

        Raises:
            ValueError: if there is no image or prompt, or one of them is malformed; the
                message names the argument, what was received, and the remedy.
            TypeError: if there is another argument.
        """
        prompt_chunk = self.checked_chunk(prompt_chunk)
        batches, total = iterate_batches(x, batch_size, steps, self.takes_any_keys)
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
        return join_batches(results)

    def _predict_batch(self, batch, prompt_chunk):
        prepared = self.prepare_batch(batch)
        if prepared.prompts.num_prompts.any():
            features = self._programs.encode(prepared.images)
            outputs = self._programs.decode(features, prepared.prompts, prompt_chunk)
        else:  # no image has an object
            outputs = self._programs.decode_nothing(prepared.prompts)
        return {**outputs, **self._sizes(prepared.plans)}

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
        return self.prepare_batch(Batch.read(batch, any_keys=self.takes_any_keys)).arrays()

    def prepare_batch(self, batch: Batch) -> Prepared:
        """Takes a batch whose prompts are read to the model frame.

        Images that are encoded already stay so: a dict of their features is in place of images.
        """
        x, prompts = batch.x, batch.prompts
        if "images" not in x:
            images = self.checked_features(x)
        elif batch.in_model_frame:
            images = checked_frames(x["images"], self.image_shape, "images")
        elif self.takes_any_keys:
            made = self.preprocessor(x)  # which may add prompts of its own
            plans = self.plans(*(made.get(name) for name in SIZES), len(made["images"]))
            return Prepared(made["images"], read_canonical(made), plans)
        else:
            if prompts is None:
                raise no_prompt("the whole call")
            images, plans = self._image_converter.convert(x["images"])
            return Prepared(images, prompts.to_model(plans, self.mask_size), plans)
        count = len(images[EMBEDDINGS] if "images" not in x else images)
        plans = self.plans(*(x.get(name) for name in SIZES), count)
        if prompts is not None and not batch.in_model_frame:
            prompts = prompts.to_model(plans, self.mask_size)
        return Prepared(images, prompts, plans)

    def check_keys_of_encoded(self, encoded: dict[str, Any]) -> None:
        """Raises unless a dict with `image_embeddings` has features, prompts and sizes alone."""
        known = (*self.feature_shapes, *KEYS, *SIZES)
        unknown = set(encoded) - {*known, *CANONICAL_KEYS, "num_prompts", "single_object"}
        if unknown:
            raise unknown_names("x", unknown, known)

    @property
    def takes_any_keys(self) -> bool:
        """Whether the preprocessor is of another class than ours, or called in a way of its own.

        It then gets the dict as it is, and what it returns is trusted.
        """
        if self.preprocessor is None:
            return False
        cls, ours = type(self.preprocessor), SAMImageSegmenterPreprocessor
        return (cls.__call__, getattr(cls, "call", None)) != (ours.__call__, ours.call)

    @property
    def _image_converter(self):
        """The preprocessor's, or without one a stand-in that takes the model's own size alone."""
        if self.preprocessor is None:
            return ExactFrame.for_encoder(self.image_encoder, self.preprocessor_cls.stretch)
        return self.preprocessor.image_converter

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
        moved = type(self)(backbone, preprocessor, mask_threshold=self.mask_threshold)
        moved.generator_settings = dict(self.generator_settings)
        return moved

    def _run_through_graph(self, *args: Any, **kwargs: Any) -> Any:
        # `clone_model` would make a plain model of the graph, without any method of this class.
        if private.is_cloning(kwargs):
            raise NotImplementedError(
                "`keras.models.clone_model` cannot clone a segmenter: what it makes has no "
                "`predict` for images and prompts. Copy it with `copy = type(segmenter)."
                "from_config(segmenter.get_config())`, and its weights with "
                "`copy.set_weights(segmenter.get_weights())`."
            )
        return super()._run_through_graph(*args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        config = {**super().get_config(), "mask_threshold": self.mask_threshold}
        return {**config, "generator_settings": dict(self.generator_settings)}
