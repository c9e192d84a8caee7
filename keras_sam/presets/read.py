"""From everything that `from_preset` takes to a config and arrays, on this machine."""

import os
from collections.abc import Iterable, Sequence

import numpy as np

from keras_sam import converters
from keras_sam.exported.manifest import is_export
from keras_sam.presets import locate
from keras_sam.presets.adapt import Preset, adapt
from keras_sam.presets.assign import without_matches
from keras_sam.presets.locate import (
    CONFIG_FILE,
    METADATA_FILE,
    PREPROCESSOR_FILE,
    TASK_FILE,
    WEIGHTS_FILE,
    read_json,
)

_TRANSFORMERS_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_CONFIGURED_FILES = (*_TRANSFORMERS_FILES, WEIGHTS_FILE)
# Of a task in a Keras file: parts with configs of their own, and what presets do not keep.
_CONFIGURED_APART = ("backbone", "preprocessor", "trainable", "sam_decoder_trainable", "quantized")


def read_preset(
    preset: str | os.PathLike,
    *,
    load_weights: bool | None = None,
    image_shape: Sequence[int] | None = None,
    num_channels: int | None = None,
    pixel_mean: Sequence[float] | None = None,
    pixel_std: Sequence[float] | None = None,
    checkpoint_key: str | None = None,
    ignore: str | Iterable[str] = (),
) -> Preset:
    """Finds a preset, downloads what is missing, and adapts it to the wanted frame.

    Args:
        preset: built-in name, `kaggle://` or `hf://` address, or path of a folder or a
            checkpoint file.
        load_weights: bool or None. None loads weights if there are any.
        image_shape: optional `(H, W)` or `(H, W, channels)` of the new model frame.
        num_channels: optional int, likewise.
        pixel_mean: optional sequence of floats, one per channel.
        pixel_std: optional sequence of floats, one per channel.
        checkpoint_key: optional str. Which weights to read from a file with those of several
            models: the entry of a `.pth` file, such as `"model_ema"`, or what precedes the names.
        ignore: regular expressions of whole names. Tensors of these names are left out, such as
            those of other heads that were trained together with the model.

    Returns:
        A `Preset`. Its arrays are read when they are used.

    Raises:
        ValueError: if there is no such preset, it is damaged, is no SAM, or has no weights
            although `load_weights=True`.
        ConnectionError: if it has to be downloaded and cannot be.
    """
    if not isinstance(preset, (str, os.PathLike)):
        raise ValueError(
            "A preset must be a name, an address or a path. Received: "
            f"{preset!r:.80}. A model becomes a folder with `model.save_to_preset(folder)`."
        )
    if is_export(preset):
        raise ValueError(
            "A preset must hold a model of Keras. Received: exported files in "
            f"{os.fspath(preset)!r}, which `keras_sam.ExportedSegmenter.load` loads to predict."
        )
    try:
        found = _read(os.fspath(preset), load_weights is not False, checkpoint_key)
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
    if ignore and found.arrays is not None:
        patterns = [ignore] if isinstance(ignore, str) else ignore
        found.arrays = {
            name: found.arrays[name] for name in without_matches(found.arrays, patterns)
        }
    return adapt(found, image_shape, num_channels, pixel_mean, pixel_std)


def _read(preset, with_weights, key):
    source = locate.local_file(preset)
    if source is not None:
        return _read_source(source, with_weights, key)
    preset = locate.full_name(preset)
    name = locate.aliases().get(preset, preset)
    if name not in locate.names():
        return _read_source(locate.locate(preset), with_weights, key)
    found = _read_native(locate.FolderSource(locate.folder_of(name)), with_weights, key=key)
    if with_weights and found.arrays is None:
        found.arrays = _read_source(locate.weights_source(name), with_weights=True).arrays
    return found if name == preset else _encoder_alone(found)


def _read_source(source, with_weights, key=None):
    """A preset of any kind, from a source that has a single file or a whole folder."""
    if source.single_file:
        path = source.fetch(source.single_file)
        if isinstance(source, locate.FolderSource) and source.single_file in _CONFIGURED_FILES:
            return _beside_config(source, path, with_weights, key)
        return _from_file(path, with_weights, key=key)
    config = read_json(source.fetch(CONFIG_FILE))
    kind = _kind_of(config)
    if kind == "keras_sam":
        return _read_native(source, with_weights, config, key)
    hints = _hints_of(kind, config)
    if kind == "transformers":
        path = _transformers_weights(source)
        statistics = source.fetch("preprocessor_config.json", optional=True)
        if statistics is not None:
            hints["image_encoder"].update(_pixel_statistics(read_json(statistics)))
    else:
        path = source.fetch(WEIGHTS_FILE)
    return _from_file(path, with_weights, hints, key)


def _beside_config(source, path, with_weights, key):
    """A file that libraries write beside a config.json, which holds what its tensors do not say."""
    beside = source.fetch(CONFIG_FILE, optional=True)
    config = {} if beside is None else read_json(beside)
    try:
        kind = _kind_of(config)
    except ValueError:
        return _from_file(path, with_weights, key=key)
    if kind == "keras_sam":
        return _read_native(source, with_weights, config, key)
    return _from_file(path, with_weights, _hints_of(kind, config), key)


def _transformers_weights(source):
    for name in _TRANSFORMERS_FILES:
        path = source.fetch(name, optional=True)
        if path is None:
            continue
        if name.endswith(".json"):
            for shard in converters.shard_names(read_json(path)):
                source.fetch(shard)
        return path
    raise ValueError(f"{source} has no model.safetensors or pytorch_model.bin.")


def _from_file(path, with_weights, hints=None, key=None):
    saved = converters.read_keras_config(path)
    if saved is not None:
        kind = _kind_of(saved)
        if kind == "keras_sam":
            return _from_own_file(path, with_weights, saved, key)
        hints = _hints_of(kind, saved)
    tensors = converters.read_checkpoint(path, key)
    try:
        family, parts, arrays = converters.convert(tensors, hints)
    except ValueError as error:
        raise ValueError(f"Cannot use the checkpoint {path!r}. {error}") from error
    task = None
    if family.task is not None and len(parts) > 1:
        task = {"registered_name": family.task, "config": {}}
    return Preset(parts, arrays if with_weights else None, task=task)


def _from_own_file(path, with_weights, saved, key):
    """A trainer, a task, a backbone or an encoder that `model.save` or a conversion wrote."""
    task = saved["config"].get("segmenter", saved)
    backbone = task["config"].get("backbone", task)
    found = _native(backbone)
    if with_weights:
        found.arrays = converters.rename(converters.read_checkpoint(path, key)).arrays
    if task is not backbone:
        config = {k: v for k, v in task["config"].items() if k not in _CONFIGURED_APART}
        found.task = {**_named(task), "config": config}
        preprocessor = task["config"].get("preprocessor")
        found.preprocessor = preprocessor and _named(preprocessor)
    return found


def _read_native(source, with_weights, config=None, key=None):
    if key is not None:
        raise ValueError(
            "`checkpoint_key` is for checkpoint files that hold several models. "
            f"Received: checkpoint_key={key!r}, and a preset folder, which holds one."
        )
    config = config or read_json(source.fetch(CONFIG_FILE))
    files = read_json(source.fetch(METADATA_FILE)).get("files", [])

    def read(name):
        return read_json(source.fetch(name)) if name in files else None

    found = _native(config)
    found.task, found.preprocessor = read(TASK_FILE), read(PREPROCESSOR_FILE)
    if with_weights and WEIGHTS_FILE in files:
        found.arrays = converters.read_checkpoint(source.fetch(WEIGHTS_FILE))
    return found


def _native(serialized):
    """A preset without weights from what Keras serialized, a whole SAM or an image encoder."""
    config = serialized["config"]
    parts = {name: _named(config[name]) for name in converters.PARTS if name in config}
    if not parts:
        return Preset({"image_encoder": _named(serialized)})
    own = {k: v for k, v in config.items() if k not in (*converters.PARTS, "trainable")}
    return Preset(parts, backbone={**_named(serialized), "config": own})


def _named(serialized):
    # Which parts are frozen is for training to decide, but Keras writes it into their configs.
    config = {k: v for k, v in serialized["config"].items() if k != "trainable"}
    return {"registered_name": serialized["registered_name"], "config": config}


def _encoder_alone(preset):
    others = ("prompt_encoder/", "mask_decoder/")
    arrays = preset.arrays
    arrays = arrays and {k: v for k, v in arrays.items() if not k.startswith(others)}
    return Preset({"image_encoder": preset.parts["image_encoder"]}, arrays)


_KERAS_HUB_CLASSES = ("SAMImageSegmenter", "SAMBackbone", "ViTDetBackbone")
_KERAS_CV_CLASSES = ("SegmentAnythingModel", "ViTDetBackbone")
# transformers' model types, and how it stores these models.
_TRANSFORMERS = {
    model_type: family.transformers
    for family in converters.FAMILIES
    if family.transformers
    for model_type in family.transformers.model_types
}


def _kind_of(config: dict) -> str:
    """Which library wrote a `config.json`: keras_sam, keras_hub, keras_cv or transformers."""
    config = config if isinstance(config, dict) else {}
    registered = str(config.get("registered_name") or "")
    package, _, name = registered.partition(">")
    if package == "keras_sam":
        return "keras_sam"
    if package in ("keras_hub", "keras_nlp") and name in _KERAS_HUB_CLASSES:
        return "keras_hub"
    if package.startswith("keras_cv") and name in _KERAS_CV_CLASSES:
        return "keras_cv"
    if config.get("model_type") in _TRANSFORMERS:
        return "transformers"
    said = registered or config.get("model_type") or config.get("class_name") or "nothing"
    raise ValueError(
        "Its config.json must be that of a SAM, written by keras_sam, KerasHub, KerasCV or "
        f"transformers. Received: {said!r}."
    )


def _hints_of(kind: str, config: dict) -> dict:
    """Arguments of our parts that `converters.convert` cannot see in the tensors."""
    if kind == "transformers":
        return _TRANSFORMERS[config["model_type"]].hints(config)
    if str(config.get("registered_name")).endswith(">SAMImageSegmenter"):
        config = config["config"]["backbone"]
    inner = config["config"]
    encoder = inner.get("image_encoder") or inner.get("backbone") or config
    decoder = inner.get("mask_decoder", {}).get("config", {})
    transformer = decoder.get("transformer") or {}
    heads = decoder.get("num_heads") or transformer.get("config", {}).get("num_heads")
    return {
        "image_encoder": {
            ours: encoder["config"][theirs]
            for ours, theirs in _KERAS_ENCODER
            if encoder["config"].get(theirs) is not None
        },
        "mask_decoder": {"num_heads": heads} if heads else {},
    }


# Ours and theirs. KerasHub's `layer_norm_epsilon` has no effect there: always 1e-6.
_KERAS_ENCODER = (
    ("num_heads", "num_heads"),
    ("window_size", "window_size"),
    ("global_attention_layer_indices", "global_attention_layer_indices"),
    ("global_attention_layer_indices", "global_attention_indices"),
)


def _pixel_statistics(config: dict) -> dict:
    """Mean and standard deviation of pixels 0..255 from transformers' preprocessor config."""
    scale = 1.0 / (config.get("rescale_factor") or 1 / 255)
    found = {}
    for ours, theirs in (("pixel_mean", "image_mean"), ("pixel_std", "image_std")):
        if config.get(theirs) is not None:
            found[ours] = np.round(np.float64(config[theirs]) * scale, 9).tolist()
    return found
