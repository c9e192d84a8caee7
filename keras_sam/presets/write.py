"""Writes presets and checkpoints: our folders, the formats of other libraries, uploads."""

import json
import math
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from keras_sam import converters
from keras_sam.converters import Tensor
from keras_sam.files import import_h5py, whole_file
from keras_sam.presets.adapt import Preset
from keras_sam.presets.clients import HubSource, KaggleSource, import_client
from keras_sam.presets.locate import (
    CONFIG_FILE,
    METADATA_FILE,
    PREPROCESSOR_FILE,
    TASK_FILE,
    WEIGHTS_FILE,
)
from keras_sam.presets.read import read_preset

LAYOUTS = ("keras_sam", "meta", "transformers")
# Where Keras finds the classes that a preset is made of.
_MODULES = {
    "keras_sam>SAMBackbone": "keras_sam.models.sam_backbone",
    "keras_sam>ViTDetBackbone": "keras_sam.models.vit_det_backbone",
    "keras_sam>TinyViTBackbone": "keras_sam.models.tiny_vit_backbone",
    "keras_sam>HieraBackbone": "keras_sam.models.hiera_backbone",
    "keras_sam>SAMPromptEncoder": "keras_sam.layers.prompt_encoder",
    "keras_sam>SAMMaskDecoder": "keras_sam.layers.mask_decoder",
    "keras_sam>SAMHQMaskDecoder": "keras_sam.layers.hq_mask_decoder",
    "keras_sam>SAM2MaskDecoder": "keras_sam.layers.sam2_mask_decoder",
}


def convert_checkpoint(
    source: str | os.PathLike,
    target: str | os.PathLike,
    layout: str = "keras_sam",
    checkpoint_key: str | None = None,
    ignore: str | Iterable[str] = (),
) -> str:
    """Converts anything that `from_preset` takes into another library's format.

    Values are copied bit by bit, one tensor after the other; Keras is not needed.

    Args:
        source: built-in name, address or path, see `read_preset`.
        target: path to write: of a folder, for `"meta"` of a `.safetensors` file.
        layout: `"keras_sam"`, a preset folder of ours; `"meta"`, a file with the names and
            shapes of the released code's state dict; `"transformers"`, a folder for
            `from_pretrained` of `SamModel`, `SamHQModel` or `Sam2Model`.
        checkpoint_key: see `read_preset`.
        ignore: see `read_preset`.

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
    preset = read_preset(source, load_weights=True, checkpoint_key=checkpoint_key, ignore=ignore)
    write = {"keras_sam": _write_ours, "meta": _write_meta, "transformers": _write_transformers}
    write[layout](preset, os.fspath(target))
    return os.fspath(target)


def _write_meta(preset, target):
    if not target.endswith(".safetensors"):
        raise ValueError(
            f"`target` must end in .safetensors for the layout 'meta'. Received: target={target!r}."
        )
    # What the tensors do not say, such as heads. Other readers pass over a file's metadata.
    config = _config(preset)
    if preset.task is not None:
        parts = {"backbone": config, "preprocessor": preset.preprocessor}
        config = {**preset.task, "config": {**preset.task["config"], **parts}}
    metadata = {"format": "pt", converters.CONFIG_KEY: json.dumps(config)}
    save_safetensors(target, converters.to_meta(preset.arrays, _family_of(preset)), metadata)


def _family_of(preset):
    family = converters.family_of(preset.parts)
    if family is None:
        classes = [part["registered_name"] for part in preset.parts.values()]
        raise ValueError(
            "Only models of this package's classes can be written for other libraries. "
            f"Received: {', '.join(classes)}."
        )
    return family


def _write_transformers(preset, target):
    parts = {name: part["config"] for name, part in preset.parts.items()}
    if "prompt_encoder" not in parts:
        raise ValueError("The source holds an image encoder alone, not a whole SAM.")
    family = _family_of(preset)
    layout = family.transformers
    if layout is None:
        raise ValueError(f"transformers has no {family.name}. Write 'keras_sam' or 'meta'.")
    config = layout.config(parts)
    os.makedirs(target, exist_ok=True)
    tensors = layout.tensors(preset.arrays)
    save_safetensors(os.path.join(target, "model.safetensors"), tensors, {"format": "pt"})
    save_json(os.path.join(target, CONFIG_FILE), config)
    save_json(os.path.join(target, "preprocessor_config.json"), layout.preprocessor_config(parts))


def _write_ours(preset, target):
    files = {
        CONFIG_FILE: _config(preset),
        TASK_FILE: preset.task,
        PREPROCESSOR_FILE: preset.preprocessor,
    }
    names = [name for name, content in files.items() if content is not None]
    files[METADATA_FILE] = {
        "parameters": sum(math.prod(tensor.shape) for tensor in preset.arrays.values()),
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


def save_preset(folder: str | os.PathLike, files: dict, arrays: dict) -> None:
    """Writes a preset folder, or updates one: JSON files by name, where None removes the file.

    Each file takes its final name when it is whole, the weights first.
    """
    os.makedirs(folder, exist_ok=True)
    save_hdf5(os.path.join(folder, WEIGHTS_FILE), arrays)
    for name, content in files.items():
        path = os.path.join(folder, name)
        if content is not None:
            save_json(path, content)
        elif os.path.exists(path):
            os.remove(path)


def save_json(path: str | os.PathLike, content: Any) -> None:
    """Writes JSON that people can read and compare."""
    with whole_file(path, text=True) as file:
        json.dump(content, file, indent=4, sort_keys=False)
        file.write("\n")


def save_hdf5(path: str | os.PathLike, arrays: dict) -> None:
    """Writes one HDF5 dataset per variable, at its path; bfloat16 as its bits, and an attribute."""
    h5py = import_h5py()

    # HDF5 opens the temporary file by its name: through a Python file every write would be a call.
    with whole_file(path) as opened, h5py.File(opened.name, "w") as file:
        for name in sorted(arrays):
            values = np.asarray(arrays[name])
            bfloat16 = values.dtype.name == "bfloat16"
            dataset = file.create_dataset(name, data=values.view("u2") if bfloat16 else values)
            if bfloat16:
                dataset.attrs["dtype"] = "bfloat16"


def save_safetensors(
    path: str | os.PathLike, tensors: dict, metadata: dict[str, str] | None = None
) -> None:
    """Writes a `.safetensors` file tensor by tensor, without a second copy of all weights."""
    types = {"float64": "F64", "float32": "F32", "float16": "F16"}
    tensors = {name: Tensor.of(tensors[name]) for name in sorted(tensors)}
    header = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.dtype.itemsize * math.prod(tensor.shape)
        header[name] = {
            "dtype": types[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # readers may want the data aligned
    with whole_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            values = np.asarray(tensor).astype(tensor.dtype.newbyteorder("<"), copy=False)
            file.write(np.ascontiguousarray(values).data)


def upload_preset(address: str, folder: str | os.PathLike, **options: Any) -> None:
    """Uploads a folder that `save_to_preset` wrote.

    The client checks who may upload there: log in with it first.

    Args:
        address: `kaggle://owner/model/keras/variation` or `hf://owner/repository`.
        folder: path of the folder.
        **options: passed on to the client's function: `kagglehub.model_upload` (such as
            `license_name`, `version_notes`) or `huggingface_hub.upload_folder` (such as
            `commit_message`, `revision`). `private=True` makes a new Hugging Face
            repository private.

    Raises:
        ValueError: if the address is none of these, or the folder is not a preset's.
        ImportError: if the client is not installed.
    """
    folder = os.fspath(folder)
    for name in (CONFIG_FILE, METADATA_FILE):
        if not os.path.isfile(os.path.join(folder, name)):
            raise ValueError(
                "`folder` must be one that `save_to_preset` wrote. "
                f"Received: {folder!r}, which has no {name}."
            )
    if address.startswith("kaggle://"):
        source = KaggleSource.parse(address)
        if source.handle.count("/") != 3:
            raise ValueError(
                "Kaggle numbers the versions itself: leave the version out of `address`. "
                f"Received: {address!r}."
            )
        import_client("kagglehub", "kaggle").model_upload(source.handle, folder, **options)
    elif address.startswith("hf://"):
        source = HubSource.parse(address)
        if source.single_file or source.revision:
            raise ValueError(f"`address` must be hf://owner/repository. Received: {address!r}.")
        hub = import_client("huggingface_hub", "hub")
        private = options.pop("private", None)
        hub.create_repo(source.repository, private=private, exist_ok=True)
        hub.upload_folder(repo_id=source.repository, folder_path=folder, **options)
    else:
        raise ValueError(
            f"`address` must start with kaggle:// or hf://. Received: address={address!r}."
        )
