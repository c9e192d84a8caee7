"""The task: images and prompts in, masks and their predicted quality out."""

import functools

import keras
import numpy as np

from keras_sam import prompts as prompt_forms
from keras_sam.geometry import ResizePlan
from keras_sam.layers.prompt_tensors import canonical_inputs
from keras_sam.models.batches import (
    CANONICAL_KEYS,
    check_at_least_one,
    iterate_batches,
    read_canonical,
)
from keras_sam.models.fine_tuning import FineTuning
from keras_sam.models.image_segmenter import ImageSegmenter
from keras_sam.models.model_frame import (
    check_batch,
    check_frames,
    check_preprocessor,
    prepare_in_model_frame,
    preprocessor_for,
    read_frames,
    takes_unit_range,
)
from keras_sam.models.outputs import check_choice, is_lone_click, join_batches, select_masks
from keras_sam.models.programs import Programs
from keras_sam.models.sam_backbone import SAMBackbone
from keras_sam.models.trainable import TrainableSegmenter
from keras_sam.nested import to_numpy
from keras_sam.preprocessing import SAMImageSegmenterPreprocessor, batch_of

# Prompt sets of one image that are decoded at once. Every prompt carries its own copy of the
# image tokens (4 MB each at 1024 x 1024), and there are several at a time, except on JAX and torch,
# whose programs decode one after the other; torch's calls share what they know of the image alone.
# Above these numbers no backend is faster, and each takes more memory; OpenVINO takes a tenth
# longer with half of its own.
PROMPT_CHUNK = {"torch": 8, "openvino": 8}.get(keras.backend.backend(), 4)


@keras.saving.register_keras_serializable(package="keras_sam")
class SAMImageSegmenter(FineTuning, TrainableSegmenter, ImageSegmenter):
    """Segment Anything: segments what points, boxes and masks point at, in images of any size.

    `predict` takes images and prompts as people have them and returns mask logits in
    the model's mask frame. Calling the model on tensors works in the model frame: images
    `(B, H, W, channels)`, prompts in its pixels.

    Args:
        backbone: a `SAMBackbone`.
        preprocessor: optional `SAMImageSegmenterPreprocessor`. Without one, images have to
            come at the model's `image_shape`, pixel values 0..255, with prompts in that frame.
        mask_threshold: float. Logits above it belong to the mask. Defaults to `0.0`.

    Call arguments:
        inputs: dict of `images` and prompts, see `SAMBackbone`; or of `image_embeddings`
            `(B, Eh, Ew, C)` and the canonical prompts.

    Returns:
        Dict of `masks`, logits `(B, P, K, Lh, Lw)`, and `iou_pred` `(B, P, K)`, with
        `K = 1 + num_multimask_outputs`. `P` is missing when every prompt came in the
        single-object form: `points (B, N, 2)`, `boxes (B, 1, 2, 2)`, `masks (B, 1, Lh, Lw, 1)`.

    Raises:
        ValueError: for prompts that do not fit together, see `predict`; or for a preprocessor
            that does not fit the backbone.

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
        dtype=None,
        **kwargs,
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
        self._programs = Programs(backbone)

    @property
    def input_spec(self):
        # As in SAMBackbone: `call` converts the other forms first.
        return None

    @property
    def image_encoder(self):
        """The image encoder, a model of its own."""
        return self.backbone.image_encoder

    @property
    def prompt_encoder(self):
        """The prompt encoder, a layer of its own."""
        return self.backbone.prompt_encoder

    @property
    def mask_decoder(self):
        """The mask decoder, a layer of its own."""
        return self.backbone.mask_decoder

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape `(H, W, channels)` of the model frame."""
        return self.backbone.image_shape

    @property
    def embedding_size(self) -> tuple[int, int]:
        """Size `(Eh, Ew)` of the image embedding."""
        return self.backbone.embedding_size

    @property
    def mask_size(self) -> tuple[int, int]:
        """Size `(Lh, Lw)` of mask prompts and mask logits."""
        return self.backbone.mask_size

    def call(self, inputs, training=None, mask=None):
        if "image_embeddings" in inputs:  # training on what `CachedEmbeddings` holds
            prompts = self.prompt_encoder(**{name: inputs[name] for name in CANONICAL_KEYS})
            embeddings = inputs["image_embeddings"]
            return self.mask_decoder(image_embeddings=embeddings, **prompts, training=training)
        inputs, single_object = canonical_inputs(inputs, self.mask_size)
        outputs = super().call(inputs, training=training)
        if single_object:
            outputs = {name: x[:, 0] for name, x in outputs.items()}
        return outputs

    def predict(
        self,
        x,
        batch_size: int | None = 1,
        verbose="auto",
        steps: int | None = None,
        callbacks=None,
        prompt_chunk: int = PROMPT_CHUNK,
    ) -> dict[str, np.ndarray]:
        """Segments what the prompts point at, in one call for all images.

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
            steps: optional int. Stop after so many batches.
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
            prompt_forms.raise_no_prompt("any image")
        return outputs

    def _predict_batch(self, batch, prompt_chunk):
        if "mask_given" not in batch and prompt_forms.is_without_objects(batch):
            # Images in which nobody found anything: nothing to decode, so nothing to encode.
            count = len(batch["images"])
            shape = (count, 0, self.mask_decoder.num_mask_tokens)
            return {
                "masks": np.zeros((*shape, *self.mask_size), "float32"),
                "iou_pred": np.zeros(shape, "float32"),
                "lone_click": np.zeros(shape[:2], bool),
                "num_prompts": np.zeros(count, "int32"),
                "single_object": False,
            }
        inputs = self.prepare(batch)
        return self._decode(self._programs.encode(inputs["images"]), inputs, prompt_chunk)

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
        if "mask_given" in batch:
            inputs = read_canonical(batch)
            return {**inputs, "images": check_frames(inputs["images"], self.image_shape, "images")}
        if self.preprocessor is not None:
            return self.preprocessor(batch)
        unit_range = takes_unit_range(self.backbone)
        return prepare_in_model_frame(batch, self.image_shape, self.mask_size, unit_range)

    def _decode(self, embeddings, inputs, prompt_chunk, multimask_output=None):
        """Masks with the axis `P`, and what `join_batches` needs to finish them."""
        canonical = {name: inputs[name] for name in CANONICAL_KEYS}
        check_choice(multimask_output, self.mask_decoder.num_mask_tokens)
        made = None if multimask_output == "auto" else multimask_output
        outputs = self._programs.decode(embeddings, canonical, prompt_chunk, made)
        outputs = self._described(outputs, inputs)
        return select_masks(outputs, "auto") if multimask_output == "auto" else outputs

    def _described(self, outputs, inputs):
        return {
            **outputs,
            "lone_click": is_lone_click(inputs["labels"], inputs["mask_given"]),
            "num_prompts": inputs["num_prompts"],
            "single_object": inputs["single_object"],
        }

    def encode(
        self,
        images,
        batch_size: int = 1,
        return_hidden_states: bool = False,
        return_attentions: bool = False,
    ):
        """Encodes images, which is the expensive part and needs no prompt.

        Args:
            images: as in `predict`.
            batch_size: int. Images that are encoded at once.
            return_hidden_states: bool. Also return the embedded patches and every block's
                output.
            return_attentions: bool. Also return every block's attention map.

        Returns:
            Float32 array `(B, Eh, Ew, C)`. With a `return_` argument, a dict of it as
            `image_embeddings` and of the lists `hidden_states` and `attentions`, see
            `ViTDetBackbone.with_outputs`.

        Raises:
            ValueError: for images that `predict` would refuse.
        """
        check_at_least_one(batch_size, "batch_size")
        check_batch(images)
        images = batch_of(images)
        if self.preprocessor is None:
            to_frames = functools.partial(
                read_frames,
                image_shape=self.image_shape,
                unit_range=takes_unit_range(self.backbone),
            )
        else:
            to_frames = self.preprocessor.image_converter
        batches = (  # read as they are needed: frames are large
            to_frames(images[start : start + batch_size])
            for start in range(0, len(images), batch_size)
        )
        return self._encode_batches(batches, return_hidden_states, return_attentions)

    def encode_frames(
        self,
        frames,
        batch_size: int = 1,
        return_hidden_states: bool = False,
        return_attentions: bool = False,
    ):
        """`encode` for images that are in the model frame already, without any preprocessor.

        Args:
            frames: float or uint8 array `(B, H, W, channels)`, pixel values 0..255.
            batch_size: see `encode`.
            return_hidden_states: see `encode`.
            return_attentions: see `encode`.

        Returns:
            What `encode` returns.

        Raises:
            ValueError: if `frames` has another shape.
        """
        check_at_least_one(batch_size, "batch_size")
        frames = check_frames(frames, self.image_shape, "frames")
        batches = (
            frames[start : start + batch_size] for start in range(0, len(frames), batch_size)
        )
        return self._encode_batches(batches, return_hidden_states, return_attentions)

    def _encode_batches(self, batches, hidden_states, attentions):
        if hidden_states or attentions:
            parts = [self._programs.inspect(b, hidden_states, attentions) for b in batches]
        else:
            parts = [self._programs.encode(batch) for batch in batches]
        return keras.tree.map_structure(lambda *arrays: np.concatenate(arrays), *parts)

    def decode(
        self,
        image_embeddings,
        prompts: dict,
        original_sizes=None,
        prompt_chunk: int = PROMPT_CHUNK,
        attention_similarity=None,
        target_embedding=None,
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
            multimask_output: optional, which masks to return, as in `select_masks`; those that
                nobody asked for are not made. By default all `K`.

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
            inputs = read_canonical(prompts)
        else:
            inputs = prompt_forms.complete(prompts, plans, self.mask_size)
        hooks = {
            "attention_similarity": attention_similarity,
            "target_embedding": target_embedding,
        }
        hooks = {name: to_numpy(x) for name, x in hooks.items() if x is not None}
        if not hooks and not return_attentions:
            outputs = self._decode(embeddings, inputs, prompt_chunk, multimask_output)
            return join_batches([outputs])
        canonical = {name: inputs[name] for name in CANONICAL_KEYS}
        outputs = self._programs.inspect_decoder(embeddings, canonical, hooks, return_attentions)
        attentions = outputs.pop("attentions", None)
        outputs = join_batches([self._described(outputs, inputs)])
        if multimask_output is not None:
            outputs = select_masks(outputs, multimask_output)
        return outputs if attentions is None else {**outputs, "attentions": attentions}

    def at_image_shape(self, image_shape) -> "SAMImageSegmenter":
        """The same weights at another input size, position tables interpolated.

        Equals loading the preset with `image_shape=`. The new segmenter has a preprocessor for
        the new frame if this one has one, and shares no weights with it.

        Args:
            image_shape: tuple `(H, W)` or `(H, W, channels)` of the new model frame.

        Returns:
            A new segmenter.

        Raises:
            ValueError: if the sides are no multiples of the patch size.
        """
        backbone = self.backbone.at_image_shape(image_shape)
        preprocessor = None if self.preprocessor is None else preprocessor_for(backbone)
        return type(self)(backbone, preprocessor, mask_threshold=self.mask_threshold)

    def plans(self, original_sizes, count: int) -> list[ResizePlan]:
        """How images of these sizes are scaled to the model frame.

        Args:
            original_sizes: int array `(B, 2)`, list of pairs `(H0, W0)` or of `ResizePlan`, or
                None for images that are in the model frame already.
            count: int, `B`.

        Returns:
            List of `B` plans.

        Raises:
            ValueError: if there are not `count` sizes.
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
        if self.preprocessor is not None:
            return [self.preprocessor.image_converter.plan(size) for size in sizes]
        return [ResizePlan(size, frame) for size in sizes]

    def checked_embeddings(self, embeddings) -> np.ndarray:
        """Embeddings as float32 numpy `(B, Eh, Ew, C)`, or a ValueError for another shape."""
        embeddings = to_numpy(embeddings).astype("float32", copy=False)
        wanted = (*self.embedding_size, self.prompt_encoder.hidden_size)
        if embeddings.shape[1:] != wanted or not len(embeddings):
            raise ValueError(
                f"`image_embeddings` must have shape (B, {', '.join(map(str, wanted))}), as this "
                f"model's `encode` returns them. Received: shape={embeddings.shape}."
            )
        return embeddings

    def get_config(self):
        return {**super().get_config(), "mask_threshold": self.mask_threshold}
