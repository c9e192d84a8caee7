"""Keras models from presets, and presets from Keras models."""

import contextlib
import datetime
import os
from collections.abc import Iterable, Sequence
from typing import Any, Self

import keras
import numpy as np

from keras_sam import backends
from keras_sam.backends import private
from keras_sam.layers.initialization import skip_init
from keras_sam.presets import Preset, list_presets, read_preset
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
            **kwargs: passed on to the class: `name`; for a task also `mask_threshold`, and
                `preprocessor`, another one than the saved one or None.

        Returns:
            A model of this class; for `Backbone` and `ImageSegmenter`, of the subclass that was
            saved. Files that name no task become a `SAMImageSegmenter`.

        Raises:
            ValueError: if there is no such preset, the file is damaged or not a SAM, or the
                preset is of another class.
            ConnectionError: if a download fails; the message says what has been tried.

        Example:

        ```python
        segmenter = keras_sam.SAMImageSegmenter.from_preset("sam_base_sa1b", load_weights=False)
        ```
        """
        loaded = read_preset(
            preset,
            load_weights=load_weights,
            image_shape=image_shape,
            num_channels=num_channels,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
        )
        return cls.from_loaded_preset(loaded, dtype, **kwargs)

    @classmethod
    def from_loaded_preset(
        cls, preset: Preset, dtype: str | keras.DTypePolicy | None = None, **kwargs: Any
    ) -> Self:
        """The model of what `keras_sam.presets.read_preset` returned; see `from_preset`."""
        raise NotImplementedError

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
    """A `SAMBackbone` as a preset in memory, which can then be adapted."""
    names = ("image_encoder", "prompt_encoder", "mask_decoder")
    parts = {name: _serialized(getattr(backbone, name)) for name in names}
    arrays = {path: np.asarray(values) for path, values in _arrays(backbone).items()}
    return Preset(parts, arrays)


def _version():
    from keras_sam import __version__

    return __version__


def _serialized(thing, config=None):
    """Class and config, without `trainable` and how the model was built."""
    serialized = keras.saving.serialize_keras_object(thing)
    config = dict(serialized["config"] if config is None else config)
    config.pop("trainable", None)
    names = ("module", "class_name", "registered_name")
    return {**{name: serialized[name] for name in names}, "config": config}


def _arrays(backbone):
    """Values by variable path, read one at a time, with LoRA merged into its kernels."""
    kernels = {}
    for layer in private.sublayers(backbone):
        if getattr(layer, "quantization_mode", None):
            raise ValueError(
                "A quantized model cannot be saved as a preset. Save the preset before quantizing, "
                "or save this model with `model.save('model.keras')`."
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
