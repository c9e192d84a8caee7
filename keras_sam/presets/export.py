"""Writes a model in the formats of other libraries, and converts between them all."""

import os

from keras_sam import converters
from keras_sam.presets import foreign_configs
from keras_sam.presets.loading import Preset, load
from keras_sam.presets.save import (
    CONFIG_FILE,
    METADATA_FILE,
    PREPROCESSOR_FILE,
    TASK_FILE,
    WEIGHTS_FILE,
    save_json,
    save_preset,
    save_safetensors,
)

LAYOUTS = ("keras_sam", "meta", "transformers")
# Where Keras finds the classes that a preset is made of.
_MODULES = {
    "keras_sam>SAMBackbone": "keras_sam.models.sam_backbone",
    "keras_sam>ViTDetBackbone": "keras_sam.models.vit_det_backbone",
    "keras_sam>SAMPromptEncoder": "keras_sam.layers.prompt_encoder",
    "keras_sam>SAMMaskDecoder": "keras_sam.layers.mask_decoder",
}


def convert_checkpoint(source, target, layout: str = "keras_sam") -> str:
    """Converts anything that `from_preset` takes into another library's format.

    Values are copied bit by bit, one tensor after the other; Keras is not needed.

    Args:
        source: built-in name, address or path, see `load`.
        target: path to write: of a folder, for `"meta"` of a `.safetensors` file.
        layout: `"keras_sam"`, a preset folder of ours; `"meta"`, a file with the names and
            shapes of Meta's state dict; `"transformers"`, a folder for
            `SamModel.from_pretrained`.

    Returns:
        What was written, a path.

    Raises:
        ValueError: if the layout is none of these, the source has no weights, or the other
            library has no such model.

    Example:

    ```python
    keras_sam.presets.convert_checkpoint("sam_vit_b_01ec64.pth", "sam_base", "transformers")
    ```
    """
    if layout not in LAYOUTS:
        raise ValueError(f"`layout` must be one of {LAYOUTS}. Received: layout={layout!r}.")
    preset = load(source, load_weights=True)
    write = {"keras_sam": _write_ours, "meta": _write_meta, "transformers": _write_transformers}
    write[layout](preset, os.fspath(target))
    return os.fspath(target)


def _write_meta(preset, target):
    if not target.endswith(".safetensors"):
        raise ValueError(
            f"`target` must end in .safetensors for the layout 'meta'. Received: target={target!r}."
        )
    save_safetensors(target, converters.to_meta(preset.arrays), {"format": "pt"})


def _write_transformers(preset, target):
    parts = {name: part["config"] for name, part in preset.parts.items()}
    if "prompt_encoder" not in parts:
        raise ValueError("The source holds an image encoder alone, not a whole SAM.")
    config = foreign_configs.to_transformers(parts)
    os.makedirs(target, exist_ok=True)
    tensors = converters.to_hugging_face(preset.arrays)
    save_safetensors(os.path.join(target, "model.safetensors"), tensors, {"format": "pt"})
    save_json(os.path.join(target, CONFIG_FILE), config)
    statistics = foreign_configs.to_transformers_preprocessor(parts["image_encoder"])
    save_json(os.path.join(target, "preprocessor_config.json"), statistics)


def _write_ours(preset, target):
    files = {
        CONFIG_FILE: _config(preset),
        TASK_FILE: preset.task,
        PREPROCESSOR_FILE: preset.preprocessor,
    }
    names = [name for name, content in files.items() if content is not None]
    parameters = sum(_size(tensor.shape) for tensor in preset.arrays.values())
    files[METADATA_FILE] = {
        "parameters": parameters,
        "files": [*names, METADATA_FILE, WEIGHTS_FILE],
    }
    save_preset(target, files, preset.arrays)


def _config(preset: Preset) -> dict:
    parts = {name: _serialized(part) for name, part in preset.parts.items()}
    if "prompt_encoder" not in parts:
        return parts["image_encoder"]
    return _serialized({**preset.backbone, "config": {**preset.backbone["config"], **parts}})


def _serialized(part):
    name = part["registered_name"]
    return {
        "module": _MODULES.get(name),
        "class_name": name.rpartition(">")[2],
        "config": part["config"],
        "registered_name": name,
    }


def _size(shape):
    size = 1
    for n in shape:
        size *= n
    return size
