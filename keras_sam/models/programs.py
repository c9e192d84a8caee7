"""Encoder and decoder as Keras models that the backend compiles once per input shape."""

import functools
import threading
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_sam import backends
from keras_sam.encode_decode import EMBEDDINGS, named_features, with_prompt_info
from keras_sam.layers.positional_embedding import RandomFrequencyPositionalEmbeddings
from keras_sam.layers.prompt_encoder import SAMPromptEncoder
from keras_sam.outputs import check_choice
from keras_sam.prompts import CANONICAL_KEYS as _PROMPTS
from keras_sam.prompts import Prompts
from keras_sam.prompts.canonical import chunks

# From this many prompts of an image on, what they share is computed beforehand. That takes as many
# multiplications as it saves for three prompts.
_PROMPTS_TO_PROJECT = 3

# The decoder's input for the encoded positions of the embedding's cells.
_POSITIONS = "positions"


class Program:
    """A Keras model that runs batch by batch, compiled once per input shape.

    Threads take turns, so that several need no more memory than one. The inputs of a decoder are an
    image's features and prompt sets that do not affect each other, and may be decoded one by one.
    """

    def __init__(self, model: keras.Model, is_decoder: bool = False):
        self._model = model
        self._is_decoder = is_decoder
        self._lock = threading.Lock()
        self._variables = []
        self._run = None

    def __call__(self, inputs: Any) -> Any:
        """The outputs as numpy arrays that share no memory with the backend."""
        return self._call(inputs, backends.to_numpy)

    def tensors(self, inputs: Any) -> Any:
        """The outputs as the backend has them, for another program."""
        return self._call(inputs, lambda output: output)

    def _call(self, inputs, convert):
        with self._lock:
            variables = self._model.variables
            if self._run is None or [*map(id, variables)] != [*map(id, self._variables)]:
                # The model is new, or `quantize` or `enable_lora` has changed it since.
                prompts = _PROMPTS if self._is_decoder else ()
                self._run = backends.compile_program(self._model, variables, prompts)
                self._variables = variables
            return keras.tree.map_structure(convert, self._run(inputs))


class Programs:
    """The encoder and decoder programs of one backbone, each made at its first use.

    Features and masks are returned in float32 whatever the backbone computes in, because numpy
    lacks bfloat16.
    """

    def __init__(self, backbone: keras.Model):
        self._backbone = backbone
        self._made = {}
        self._located = (None, None)  # frequencies, and the positions encoded with them
        self._embedded = ([], None)  # weights and features, and what was computed of them
        self._lock = threading.Lock()

    def encode(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Images `(B, H, W, channels)` to the encoder's features by name, all numpy."""
        return self._program("encoder", self._make_encoder)(np.asarray(images, "float32"))

    def inspect(self, images: np.ndarray, hidden_states: bool, attentions: bool) -> dict:
        """`encode` with intermediate results, see `ViTDetBackbone.with_outputs`."""
        name = f"encoder, {hidden_states=}, {attentions=}"
        encoder = self._backbone.image_encoder
        if not hasattr(encoder, "with_outputs"):
            raise ValueError(
                "`return_hidden_states` and `return_attentions` need an image encoder with "
                f"`with_outputs`, such as `ViTDetBackbone`. Received: a {type(encoder).__name__}."
            )
        program = self._program(name, lambda: encoder.with_outputs(hidden_states, attentions))
        return _float32(program(np.asarray(images, "float32")))

    def decode(
        self,
        features: dict[str, np.ndarray],
        prompts: Prompts,
        chunk: int,
        multimask_output: bool | None = None,
    ) -> dict[str, np.ndarray]:
        """What `encode` returns and `Prompts` in the model frame to masks and their scores.

        `chunk` prompt sets are decoded at once. `multimask_output` says which masks to make, see
        `SAMMaskDecoder`. `join_batches` finishes what is returned.
        """
        if not prompts.num_sets:
            return self.decode_nothing(prompts, multimask_output)
        image = self._image(features, prompts)
        choices = self._choices(multimask_output)
        make = functools.partial(Decoder, self._backbone, **choices)
        joined = {}
        for sets, part in chunks(prompts, chunk, backends.pads_prompt_sets()):
            inputs = {**image, **_without_absent(part)}
            name = f"decoder, {choices}, {sorted(inputs)}"
            outputs = self._program(name, make, is_decoder=True)(inputs)
            real = sets.stop - sets.start
            if real == prompts.num_sets:
                return with_prompt_info({k: x[:, :real] for k, x in outputs.items()}, prompts)
            for name, x in outputs.items():
                if not sets.start:
                    joined[name] = np.empty((len(x), prompts.num_sets, *x.shape[2:]), x.dtype)
                joined[name][:, sets] = x[:, :real]
        return with_prompt_info(joined, prompts)

    def decode_nothing(
        self, prompts: Prompts, multimask_output: bool | None = None
    ) -> dict[str, np.ndarray]:
        """What `decode` returns for prompt sets that are all padding, without an image."""
        decoder = self._backbone.mask_decoder
        check_choice(multimask_output, decoder.num_mask_tokens)
        shape = (*prompts.labels.shape[:2], decoder.num_masks(multimask_output))
        masks = np.zeros((*shape, *self._backbone.mask_size), "float32")
        outputs = {"masks": masks, "iou_pred": np.zeros(shape, "float32")}
        outputs |= {name: np.zeros(shape[:2], "float32") for name in extra_outputs(decoder)}
        return with_prompt_info(outputs, prompts)

    def _choices(self, multimask_output):
        decoder = self._backbone.mask_decoder
        settings = {name: getattr(decoder, name) for name in decoder.call_settings}
        return {"multimask_output": multimask_output, **settings}

    def inspect_decoder(
        self,
        features: dict[str, np.ndarray],
        prompts: Prompts,
        hooks: dict,
        attentions: bool,
        multimask_output: bool | None = None,
    ) -> dict[str, np.ndarray]:
        """`decode` of all prompt sets at once, with PerSAM's hooks and the attention maps.

        `hooks` is a dict of `attention_similarity` and `target_embedding`, or one of them.
        """
        inputs = {**features, **_without_absent(prompts), **hooks}
        choices = {**self._choices(multimask_output), "return_attentions": attentions}
        name = f"decoder, {choices}, {sorted(inputs)}"
        make = functools.partial(Decoder, self._backbone, **choices)
        return with_prompt_info(_float32(self._program(name, make)(inputs)), prompts)

    def _image(self, features, prompts):
        """The decoder's inputs that all prompts have in common."""
        image = {**self._embed_features(features), **self._positions()}
        few = prompts.num_sets < _PROMPTS_TO_PROJECT
        if few or prompts.mask_given.shape[1] or not _can_project(self._backbone.mask_decoder):
            return image
        make = functools.partial(ImageProjection, self._backbone)
        return {"projected_image": self._program("projection", make).tensors(image)}

    def _embed_features(self, features):
        """What the decoder needs of the features, computed once for all clicks on an image.

        Few decoders compute anything of an image alone; the others get its features as they are.
        The last result is kept, with what it was computed of.
        """
        decoder = self._backbone.mask_decoder
        if not hasattr(decoder, "embed_features"):
            return features
        weights = [backends.to_numpy(variable.value) for variable in decoder.feature_weights()]
        given = [*weights, *(features[name] for name in sorted(features))]
        known, embedded = self._embedded  # read once: another thread may replace it
        if len(known) != len(given) or not all(map(_is_same, known, given)):
            program = self._program("features", lambda: Features(self._backbone))
            embedded = program.tensors(features)
            # What nobody can write to needs no copy.
            known = [x.copy() if x.flags.writeable else x for x in given]
            self._embedded = (known, embedded)
        return embedded

    def _positions(self):
        """Where the embedding's cells lie, encoded once for all clicks.

        Empty where compilation folds them into the decoder's program anyway, and for a custom
        prompt encoder, which encodes them itself.
        """
        encoder = self._backbone.prompt_encoder
        layer = getattr(encoder, "positional_embedding", None)
        is_ours = (type(encoder), type(layer)) == (
            SAMPromptEncoder,
            RandomFrequencyPositionalEmbeddings,
        )
        if not is_ours or backends.FOLDS_CONSTANTS:
            return {}
        frequencies = backends.to_numpy(layer.gaussian_matrix.value).tobytes()
        located = self._located  # read once: another thread may replace it
        if located[0] != frequencies:
            make = functools.partial(Positions, self._backbone)
            positions = self._program("positions", make).tensors(np.zeros(1, "float32"))
            located = self._located = (frequencies, positions)
        return {_POSITIONS: located[1]}

    def _program(self, name, make, is_decoder=False):
        with self._lock:
            if name not in self._made:
                self._made[name] = Program(make(), is_decoder)
            return self._made[name]

    def _make_encoder(self):
        encoder = self._backbone.image_encoder
        features = named_features(encoder.output)
        return keras.Model(
            encoder.input, {name: ops.cast(x, "float32") for name, x in features.items()}
        )


def _is_same(known: np.ndarray, given: np.ndarray) -> bool:
    """Whether two arrays hold the same numbers, at once for views that nobody can write to."""
    if not (known.flags.writeable or given.flags.writeable):
        places = [(x.ctypes.data, x.shape, x.strides, x.dtype) for x in (known, given)]
        if places[0] == places[1]:
            return True
    return np.array_equal(known, given)


class _Part(keras.Model):
    """Some layers of a backbone, called with arrays. Without autocast: points stay float32."""

    def __init__(self, backbone, **choices):
        name = "prompts_and_masks"  # TensorFlow's names must start with a letter
        super().__init__(name=name, dtype=backbone.dtype_policy, autocast=False)
        check_choice(choices.get("multimask_output"), backbone.mask_decoder.num_mask_tokens)
        self.prompt_encoder = backbone.prompt_encoder
        self.mask_decoder = backbone.mask_decoder
        self.choices = choices
        self.built = True  # as its layers are


class Decoder(_Part):
    """From prompts and an image, which may be projected already, to masks and scores."""

    def call(self, inputs):
        prompts = {name: x for name, x in inputs.items() if name in _PROMPTS}
        others = {name: x for name, x in inputs.items() if name not in _PROMPTS}
        embedded = self.prompt_encoder(**prompts)
        if _POSITIONS in others:
            embedded["prompt_dense_positional_embeddings"] = others.pop(_POSITIONS)
        if "projected_image" in others:
            del embedded["prompt_dense_embeddings"]
            del embedded["prompt_dense_positional_embeddings"]
        outputs = self.mask_decoder(**embedded, **others, **self.choices)
        return keras.tree.map_structure(lambda x: ops.cast(x, "float32"), outputs)


class Positions(_Part):
    """The positions of the embedding's cells, `(1, Eh, Ew, C)`; the input is ignored."""

    def call(self, inputs):
        return _embed_a_click(self.prompt_encoder, 1)["prompt_dense_positional_embeddings"]


class Features(_Part):
    """What a decoder computes of an image alone, see `SAMHQMaskDecoder.embed_features`."""

    def call(self, inputs):
        inputs = {name: ops.cast(x, self.compute_dtype) for name, x in inputs.items()}
        return self.mask_decoder.embed_features(**inputs)


class ImageProjection(_Part):
    """What prompts without a mask have in common, see `SAMMaskDecoder.project_image`."""

    def call(self, inputs):
        features = {
            name: ops.cast(x, self.compute_dtype)
            for name, x in inputs.items()
            if name != _POSITIONS
        }
        embedded = _embed_a_click(self.prompt_encoder, ops.shape(features[EMBEDDINGS])[0])
        return self.mask_decoder.project_image(
            prompt_dense_embeddings=embedded["prompt_dense_embeddings"],
            prompt_dense_positional_embeddings=inputs.get(
                _POSITIONS, embedded["prompt_dense_positional_embeddings"]
            ),
            **features,
        )


def _can_project(decoder):
    """Whether what prompts share can be computed beforehand.

    A custom transformer or `call` may not support it: `call` and `project_image` must be of one
    class.
    """
    owners = [
        next((c for c in type(decoder).__mro__ if name in vars(c)), None)
        for name in ("call", "project_image")
    ]
    return owners[0] is owners[1] and not getattr(decoder, "has_custom_transformer", False)


def _embed_a_click(prompt_encoder, batch):
    """Embeds an arbitrary click, for those outputs that do not depend on the prompt."""
    points = ops.zeros((batch, 1, 1, 2), dtype="float32")
    return prompt_encoder(points=points, labels=ops.zeros_like(points[..., 0], "int32"))


def _without_absent(prompts):
    """The arrays of prompts, without masks where no prompt has one."""
    present = _PROMPTS if prompts.mask_given.shape[1] else _PROMPTS[:2]
    return {name: getattr(prompts, name) for name in present}


def _float32(outputs):
    return keras.tree.map_structure(lambda x: np.asarray(x, "float32"), outputs)


def extra_outputs(decoder: keras.layers.Layer) -> tuple[str, ...]:
    """Names of what a mask decoder predicts besides masks and their scores, `(B, P)` each."""
    return tuple(getattr(decoder, "extra_outputs", ()))
