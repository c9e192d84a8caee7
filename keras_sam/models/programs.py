"""SAM's two halves as Keras models that each backend compiles once and keeps."""

import functools
import threading

import keras
import numpy as np
from keras import ops

from keras_sam.layers.kernels import takes_turns
from keras_sam.layers.mask_decoder import SAMMaskDecoder
from keras_sam.layers.positional_embedding import RandomFrequencyPositionalEmbeddings
from keras_sam.layers.prompt_encoder import SAMPromptEncoder
from keras_sam.models.openvino_programs import compile_for_openvino
from keras_sam.models.torch_programs import compile_for_torch
from keras_sam.prompts import CANONICAL_KEYS as _PROMPTS

# From so many prompts of an image on, what they share is computed beforehand: as many
# multiplications as it saves three prompts.
_PROMPTS_TO_PROJECT = 3


class Program:
    """A Keras model that runs batch by batch, compiled once per input shape.

    Threads take turns, so that two of them need no more memory than one.

    Args:
        model: the model.
        is_decoder: bool. Whether its inputs are an embedding and prompt sets that do not see each
            other, so that they may be decoded one after the other.
    """

    def __init__(self, model: keras.Model, is_decoder: bool = False):
        self._model = model
        self._is_decoder = is_decoder
        self._lock = threading.Lock()
        self._variables = []
        self._run = None

    def __call__(self, inputs):
        """The outputs as numpy, in memory of their own."""
        return self._call(inputs, _as_numpy)

    def tensors(self, inputs):
        """The outputs as the backend has them, for another program."""
        return self._call(inputs, lambda output: output)

    def _call(self, inputs, convert):
        with self._lock:
            variables = self._model.variables
            if self._run is None or [*map(id, variables)] != [*map(id, self._variables)]:
                # New, or changed by `quantize` or `enable_lora`, of which compiled code knows
                # nothing.
                self._run, self._variables = self._compile(variables), variables
            return keras.tree.map_structure(convert, self._run(inputs))

    def _compile(self, variables):
        if keras.backend.backend() == "jax":
            return _compile_for_jax(self._model, variables, self._is_decoder)
        if keras.backend.backend() == "openvino":
            return compile_for_openvino(self._model)
        if keras.backend.backend() == "tensorflow":
            return _compile_for_tensorflow(self._model)
        in_turn = _PROMPTS if self._is_decoder and takes_turns() else ()
        return compile_for_torch(self._model, variables, in_turn)


def _compile_for_tensorflow(model):
    """`predict_on_batch` that keeps a graph for every shape of the inputs.

    Keras's own replaces the first two by one for all sizes, which can't choose what is cheapest
    for a size, and warns of all that it traces.
    """
    import tensorflow as tf

    graphs = {}

    def predict(inputs):
        tensors = keras.tree.map_structure(tf.convert_to_tensor, inputs)
        specs = keras.tree.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), tensors)
        key = tuple(keras.tree.flatten(specs))
        if key not in graphs:
            run = tf.function(lambda x: model(x, training=False), jit_compile=model.jit_compile)
            graphs[key] = run.get_concrete_function(specs)
        return graphs[key](tensors)

    return predict


def _compile_for_jax(model, variables, is_decoder):
    """`predict_on_batch` that only reads the model's variables.

    Keras's own donates them to the computation and puts them back afterwards: in between
    another thread finds deleted arrays, and an interrupt or an exhausted memory leaves them
    deleted. May go when Keras predicts without donating its state.
    """
    import jax

    @jax.jit
    def run(values, inputs):
        state = zip(variables, values, strict=True)
        with keras.StatelessScope(state_mapping=list(state)):
            if is_decoder and takes_turns():
                return _decode_in_turn_on_jax(model, inputs)
            return model(inputs, training=False)

    def predict(inputs):
        return run([variable.value for variable in variables], inputs)

    return predict


def _decode_in_turn_on_jax(decoder, inputs):
    """`decoder(inputs)`, one prompt set after the other inside one program.

    The 4 MB of image tokens that each prompt has stay in the caches then: 64 prompts of ViT-B's
    decoder take 28 instead of 43 ms each.
    """
    import jax

    def one(prompt):
        prompt = {name: x[:, None] for name, x in prompt.items()}  # (B, 1, ...)
        outputs = decoder({**inputs, **prompt}, training=False)
        return {name: x[:, 0] for name, x in outputs.items()}

    prompts = {name: x.swapaxes(0, 1) for name, x in inputs.items() if name in _PROMPTS}
    outputs = jax.lax.map(one, prompts)
    return {name: x.swapaxes(0, 1) for name, x in outputs.items()}


def _as_numpy(output):
    if isinstance(output, np.ndarray):
        return output
    if keras.backend.backend() == "torch":
        if keras.backend.standardize_dtype(output.dtype) == "bfloat16":  # which numpy lacks
            return keras.ops.convert_to_numpy(output)
        # Not by Keras, which warns of numpy's protocol every time.
        return np.array(output.detach().cpu().numpy())
    return np.array(output)  # a copy: numpy's view of JAX's memory would be read-only


class Programs:
    """The encoder and decoder programs of one backbone, each made at its first use.

    Embeddings and masks leave in float32 whatever the backbone computes in, so that numpy
    has a type for them on every backend.
    """

    def __init__(self, backbone):
        self._backbone = backbone
        self._made = {}
        self._located = (None, None)  # frequencies, and the positions that they encode
        self._lock = threading.Lock()

    def encode(self, images):
        """Images `(B, H, W, channels)` to embeddings `(B, Eh, Ew, C)`, both numpy."""
        return self._program("encoder", self._make_encoder)(np.asarray(images, "float32"))

    def inspect(self, images, hidden_states, attentions):
        """`encode`, with what happens inside as `ViTDetBackbone.with_outputs` names it."""
        name = f"encoder, {hidden_states=}, {attentions=}"
        encoder = self._backbone.image_encoder
        program = self._program(name, lambda: encoder.with_outputs(hidden_states, attentions))
        return _float32(program(np.asarray(images, "float32")))

    def decode(self, embeddings, prompts, chunk, multimask_output=None):
        """Prompts to `masks` `(B, P, K, Lh, Lw)` and `iou_pred` `(B, P, K)`.

        Args:
            embeddings: float array `(B, Eh, Ew, C)`.
            prompts: `Prompts` in the model frame.
            chunk: int. Prompt sets of an image that are decoded at once.
            multimask_output: optional bool. Which masks to make, see `SAMMaskDecoder`.
        """
        image = self._image(embeddings, prompts)
        make = functools.partial(Decoder, self._backbone, multimask_output=multimask_output)
        pad_sets = keras.backend.backend() != "torch" or not takes_turns()
        joined = {}
        for sets, part in prompts.chunks(chunk, pad_sets):
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

    def inspect_decoder(self, embeddings, prompts, hooks, attentions):
        """`decode` of all prompt sets at once, with PerSAM's hooks and the attention maps.

        Args:
            embeddings: float array `(B, Eh, Ew, C)`.
            prompts: as for `decode`.
            hooks: dict of `attention_similarity` and `target_embedding`, as far as there are any.
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
        # Somebody's own decoder or transformer need not know of projections.
        is_ours = type(decoder).call is SAMMaskDecoder.call and not decoder.has_custom_transformer
        if few or prompts.mask_given.shape[1] or not is_ours:
            return image
        make = functools.partial(ImageProjection, self._backbone)
        return {"projected_image": self._program("projection", make).tensors(image)}

    def _positions(self):
        """Where the embedding's cells lie, encoded once: a fifth of a click's time on JAX.

        Left to the decoder's program on OpenVINO, which knows the frequencies beforehand, and with
        somebody's own prompt encoder.
        """
        encoder = self._backbone.prompt_encoder
        layer = getattr(encoder, "positional_embedding", None)
        is_ours = (type(encoder), type(layer)) == (
            SAMPromptEncoder,
            RandomFrequencyPositionalEmbeddings,
        )
        if not is_ours or keras.backend.backend() == "openvino":
            return {}
        frequencies = layer.gaussian_matrix.value
        if keras.backend.backend() == "torch":  # of which Keras's conversion warns every time
            frequencies = frequencies.detach().cpu().numpy()
        frequencies = np.asarray(frequencies).tobytes()
        located = self._located  # which another thread may replace
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
        name = "prompts_and_masks"  # TensorFlow wants one that starts with a letter
        super().__init__(name=name, dtype=backbone.dtype_policy, autocast=False)
        self.prompt_encoder = backbone.prompt_encoder
        self.mask_decoder = backbone.mask_decoder
        self.choices = choices
        self.built = True  # its layers are


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
    """The encoding of the embedding's cells, `(1, Eh, Ew, C)`, whatever the input."""

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
    """A click anywhere, for what does not depend on it."""
    points = ops.zeros((batch, 1, 1, 2), dtype="float32")
    return prompt_encoder(points=points, labels=ops.zeros_like(points[..., 0], "int32"))


def _without_absent(prompts):
    """The arrays of prompts, without masks where no prompt has one."""
    present = _PROMPTS if prompts.mask_given.shape[1] else _PROMPTS[:2]
    return {name: getattr(prompts, name) for name in present}


def _float32(outputs):
    return keras.tree.map_structure(lambda x: np.asarray(x, "float32"), outputs)
