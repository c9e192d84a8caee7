"""From anything that `from_preset` takes to a config and arrays, on this machine."""

import copy
import dataclasses
import os

from keras_sam import converters
from keras_sam.presets import foreign_configs, registry
from keras_sam.presets.adapt import adapt_channels, fit_position_tables
from keras_sam.presets.save import (
    CONFIG_FILE,
    METADATA_FILE,
    PREPROCESSOR_FILE,
    TASK_FILE,
    WEIGHTS_FILE,
)
from keras_sam.presets.sources import FolderSource, locate

# Arguments of the constructors by which each part of a SAM is known to Keras.
_CLASSES = {
    "image_encoder": "keras_sam>ViTDetBackbone",
    "prompt_encoder": "keras_sam>SAMPromptEncoder",
    "mask_decoder": "keras_sam>SAMMaskDecoder",
}


_TRANSFORMERS_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_CONFIGURED_FILES = (*_TRANSFORMERS_FILES, WEIGHTS_FILE)
_CONFIGURED_APART = ("backbone", "preprocessor", "trainable")
_BACKBONE = {"registered_name": "keras_sam>SAMBackbone", "config": {}}


@dataclasses.dataclass
class Preset:
    """A model that has been found: its parts, its arrays, and what was saved with it.

    Args:
        parts: dict of `image_encoder` and, for a whole SAM, `prompt_encoder` and
            `mask_decoder`, each with `registered_name` and `config`.
        arrays: dict from variable paths to tensors, or None when there are no weights.
        backbone: dict with the `registered_name` and `config` of the model around the parts.
        task: dict with the `registered_name` and `config` of the task that was saved, or None.
        preprocessor: likewise, of the preprocessor.
    """

    parts: dict
    arrays: dict | None = None
    backbone: dict = dataclasses.field(default_factory=lambda: dict(_BACKBONE))
    task: dict | None = None
    preprocessor: dict | None = None

    @property
    def encoder(self) -> dict:
        """The image encoder's arguments."""
        return self.parts["image_encoder"]["config"]


def load(
    preset,
    *,
    load_weights: bool | None = None,
    image_shape=None,
    num_channels: int | None = None,
    pixel_mean=None,
    pixel_std=None,
) -> Preset:
    """Finds a preset, downloads what is missing, and fits it to the wanted frame.

    Args:
        preset: built-in name, `kaggle://` or `hf://` address, or path of a folder or a
            checkpoint file.
        load_weights: bool or None. None loads weights if there are any.
        image_shape: optional `(H, W)` or `(H, W, channels)` of the new model frame.
        num_channels: optional int, likewise.
        pixel_mean: optional sequence of floats, one per channel.
        pixel_std: optional sequence of floats, one per channel.

    Returns:
        A `Preset`. Its arrays are read when they are used.

    Raises:
        ValueError: if there is no such preset, it is damaged, is no SAM, or has no weights
            although `load_weights=True`.
        ConnectionError: if it has to be downloaded and cannot be.
    """
    try:
        found = _find(preset, load_weights is not False)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"The JSON files of {preset!r} are not as a preset's must be: "
            f"{type(error).__name__}: {error}."
        ) from error
    if load_weights and found.arrays is None:
        raise ValueError(
            f"The preset {preset!r} has no weights. Pass `load_weights=False` to start from "
            "random ones."
        )
    return fit(found, image_shape, num_channels, pixel_mean, pixel_std)


def fit(preset: Preset, image_shape=None, num_channels=None, pixel_mean=None, pixel_std=None):
    """A preset for another model frame, other channels or other pixel statistics.

    Args:
        preset: a `Preset`; it stays as it is.
        image_shape: see `load`.
        num_channels: see `load`.
        pixel_mean: see `load`.
        pixel_std: see `load`.

    Returns:
        A new `Preset`.

    Raises:
        ValueError: if `image_shape` and `num_channels` disagree.
    """
    preset = dataclasses.replace(preset, parts=copy.deepcopy(preset.parts))
    if preset.parts["image_encoder"]["registered_name"] != _CLASSES["image_encoder"]:
        return preset
    encoder = preset.encoder
    given = {}
    for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
        if values is not None:
            given[name] = [float(v) for v in values]
    channels = _channels(image_shape, num_channels, encoder)
    changed = image_shape is not None or channels != encoder["image_shape"][2] or given
    if channels != encoder["image_shape"][2]:
        preset.arrays = adapt_channels(preset.arrays, encoder, channels, given)
    encoder.update(given)
    if image_shape is not None:
        encoder["image_shape"] = [*(int(n) for n in image_shape[:2]), channels]
        if "prompt_encoder" in preset.parts:
            prompt_encoder = preset.parts["prompt_encoder"]["config"]
            h, w = encoder["image_shape"][:2]
            prompt_encoder["input_image_size"] = [h, w]
            patch = encoder["patch_size"]
            prompt_encoder["image_embedding_size"] = [h // patch, w // patch]
    if preset.arrays is not None:
        preset.arrays = fit_position_tables(preset.arrays, encoder)
    if changed:
        preset.preprocessor = None  # it was made for another frame
    return preset


def _channels(image_shape, num_channels, encoder):
    if image_shape is not None and len(image_shape) not in (2, 3):
        raise ValueError(
            "`image_shape` must be (H, W) or (H, W, channels). "
            f"Received: image_shape={tuple(image_shape)}."
        )
    named = image_shape[2] if image_shape is not None and len(image_shape) == 3 else None
    if None not in (named, num_channels) and named != num_channels:
        raise ValueError(
            "`num_channels` must equal the channels in `image_shape`. "
            f"Received: num_channels={num_channels}, image_shape={tuple(image_shape)}."
        )
    return int(num_channels or named or encoder["image_shape"][2])


def _find(preset, with_weights):
    preset = os.fspath(preset)
    name = registry.aliases().get(preset, preset)
    if name in registry.names():
        found = _read_native(FolderSource(registry.folder_of(name)), with_weights)
        if with_weights and found.arrays is None:
            source = locate(name)
            found.arrays = _read(source, with_weights=True).arrays
        return found if name == preset else _encoder_alone(found)
    return _read(locate(preset), with_weights)


def _read(source, with_weights):
    """A preset of any kind, from a source that has a single file or a whole folder."""
    if source.single_file:
        path = source.fetch(source.single_file)
        if isinstance(source, FolderSource) and source.single_file in _CONFIGURED_FILES:
            return _beside_config(source, path, with_weights)
        return _from_file(path, with_weights)
    config = registry.read_json(source.fetch(CONFIG_FILE))
    kind = foreign_configs.kind_of(config)
    if kind == "keras_sam":
        return _read_native(source, with_weights, config)
    hints = foreign_configs.hints_of(kind, config)
    if kind == "transformers":
        path = _transformers_weights(source)
        statistics = source.fetch("preprocessor_config.json", optional=True)
        if statistics is not None:
            hints["image_encoder"].update(
                foreign_configs.pixel_statistics(registry.read_json(statistics))
            )
    else:
        path = source.fetch(WEIGHTS_FILE)
    return _from_file(path, with_weights, hints)


def _beside_config(source, path, with_weights):
    """A file that libraries write beside a config: what it cannot tell itself is read there."""
    beside = source.fetch(CONFIG_FILE, optional=True)
    config = {} if beside is None else registry.read_json(beside)
    try:
        kind = foreign_configs.kind_of(config)
    except ValueError:
        return _from_file(path, with_weights)
    if kind == "keras_sam":
        return _read_native(source, with_weights, config)
    return _from_file(path, with_weights, foreign_configs.hints_of(kind, config))


def _transformers_weights(source):
    for name in _TRANSFORMERS_FILES:
        path = source.fetch(name, optional=True)
        if path is None:
            continue
        if name.endswith(".json"):
            for shard in converters.shard_names(registry.read_json(path)):
                source.fetch(shard)
        return path
    raise ValueError(f"{source} has no model.safetensors or pytorch_model.bin.")


def _from_file(path, with_weights, hints=None):
    saved = converters.read_keras_config(path)
    if saved is not None:
        kind = foreign_configs.kind_of(saved)
        if kind == "keras_sam":
            return _from_own_keras_file(path, with_weights, saved)
        hints = foreign_configs.hints_of(kind, saved)
    tensors = converters.read_checkpoint(path)
    try:
        config, arrays = converters.convert(tensors, hints)
    except ValueError as error:
        raise ValueError(f"Cannot use the checkpoint {path!r}. {error}") from error
    parts = {
        name: {"registered_name": _CLASSES[name], "config": arguments}
        for name, arguments in config.items()
    }
    return Preset(parts, arrays if with_weights else None)


def _from_own_keras_file(path, with_weights, saved):
    """What `model.save` wrote of a trainer, a task, a backbone or an encoder."""
    task = saved["config"].get("segmenter", saved)
    backbone = task["config"].get("backbone", task)
    found = _native(backbone)
    if with_weights:
        found.arrays, _ = converters.rename(converters.read_checkpoint(path))
    if task is not backbone:
        config = {k: v for k, v in task["config"].items() if k not in _CONFIGURED_APART}
        found.task = {**_named(task), "config": config}
        preprocessor = task["config"].get("preprocessor")
        found.preprocessor = preprocessor and _named(preprocessor)
    return found


def _read_native(source, with_weights, config=None):
    config = config or registry.read_json(source.fetch(CONFIG_FILE))
    files = registry.read_json(source.fetch(METADATA_FILE)).get("files", [])

    def read(name):
        return registry.read_json(source.fetch(name)) if name in files else None

    found = _native(config)
    found.task, found.preprocessor = read(TASK_FILE), read(PREPROCESSOR_FILE)
    if with_weights and WEIGHTS_FILE in files:
        found.arrays = converters.read_checkpoint(source.fetch(WEIGHTS_FILE))
    return found


def _native(serialized):
    """A preset without weights from what Keras serialized, a whole SAM or an image encoder."""
    config = serialized["config"]
    parts = {name: _named(config[name]) for name in _CLASSES if name in config}
    if not parts:
        return Preset({"image_encoder": _named(serialized)})
    own = {k: v for k, v in config.items() if k not in (*_CLASSES, "trainable")}
    return Preset(parts, backbone={**_named(serialized), "config": own})


def _named(serialized):
    return {"registered_name": serialized["registered_name"], "config": serialized["config"]}


def _encoder_alone(preset):
    arrays = preset.arrays
    if arrays is not None:
        arrays = {
            name: array
            for name, array in arrays.items()
            if not name.startswith(("prompt_encoder/", "mask_decoder/"))
        }
    return Preset({"image_encoder": preset.parts["image_encoder"]}, arrays)
