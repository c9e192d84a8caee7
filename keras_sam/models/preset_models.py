"""Keras models from presets, and presets from Keras models."""

import contextlib
import copy
import dataclasses
import datetime
import difflib
import importlib
import inspect
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import keras
import numpy as np

from keras_sam import backends, converters
from keras_sam.backends import private
from keras_sam.layers.initialization import skip_init
from keras_sam.presets import Preset, list_presets, read_preset
from keras_sam.presets.adapt import fit_tables
from keras_sam.presets.assign import assign
from keras_sam.presets.locate import (
    CONFIG_FILE,
    METADATA_FILE,
    PREPROCESSOR_FILE,
    TASK_FILE,
    WEIGHTS_FILE,
)
from keras_sam.presets.write import save_preset


class _ClassPresets:
    """`SomeClass.presets`: the built-in presets of that class, looked up on each access.

    They include presets of its subclasses and of its base classes.
    """

    def __get__(self, instance: Any, owner: type) -> dict[str, dict]:
        of_class = {}
        for name, known in list_presets().items():
            preset = read_preset(name, load_weights=False)
            if _any_is(owner, preset.backbone, preset.task):
                of_class[name] = known
            if _any_is(owner, preset.parts["image_encoder"]):
                of_class.update(dict.fromkeys(known["encoder_names"], _encoder_of(known)))
        return of_class


def _any_is(cls, *saved):
    classes = [registered(part["registered_name"]) for part in saved if part is not None]
    return any(issubclass(c, cls) or issubclass(cls, c) for c in classes)


def _encoder_of(known):
    """What is known about the image encoder of a built-in preset, in the form of `list_presets`."""
    parameters = known["image_encoder_parameters"]
    copied = ("description", "image_encoder_parameters", "license", "sources", "cached")
    copied = {name: known[name] for name in copied}
    return {**copied, "parameters": parameters, "size": 4 * parameters}


class PresetModel(keras.Model):
    """A model that `from_preset` reads and `save_to_preset` writes."""

    presets = _ClassPresets()

    def __init__(self, *args: Any, dtype: str | keras.DTypePolicy | None = None, **kwargs: Any):
        unknown = kwargs.keys() - {"inputs", "outputs", "name", "trainable"}
        if unknown:  # which Keras's functional models ignore
            raise _unknown_argument(type(self), min(unknown), _arguments_of(type(self)))
        super().__init__(*args, **kwargs)
        freeze_as_told(self)
        if dtype is not None:
            self.dtype_policy = keras.dtype_policies.get(dtype)

    @classmethod
    def from_preset(
        cls,
        preset: str | os.PathLike,
        load_weights: bool | None = None,
        dtype: str | keras.DTypePolicy | None = None,
        image_shape: Sequence[int] | None = None,
        num_channels: int | None = None,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        checkpoint_key: str | None = None,
        ignore: str | Iterable[str] = (),
        **kwargs: Any,
    ) -> Self:
        """Loads a model by name, address or path, whoever trained it.

        Args:
            preset: built-in name (see `keras_sam.presets.list_presets`); `kaggle://owner/model/
                keras/variation[/version]`; `hf://owner/repository[@revision][/file]`; path of a
                folder that this package, KerasHub, KerasCV or transformers wrote; or path of a
                `.pth`, `.safetensors`, `.h5` or `.keras` file.
            load_weights: bool or None. `None` loads weights if there are any, `True` requires
                them, `False` keeps random initial ones and downloads none.
            dtype: optional str or `keras.DTypePolicy` of all layers. `"bfloat16"` computes and
                stores in bfloat16, `"mixed_bfloat16"` stores in float32. The default is the
                saved policy, or Keras's default where none was saved.
            image_shape: optional `(H, W)` or `(H, W, channels)`. The position tables of
                another size are interpolated, absolute ones bilinearly, relative ones linearly.
            num_channels: optional int. The first kernel is adapted: see
                `keras_sam.presets.adapt.adapt_channels`.
            pixel_mean: optional sequence of floats, one per channel, 0..255.
            pixel_std: optional sequence of floats, likewise.
            checkpoint_key: optional str. Which weights to read from a file with those of several
                models: the entry of a `.pth` file, such as `"model_ema"`, or what precedes the
                names of its tensors. By default the model, not an average of it.
            ignore: str or iterable of str, regular expressions of whole names. Tensors of these
                names are left out, such as those of other heads that were trained together
                with the model.
            **kwargs: other arguments of the class: `name`; for a task also `mask_threshold`,
                `generator_settings` (None for Meta's defaults), and `preprocessor`, another one
                than the saved one or None. Then arguments of its parts, such as `drop_path_rate` of
                the image encoder; where several parts have one,
                `mask_decoder={"activation": "relu"}` sets that of one part. `dropout_rate` and
                `initializer_range` alone set all parts. `input_shape` is another name for
                `image_shape`.

        Returns:
            A model of this class; for `Backbone` and `ImageSegmenter`, of the subclass that was
            saved or that the file's family has, a `SAMImageSegmenter` where nothing says more.

        Raises:
            ValueError: if there is no such preset, the file is damaged or not a SAM, the
                preset is of another class, or weights are NaN or infinite.
            TypeError: if neither the class nor one of its parts has an argument of that name.
            ConnectionError: if a download fails; the message says what has been tried.

        Example:

        ```python
        segmenter = keras_sam.SAMImageSegmenter.from_preset("sam_base_sa1b", load_weights=False)
        ```
        """
        if "input_shape" in kwargs and image_shape is None:
            image_shape = kwargs.pop("input_shape")
        loaded = read_preset(
            preset,
            load_weights=load_weights,
            image_shape=image_shape,
            num_channels=num_channels,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
            checkpoint_key=checkpoint_key,
            ignore=ignore,
        )
        return cls.from_loaded_preset(loaded, dtype, **kwargs)

    @classmethod
    def from_loaded_preset(
        cls, preset: Preset, dtype: str | keras.DTypePolicy | None = None, **kwargs: Any
    ) -> Self:
        """The model of what `keras_sam.presets.read_preset` returned; see `from_preset`."""
        raise NotImplementedError

    def load_checkpoint(
        self,
        path: str | os.PathLike,
        part: str | None = None,
        ignore: str | Iterable[str] = (),
        keep: str | Iterable[str] = (),
        checkpoint_key: str | None = None,
    ) -> None:
        """Loads a checkpoint file into this model, or into one of its parts.

        The file may hold the whole model or only what was trained: SAM with a fine-tuned decoder
        is `from_preset("sam_base_sa1b")`, then `load_checkpoint("decoder.pth", "mask_decoder")`.
        All weights are compared before one is set.

        Args:
            path: path of a file of any format that `from_preset` reads.
            part: optional, one of `"image_encoder"`, `"prompt_encoder"` and `"mask_decoder"`.
                The others stay as they are, whether the file has them or not.
            ignore: see `from_preset`.
            keep: str or iterable of str, regular expressions of whole variable paths. The file
                may lack these variables, which stay as they are then.
            checkpoint_key: see `from_preset`.

        Raises:
            ValueError: if the file does not fit the model or that part, is damaged or not a
                SAM's, or weights are NaN or infinite. The model stays as it was.

        Example:

        ```python
        tiny_segmenter.save_to_preset("fine_tuned")
        tiny_segmenter.load_checkpoint("fine_tuned/model.weights.h5", part="mask_decoder")
        ```
        """
        backbone = getattr(self, "backbone", self)
        parts = [name for name in converters.PARTS if hasattr(backbone, name)]
        if not parts:  # it is one itself
            parts, part = ["image_encoder"], part or "image_encoder"
        if part not in (None, *parts):
            raise ValueError(f"`part` must be one of {parts}. Received: part={part!r}.")
        path = os.path.expanduser(path)
        arrays = converters.rename(converters.read_checkpoint(path, checkpoint_key)).arrays
        encoder = getattr(backbone, "image_encoder", backbone)
        if isinstance(encoder, PresetModel):
            name = keras.saving.get_registered_name(type(encoder))
            arrays = fit_tables(arrays, name, encoder.get_config())
        if part is not None:
            arrays = {k: x for k, x in arrays.items() if converters.part_of(k) in (part, None)}
            backbone = getattr(backbone, part, backbone)
        ignore, keep = ([x] if isinstance(x, str) else x for x in (ignore, keep))
        # Not `backends.assign_value`, which is for variables that nothing uses yet.
        assign(
            backbone.weights, arrays, lambda v, x: v.assign(np.array(x, "float32")), ignore, keep
        )

    def export(
        self,
        filepath: str | os.PathLike,
        format: str = "tf_saved_model",
        verbose: bool | None = None,
        input_signature: Any = None,
        **kwargs: Any,
    ) -> None:
        """Writes the model for other runtimes: Keras's own call, on every backend.

        An image encoder becomes one file, from `images`, float32 `(B, H, W, channels)` in the
        model's frame with pixel values 0..255, to what the encoder returns. ONNX and OpenVINO files
        are compared with the model before they appear. A segmenter becomes a folder of files for
        encoder and decoder with a manifest, see `keras_sam.export.export_model`.

        PyTorch writes ONNX and OpenVINO, TensorFlow SavedModels and LiteRT. On another backend, a
        process of its own with that one does it, if it is installed.

        Args:
            filepath: path of the file; of a folder for a segmenter, or for `"tf_saved_model"`.
            format: `"tf_saved_model"`, `"onnx"`, `"openvino"` (a `.xml` file, and a `.bin` file
                beside it), `"litert"` (`.tflite`), or `"torch"`, as Keras does it.
            verbose: optional bool. Whether to say where the file is; by default it does.
            input_signature: optional, of an image encoder: a `keras.InputSpec` or a list of one,
                whose shape `(B, H, W, channels)` gives the number of images. By default any
                number for `"tf_saved_model"`, else 1.
            **kwargs: for a segmenter, arguments of `export_model`. For an image encoder,
                `opset_version` for ONNX, and Keras's own for SavedModels and LiteRT.

        Raises:
            ValueError: if an argument is not usable.
            ImportError: if what the format needs is not installed; the message says how to.
            RuntimeError: if a file gives other results than the model.

        Example:

        ```python
        encoder = tiny_segmenter.image_encoder
        encoder.export("encoder.onnx", format="onnx", verbose=False)
        ```
        """
        # By its name: it builds on everything that uses models, so it is above this file.
        keras_call = importlib.import_module("keras_sam.export.keras_call")
        keras_call.export(self, filepath, format, verbose, input_signature, **kwargs)

    def save_to_preset(self, folder: str | os.PathLike) -> None:
        """Writes config, metadata and weights to a folder, and the preprocessor if it is a task.

        `from_preset` loads the folder, `keras_sam.presets.upload_preset` uploads it. What LoRA
        has learnt is merged into the kernels. Which layers are frozen is not saved.

        Args:
            folder: path of the folder, which is created if it does not exist.

        Raises:
            ValueError: if the model is quantized.
        """
        save(folder, self)


# What changes no prediction: a wish for these is one for the whole model.
_SET_EVERYWHERE = ("dropout_rate", "initializer_range")


def split_arguments(cls: type, preset: Preset, arguments: dict) -> tuple[dict, Preset]:
    """The arguments that are the class's own, and the preset whose parts have the others."""
    parts = copy.deepcopy(preset.parts)
    own_names = _arguments_of(cls)
    names = {part: _arguments_of(registered(parts[part]["registered_name"])) for part in parts}
    own = {}
    for name, value in sorted(arguments.items(), key=lambda item: item[0] in parts):
        having = [part for part in parts if name in names[part]]
        if name in parts:
            if not isinstance(value, Mapping):
                raise TypeError(
                    f"`{name}` must be a dict of arguments that replace those of the preset's "
                    f"{name}. Received: {name}={value!r}."
                )
            for inner in value:
                if inner not in names[name]:
                    raise _unknown_argument(name, inner, names[name])
            parts[name]["config"].update(value)
        elif name in own_names:
            own[name] = value
        elif not having:
            check_arguments(cls, [name], parts.keys() | set().union(*names.values()))
        elif len(having) > 1 and name not in _SET_EVERYWHERE:
            raise TypeError(
                f"`{name}` is an argument of {' and '.join(having)}. Pass it to one of them: "
                f"`{having[0]}={{{name!r}: {value!r}}}`."
            )
        else:
            for part in having:
                parts[part]["config"][name] = value
    return own, dataclasses.replace(preset, parts=parts)


def check_arguments(cls: type, arguments: Iterable[str], others: Iterable[str] = ()) -> None:
    """Refuses an argument that neither `from_preset` nor the class has, nor is among the others."""
    loading = inspect.signature(PresetModel.from_preset).parameters
    known = _arguments_of(cls).union(loading, others)
    for name in arguments:
        if name not in known:
            raise _unknown_argument(cls, name, known)


def _arguments_of(cls):
    """Names of what a class and its base classes take, down to those of Keras."""
    classes = [c for c in cls.__mro__ if "__init__" in vars(c) and c.__module__ != "builtins"]
    parameters = [
        p
        for c in classes
        if not c.__module__.startswith("keras.")
        for p in inspect.signature(c.__init__).parameters.values()
    ]
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return (named - {"self"}) | {"name", "trainable", "dtype"}


# What other packages call the model's size. Only the prompt encoder has a name like these here,
# `input_image_size`, which alone would fit no encoder.
_SIZES = ("image_size", "img_size", "input_size", "target_size", "resolution")


def _unknown_argument(owner, name, known):
    owner = getattr(owner, "__name__", owner)
    if name in _SIZES and "image_shape" in known:
        return TypeError(f"{owner} has no argument `{name}`. Here it is `image_shape`.")
    close = difflib.get_close_matches(name, sorted(known - {"self", "cls", "kwargs"}), n=1)
    hint = f" Did you mean `{close[0]}`?" if close else ""
    return TypeError(f"{owner} has no argument `{name}`.{hint}")


def build_from_config(part: dict, dtype: str | keras.DTypePolicy | None = None, **kwargs: Any):
    """A layer or model from a `Preset`'s part; the other arguments replace those in its config."""
    config = {**part["config"], **kwargs}
    if dtype is not None:
        config["dtype"] = dtype
    return registered(part["registered_name"]).from_config(config)


def registered(name: str) -> type:
    """The class that is registered with Keras under a name, or a ValueError."""
    cls = keras.saving.get_registered_object(name)
    if cls is None:
        raise ValueError(
            f"The preset needs the class {name!r}, which is not registered with Keras. Import the "
            "module that defines it first."
        )
    return cls


def freeze_as_told(layer: keras.layers.Layer) -> None:
    """Freezes what is inside a layer that was made with `trainable=False`, such as a loaded one.

    Keras only notes the wish, so that a model around the layer would still train its variables.
    """
    if not layer.trainable:
        layer.trainable = True  # on TensorFlow, Keras ignores a value that the layer has already
        layer.trainable = False


def skip_init_for(preset: Preset) -> contextlib.AbstractContextManager:
    """The context to build a preset's model in: it skips initial values if there are weights."""
    return contextlib.nullcontext() if preset.arrays is None else skip_init()


def load_into(model: keras.Model, preset: Preset, ignore: Iterable[str] = ()) -> None:
    """Gives a new model the preset's weights, if it has any."""
    if preset.arrays is not None:
        assign(model.weights, preset.arrays, backends.assign_value, ignore)


def save(folder: str | os.PathLike, model: PresetModel) -> None:
    """Writes the preset folder of a backbone, or of a task with its backbone and preprocessor."""
    backbone = getattr(model, "backbone", model)
    weights = _arrays(backbone)
    files = {CONFIG_FILE: _serialized(backbone)}
    if model is not backbone:
        own = {k: v for k, v in model.get_config().items() if k not in ("backbone", "preprocessor")}
        files[TASK_FILE] = _serialized(model, own)
        if model.preprocessor is not None:
            files[PREPROCESSOR_FILE] = _serialized(model.preprocessor)
    files[METADATA_FILE] = {
        "keras_version": keras.version(),
        "keras_sam_version": _version(),
        "parameters": backbone.count_params(),
        "date_saved": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "files": [*files, METADATA_FILE, WEIGHTS_FILE],
    }
    unused = {TASK_FILE: None, PREPROCESSOR_FILE: None}
    save_preset(folder, {**unused, **files}, weights)


def in_memory(backbone: PresetModel) -> Preset:
    """A `SAMBackbone` as a preset in memory, which can then be adapted and loaded.

    Values of bfloat16, a type that numpy does not have, are widened as those of files are.
    """
    names = ("image_encoder", "prompt_encoder", "mask_decoder")
    parts = {name: _serialized(getattr(backbone, name)) for name in names}
    arrays = {path: np.asarray(values) for path, values in _arrays(backbone).items()}
    for path, array in arrays.items():
        if array.dtype.name == "bfloat16":
            arrays[path] = array.astype("float32")
    return Preset(parts, arrays)


def _version():
    from keras_sam import __version__

    return __version__


def _serialized(thing, config=None):
    """Class and config, without what is frozen and how the model was built."""
    serialized = keras.saving.serialize_keras_object(thing)
    config = serialized["config"] if config is None else config
    config = {k: x for k, x in config.items() if not re.fullmatch(r"(.*_)?trainable", k)}
    names = ("module", "class_name", "registered_name")
    return {**{name: serialized[name] for name in names}, "config": config}


def _arrays(backbone):
    """Values by variable path, read one at a time, with LoRA merged into its kernels."""
    kernels = {}
    for layer in private.sublayers(backbone):
        if getattr(layer, "quantization_mode", None):
            raise ValueError(
                "A quantized model cannot be saved as a preset. Save the preset before quantizing, "
                "or save the segmenter with `segmenter.save('model.keras')`."
            )
        if getattr(layer, "lora_enabled", False):
            kernels[private.plain_kernel(layer).path] = layer
    arrays = {}
    for variable in backbone.weights:
        if "lora_kernel" not in variable.path.rsplit("/", 1)[1]:
            layer = kernels.get(variable.path)
            arrays[variable.path] = _Values(variable, layer)
    return arrays


class _Values:
    """An array that is copied from the backend only when it is written."""

    def __init__(self, variable, layer=None):
        self.variable = variable
        self.layer = layer

    def __array__(self, dtype=None, copy=None):
        value = self.variable.value if self.layer is None else self.layer.kernel
        return keras.ops.convert_to_numpy(value)
