"""Keras models from presets, and presets from Keras models."""

import contextlib
import datetime

import keras
import numpy as np

from keras_sam import backends, presets
from keras_sam.backends import private
from keras_sam.layers.initialization import skip_init
from keras_sam.presets.save import (
    CONFIG_FILE,
    METADATA_FILE,
    PREPROCESSOR_FILE,
    TASK_FILE,
    WEIGHTS_FILE,
)


def make(part: dict, dtype=None):
    """A layer or model from its `registered_name` and `config`.

    Args:
        part: dict as a `Preset` has it.
        dtype: optional str or `keras.DTypePolicy` that replaces the one in the config.

    Raises:
        ValueError: if no class of that name is registered with Keras.
    """
    config = dict(part["config"])
    if dtype is not None:
        config["dtype"] = dtype
    return registered(part["registered_name"]).from_config(config)


def registered(name: str):
    """The class that is registered with Keras under a name, or a ValueError."""
    cls = keras.saving.get_registered_object(name)
    if cls is None:
        raise ValueError(
            f"The preset needs the class {name!r}, which is not registered with Keras. Import the "
            "module that defines it first."
        )
    return cls


def values_of(preset):
    """The context to build a preset's model in: without initial values if it has weights."""
    return contextlib.nullcontext() if preset.arrays is None else skip_init()


def load_into(model, preset, ignore=()) -> None:
    """Gives a new model the preset's weights, if it has any."""
    if preset.arrays is not None:
        presets.assign(model.weights, preset.arrays, backends.assign_value, ignore)


def save(folder, backbone, task=None) -> None:
    """Writes a preset folder.

    Args:
        folder: path of the folder.
        backbone: the model whose weights are saved.
        task: optional model around it, with a `preprocessor`.

    Raises:
        ValueError: if the model is quantized.
    """
    weights = _arrays(backbone)
    files = {CONFIG_FILE: _serialized(backbone)}
    if task is not None:
        own = {k: v for k, v in task.get_config().items() if k not in ("backbone", "preprocessor")}
        files[TASK_FILE] = _serialized(task, own)
        if task.preprocessor is not None:
            files[PREPROCESSOR_FILE] = _serialized(task.preprocessor)
    files[METADATA_FILE] = {
        "keras_version": keras.version(),
        "keras_sam_version": _version(),
        "parameters": backbone.count_params(),
        "date_saved": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "files": [*files, METADATA_FILE, WEIGHTS_FILE],
    }
    unused = {TASK_FILE: None, PREPROCESSOR_FILE: None}
    presets.save_preset(folder, {**unused, **files}, weights)


def in_memory(backbone) -> presets.Preset:
    """A `SAMBackbone` as a preset that was never written, to be fitted to something else."""
    names = ("image_encoder", "prompt_encoder", "mask_decoder")
    parts = {name: _serialized(getattr(backbone, name)) for name in names}
    arrays = {path: np.asarray(values) for path, values in _arrays(backbone).items()}
    return presets.Preset(parts, arrays)


def _version():
    from keras_sam import __version__

    return __version__


def _serialized(thing, config=None):
    """Class and config; a preset says nothing about what is frozen, nor how it was built."""
    serialized = keras.saving.serialize_keras_object(thing)
    config = dict(serialized["config"] if config is None else config)
    config.pop("trainable", None)
    names = ("module", "class_name", "registered_name")
    return {**{name: serialized[name] for name in names}, "config": config}


def _arrays(backbone):
    """Values by variable path, read one at a time; what LoRA learnt is added to its kernels."""
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
    """An array that is taken off its backend when it is written."""

    def __init__(self, variable, layer=None):
        self.variable = variable
        self.layer = layer

    def __array__(self, dtype=None, copy=None):
        value = self.variable.value if self.layer is None else self.layer.kernel
        return keras.ops.convert_to_numpy(value)
