"""Encoding images and decoding prompts as two steps: an image is encoded once, however often it is
prompted.

Numpy only: the models of Keras and exported files share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_sam.framing import batch_of, is_one_image
from keras_sam.geometry import (
    SIZES,
    STRETCHED,
    ResizePlan,
    check_not_swapped,
    plan_of_sizes,
    sizes_of,
)
from keras_sam.outputs import select_masks
from keras_sam.prompts import KEYS, PromptDict, Prompts, read, read_canonical
from keras_sam.prompts.nested import check_at_least_one, to_numpy
from keras_sam.prompts.spellings import refuses_unknown_arguments, unknown_names

EMBEDDINGS = "image_embeddings"

# What `encode` returns besides on request, and `decode` passes over.
_INSPECTED = ("hidden_states", "attentions")


def named_features(output: Any) -> dict[str, Any]:
    """An image encoder's output by name: `image_embeddings`, and what else its decoder takes."""
    return dict(output) if isinstance(output, dict) else {EMBEDDINGS: output}


class EncodesAndDecodes:
    """What encodes images and decodes prompts for them: what predictor and generator work with.

    A class that has it as a base has `preprocessor`, `image_shape`, `mask_size`, `feature_shapes`,
    `mask_threshold`, `generator_settings`, `num_mask_tokens`, and as `_programs` an object with
    `encode`, `decode`, `inspect` and `inspect_decoder`; see `models.programs`.
    """

    prompt_chunk: int  # prompts of an image that are decoded at once, unless a call says otherwise
    largest_prompt_logit: float | None = None  # of a mask prompt, if there is a limit

    @refuses_unknown_arguments
    def encode(
        self,
        images: Any,
        batch_size: int = 1,
        return_hidden_states: bool = False,
        return_attentions: bool = False,
    ) -> dict[str, Any]:
        """Encodes images: the expensive part, which does not depend on prompts.

        Args:
            images: as in `predict`.
            batch_size: int. Images that are encoded at once.
            return_hidden_states: bool. Also return the embedded patches and every block's
                output.
            return_attentions: bool. Also return every block's attention map.

        Returns:
            Dict for `decode`: `image_embeddings`, float32 array `(B, Eh, Ew, C)`, and the encoder's
            other features if it has any, see `feature_shapes`; and what prompts and masks need,
            `original_sizes` and `scaled_sizes`, int32 arrays `(B, 2)`. With a `return_` argument
            also the lists `hidden_states` and `attentions`, see
            `ViTDetBackbone.with_outputs`.

        Raises:
            ValueError: for images that `predict` would refuse.
        """
        images = [images] if is_one_image(images) else batch_of(images)
        convert = self._image_converter.convert
        return self._encode(images, batch_size, convert, return_hidden_states, return_attentions)

    def encode_frames(
        self,
        frames: Any,
        batch_size: int = 1,
        return_hidden_states: bool = False,
        return_attentions: bool = False,
    ) -> dict[str, Any]:
        """`encode` for images that are in the model frame already; no preprocessor is used.

        Prompts for what it returns are in the model frame, too.

        Args:
            frames: float or uint8 array `(B, H, W, channels)`, pixel values 0..255.
            batch_size: this and the others as in `encode`, which returns the same.

        Raises:
            ValueError: if `frames` has another shape.
        """
        frames = checked_frames(frames, self.image_shape, "frames")

        def keep(batch):
            return batch, self.plans(None, None, len(batch))

        return self._encode(frames, batch_size, keep, return_hidden_states, return_attentions)

    def _encode(self, images, batch_size, convert, hidden_states, attentions):
        check_at_least_one(batch_size, "batch_size")
        parts = []
        for start in range(0, len(images), batch_size):  # read when needed: frames are large
            frames, plans = convert(images[start : start + batch_size])
            if hidden_states or attentions:
                part = self._programs.inspect(frames, hidden_states, attentions)
            else:
                part = self._programs.encode(frames)
            parts.append({**part, **sizes_of(plans)})
        return {name: _join_features([part[name] for part in parts]) for name in parts[0]}

    @refuses_unknown_arguments
    def decode(
        self,
        image_embeddings: Any,
        prompts: PromptDict | dict[str, Any],
        original_sizes: Any = None,
        prompt_chunk: int | None = None,
        attention_similarity: Any = None,
        target_embedding: Any = None,
        return_attentions: bool = False,
        multimask_output: bool | str | None = None,
    ) -> dict[str, np.ndarray]:
        """Decodes prompts for images that `encode` has encoded.

        Args:
            image_embeddings: what `encode` returned; or, for an encoder without other features,
                its float array `(B, Eh, Ew, C)`.
            prompts: dict of prompts as in `predict`, without `images`; or the canonical ones
                that `prepare` returns, in the model frame.
            original_sizes: int array `(B, 2)`, height and width in pixels of the images that
                prompts refer to, or a list of `ResizePlan`; needed with an array of embeddings,
                unless prompts are canonical.
            prompt_chunk: optional int. Prompts of an image that are decoded at once. By default as
                many as suit the backend.
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
            ValueError: for malformed prompts, features that are missing, unknown or of another
                shape, or missing sizes.
        """
        prompt_chunk = self.checked_chunk(prompt_chunk)
        encoded = named_features(image_embeddings)
        self._check_no_others(encoded)
        known_sizes = encoded.get("scaled_sizes")
        if original_sizes is not None:
            encoded = {**encoded, "original_sizes": original_sizes, "scaled_sizes": None}
        features = self.checked_features(encoded)
        count = len(features[EMBEDDINGS])
        plans = self.plans(*(encoded.get(name) for name in SIZES), count)
        if not any(plan.stretch for plan in plans):  # then the frame's proportions are all there is
            check_not_swapped([plan.original_size for plan in plans], known_sizes)
        if isinstance(prompts, dict) and "mask_given" in prompts:
            prompts = read_canonical(prompts)
        else:
            if isinstance(prompts, dict) and set(prompts) - {*KEYS}:
                raise unknown_names("prompts", set(prompts) - {*KEYS}, KEYS)
            prompts = read(prompts, count)
            if encoded.get("original_sizes") is None:
                raise ValueError(
                    "`original_sizes` must be given with an array of embeddings, the (height, "
                    "width) of each image in pixels. Received: None. Or pass what `encode` or, for "
                    "prompts in the model frame, `encode_frames` returns, which has them."
                )
            prompts = prompts.to_model(plans, self.mask_size)
        outputs = self.decode_prompts(
            features,
            prompts,
            prompt_chunk,
            multimask_output,
            attention_similarity=attention_similarity,
            target_embedding=target_embedding,
            return_attentions=return_attentions,
        )
        return {**outputs, **self._sizes(plans)}

    def decode_prompts(
        self,
        features: dict[str, np.ndarray],
        prompts: Prompts,
        prompt_chunk: int,
        multimask_output: bool | str | None,
        return_attentions: bool = False,
        **hooks: Any,
    ) -> dict[str, np.ndarray]:
        """`decode` of `Prompts` in the model frame, and of features that are checked already."""
        hooks = {name: to_numpy(x) for name, x in hooks.items() if x is not None}
        made = None if multimask_output == "auto" else multimask_output
        if not hooks and not return_attentions:
            outputs = self._programs.decode(features, prompts, prompt_chunk, made)
            outputs = join_batches([outputs])
            return select_masks(outputs, "auto") if multimask_output == "auto" else outputs
        outputs = self._programs.inspect_decoder(features, prompts, hooks, return_attentions, made)
        attentions = outputs.pop("attentions", None)
        outputs = join_batches([outputs])
        if multimask_output == "auto":
            outputs = select_masks(outputs, multimask_output)
        return outputs if attentions is None else {**outputs, "attentions": attentions}

    def plans(self, original_sizes: Any, scaled_sizes: Any, count: int) -> list[ResizePlan]:
        """How `count` images of these sizes are scaled to the model frame.

        `original_sizes` may be an int array `(B, 2)`, a list of pairs `(H0, W0)` or of
        `ResizePlan`, or None for images that are in the model frame already. Without
        `scaled_sizes` they are scaled as the preprocessor scales.
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
        if scaled_sizes is None:
            return [self._image_converter.plan(tuple(size)) for size in sizes.tolist()]
        both = zip(sizes.tolist(), to_numpy(scaled_sizes).tolist(), strict=True)
        stretch = getattr(self._image_converter, "stretch", False)  # a custom one may not know it
        return [plan_of_sizes(*of_image, frame, stretch) for of_image in both]

    def checked_chunk(self, prompt_chunk: int | None) -> int:
        """A call's `prompt_chunk`, or this model's own for None."""
        if prompt_chunk is None:
            return self.prompt_chunk
        check_at_least_one(prompt_chunk, "prompt_chunk")
        return prompt_chunk

    def logits_as_prompt(self, logits: np.ndarray) -> np.ndarray:
        """Mask logits as a later prompt takes them: as they are, or within the model's limit."""
        limit = self.largest_prompt_logit
        return logits if limit is None else np.clip(logits, -limit, limit)

    @property
    def _image_converter(self):
        return self.preprocessor.image_converter

    def _sizes(self, plans):
        """What `restore_masks` needs to know of each image."""
        model = np.array([self.image_shape[:2]] * len(plans), "int32")
        sizes = {**sizes_of(plans), "model_sizes": model}
        stretched = [plan.stretch for plan in plans]
        if any(stretched) or getattr(self._image_converter, "stretch", False):
            sizes[STRETCHED] = np.array(stretched)
        return sizes

    def _check_no_others(self, encoded):
        """Raises if there is a feature that this model's encoder does not give."""
        others = set(encoded) - {*self.feature_shapes, *SIZES, *_INSPECTED}
        if others:
            raise ValueError(
                "`image_embeddings` must be what this model's `encode` returned. Received: also "
                f"{sorted(others)}, as of another model; this one decodes "
                f"{' and '.join(self.feature_shapes)}."
            )

    def checked_features(self, encoded: Any) -> dict[str, np.ndarray]:
        """The encoder's features as float32 numpy, from a dict with them or from embeddings alone.

        Raises a ValueError if one is missing or has another shape.
        """
        encoded = named_features(encoded)
        features = {}
        for name, wanted in self.feature_shapes.items():
            if encoded.get(name) is None:
                raise ValueError(
                    f"`{name}` must be given beside `image_embeddings`: this model decodes "
                    f"{' and '.join(self.feature_shapes)}. Received: {sorted(encoded)}. Pass what "
                    "this model's `encode` returns."
                )
            x = to_numpy(encoded[name]).astype("float32", copy=False)
            count = len(features.get(EMBEDDINGS, x)) if x.ndim else 0
            if x.shape != (count, *wanted) or not count:
                raise ValueError(
                    f"`{name}` must have shape (B, {', '.join(map(str, wanted))}), as this "
                    f"model's `encode` returns them. Received: shape={x.shape}."
                )
            features[name] = x
        return features


def check_segmenter(segmenter: Any) -> None:
    """Raises unless this encodes images and decodes prompts, as `SAMImageSegmenter` does."""
    if not hasattr(segmenter, "encode_frames"):
        raise ValueError(
            f"`segmenter` must be a `SAMImageSegmenter`. Received: {segmenter!r:.80}. A preset is "
            "loaded by its name with `SAMImageSegmenter.from_preset(name)`, and a `SAMBackbone` "
            "becomes one with `SAMImageSegmenter(backbone)`."
        )


def _join_features(values):
    """Arrays of several batches as one, or lists of arrays, item by item."""
    if isinstance(values[0], (list, tuple)):
        return [_join_features(items) for items in zip(*values, strict=True)]
    return np.concatenate(values)


def checked_frames(frames, image_shape, name):
    """Arrays in the model frame as one float32 array `(B, H, W, channels)`, or an error."""
    frames = to_numpy(frames)
    if frames.shape[1:] != tuple(image_shape) or not len(frames):
        raise ValueError(
            f"`{name}` must have shape (B, {', '.join(map(str, image_shape))}), images in the "
            f"model frame, pixel values 0..255. Received: shape={frames.shape}."
        )
    return frames.astype("float32", copy=False)


# --- several batches ---

# What `join_batches` has to know of the prompts besides what is predicted for them.
_FACTS = ("lone_click", "num_prompts", "single_object")


def with_prompt_info(outputs: dict, prompts: Prompts) -> dict:
    """Adds what is needed to join batches and to pick masks: facts about the prompts."""
    return {**outputs, **{name: getattr(prompts, name) for name in _FACTS}}


def join_batches(batches: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Joins the outputs of several batches, by their largest `P`.

    What is predicted for padded prompt sets becomes NaN. If every batch came in the form of a
    single object, the result has no `num_prompts` and no axis `P`.
    """
    most = max(batch["masks"].shape[1] for batch in batches)
    of_images = [n for n in batches[0] if n.endswith("_sizes") or n == STRETCHED]
    predicted = [name for name in batches[0] if name not in (*of_images, *_FACTS)]
    fillers = {**dict.fromkeys(predicted, np.nan), "lone_click": False}
    joined = {
        name: _concatenate([batch[name] for batch in batches], most, filler)
        for name, filler in fillers.items()
    }
    num_prompts = np.concatenate([np.asarray(batch["num_prompts"], "int32") for batch in batches])
    missing = np.arange(most) >= num_prompts[:, None]  # (B, P)
    if missing.any():
        for name in predicted:
            joined[name] = np.require(joined[name], requirements="W")
            joined[name][missing] = np.nan
    if all(batch["single_object"] for batch in batches):
        joined = {name: array[:, 0] for name, array in joined.items()}
    else:
        joined["num_prompts"] = num_prompts
    return {**joined, **{name: np.concatenate([b[name] for b in batches]) for name in of_images}}


def _concatenate(arrays: list[np.ndarray], prompt_sets: int, filler: float | bool) -> np.ndarray:
    """Concatenates arrays `(B, P, ...)`, each padded to `P = prompt_sets`."""
    if len(arrays) == 1 and arrays[0].shape[1] == prompt_sets:
        return arrays[0]
    padded = [
        np.pad(
            x,
            [(0, 0), (0, prompt_sets - x.shape[1]), *[(0, 0)] * (x.ndim - 2)],
            constant_values=filler,
        )
        for x in arrays
    ]
    return np.concatenate(padded)
