"""Encoder and decoder as Keras models that the backend compiles once per input shape."""

import functools
import threading
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_sam import backends
from keras_sam.layers.mask_decoder import SAMMaskDecoder
from keras_sam.layers.positional_embedding import RandomFrequencyPositionalEmbeddings
from keras_sam.layers.prompt_encoder import SAMPromptEncoder
from keras_sam.prompts import CANONICAL_KEYS as _PROMPTS
from keras_sam.prompts import Prompts

# From this many prompts of an image on, what they share is computed beforehand. That takes as many
# multiplications as it saves for three prompts.
_PROMPTS_TO_PROJECT = 3


class Program:
    """A Keras model that runs batch by batch, compiled once per input shape.

    Threads take turns, so that several need no more memory than one.

    Args:
        model: the model.
        is_decoder: bool. Whether its inputs are an embedding and prompt sets that do not affect
            each other, so that they may be decoded one after the other.
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

    Embeddings and masks are returned in float32 whatever the backbone computes in, because numpy
    lacks bfloat16.
    """

    def __init__(self, backbone: keras.Model):
        self._backbone = backbone
        self._made = {}
        self._located = (None, None)  # frequencies, and the positions encoded with them
        self._lock = threading.Lock()

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Images `(B, H, W, channels)` to embeddings `(B, Eh, Ew, C)`, both numpy."""
        return self._program("encoder", self._make_encoder)(np.asarray(images, "float32"))

    def inspect(self, images: np.ndarray, hidden_states: bool, attentions: bool) -> dict:
        """`encode` with intermediate results, see `ViTDetBackbone.with_outputs`."""
        name = f"encoder, {hidden_states=}, {attentions=}"
        encoder = self._backbone.image_encoder
        program = self._program(name, lambda: encoder.with_outputs(hidden_states, attentions))
        return _float32(program(np.asarray(images, "float32")))

    def decode(
        self,
        embeddings: np.ndarray,
        prompts: Prompts,
        chunk: int,
        multimask_output: bool | None = None,
    ) -> dict[str, np.ndarray]:
        """Prompts to `masks` `(B, P, K, Lh, Lw)` and `iou_pred` `(B, P, K)`.

        Args:
            embeddings: float array `(B, Eh, Ew, C)`.
            prompts: `Prompts` in the model frame.
            chunk: int. Prompt sets of an image that are decoded at once.
            multimask_output: optional bool. Which masks to make, see `SAMMaskDecoder`.
        """
        image = self._image(embeddings, prompts)
        make = functools.partial(Decoder, self._backbone, multimask_output=multimask_output)
        joined = {}
        for sets, part in prompts.chunks(chunk, backends.pads_prompt_sets()):
            inputs = {**image, **_without_absent(part)}
            name = f"decoder, {multimask_output=}, {sorted(inputs)}"
            outputs = self._program(name, make, is_decoder=True)(inputs)
            real = sets.stop - sets.start
            if real == prompts.num_sets:
                return {name: x[:, :real] for name, x in outputs.items()}
            for name, x in outputs.items():
                if not sets.start:
                    joined[name] = np.empty((len(x), prompts.num_sets, *x.shape[2:]), x.dtype)
                joined[name][:, sets] = x[:, :real]
        return joined

    def inspect_decoder(
        self, embeddings: np.ndarray, prompts: Prompts, hooks: dict, attentions: bool
    ) -> dict[str, np.ndarray]:
        """`decode` of all prompt sets at once, with PerSAM's hooks and the attention maps.

        Args:
            embeddings: float array `(B, Eh, Ew, C)`.
            prompts: as for `decode`.
            hooks: dict of `attention_similarity` and `target_embedding`, or one of them.
            attentions: bool. Whether to return `attentions` too.
        """
        inputs = {"image_embeddings": embeddings, **_without_absent(prompts), **hooks}
        name = f"decoder, {attentions=}, {sorted(inputs)}"
        make = functools.partial(Decoder, self._backbone, return_attentions=attentions)
        return _float32(self._program(name, make)(inputs))

    def _image(self, embeddings, prompts):
        """The decoder's inputs that all prompts have in common."""
        image = {"image_embeddings": embeddings, **self._positions()}
        few = prompts.num_sets < _PROMPTS_TO_PROJECT
        decoder = self._backbone.mask_decoder
        # A custom decoder or transformer may not support projections.
        is_ours = type(decoder).call is SAMMaskDecoder.call and not decoder.has_custom_transformer
        if few or prompts.mask_given.shape[1] or not is_ours:
            return image
        make = functools.partial(ImageProjection, self._backbone)
        return {"projected_image": self._program("projection", make).tensors(image)}

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
        return {"positions": located[1]}

    def _program(self, name, make, is_decoder=False):
        with self._lock:
            if name not in self._made:
                self._made[name] = Program(make(), is_decoder)
            return self._made[name]

    def _make_encoder(self):
        encoder = self._backbone.image_encoder
        return keras.Model(encoder.input, ops.cast(encoder.output, "float32"))


class _Part(keras.Model):
    """Some layers of a backbone, called with arrays. Without autocast: points stay float32."""

    def __init__(self, backbone, **choices):
        name = "prompts_and_masks"  # TensorFlow's names must start with a letter
        super().__init__(name=name, dtype=backbone.dtype_policy, autocast=False)
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
        if "positions" in others:
            embedded["prompt_dense_positional_embeddings"] = others.pop("positions")
        if "projected_image" in others:
            del embedded["prompt_dense_embeddings"]
            del embedded["prompt_dense_positional_embeddings"]
        outputs = self.mask_decoder(**embedded, **others, **self.choices)
        return keras.tree.map_structure(lambda x: ops.cast(x, "float32"), outputs)


class Positions(_Part):
    """The positions of the embedding's cells, `(1, Eh, Ew, C)`; the input is ignored."""

    def call(self, inputs):
        return _embed_a_click(self.prompt_encoder, 1)["prompt_dense_positional_embeddings"]


class ImageProjection(_Part):
    """What prompts without a mask have in common, see `SAMMaskDecoder.project_image`."""

    def call(self, inputs):
        image = inputs["image_embeddings"]
        embedded = _embed_a_click(self.prompt_encoder, ops.shape(image)[0])
        return self.mask_decoder.project_image(
            ops.cast(image, self.compute_dtype),
            embedded["prompt_dense_embeddings"],
            inputs.get("positions", embedded["prompt_dense_positional_embeddings"]),
        )


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
