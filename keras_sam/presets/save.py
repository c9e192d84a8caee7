"""Writes presets: JSON files and one HDF5 file of weights, named by variable path."""

import contextlib
import json
import os

import numpy as np

from keras_sam.converters import Tensor

CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor.json"
TASK_FILE = "task.json"
METADATA_FILE = "metadata.json"
WEIGHTS_FILE = "model.weights.h5"


def save_preset(folder, files: dict, arrays: dict) -> None:
    """Writes a preset folder; a folder that is there already is updated.

    Weights are written to a file beside, which takes its final name when it is whole.

    Args:
        folder: path of the folder; it is made when it is not there.
        files: dict from file names to what they hold, written as JSON; None removes the file.
        arrays: dict from variable paths to arrays or tensors.
    """
    os.makedirs(folder, exist_ok=True)
    save_hdf5(os.path.join(folder, WEIGHTS_FILE), arrays)
    for name, content in files.items():
        path = os.path.join(folder, name)
        if content is not None:
            save_json(path, content)
        elif os.path.exists(path):
            os.remove(path)


def save_json(path, content) -> None:
    """Writes JSON that people can read and compare."""
    with _whole_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=4, sort_keys=False)
        file.write("\n")


def save_hdf5(path, arrays: dict) -> None:
    """Writes one HDF5 dataset per variable, at its path, one after the other.

    bfloat16 is stored as its bits, with the attribute `dtype`.

    Args:
        path: path of the file.
        arrays: dict from variable paths to arrays or tensors.
    """
    import h5py

    with _whole_file(path) as temporary, h5py.File(temporary, "w") as file:
        for name in sorted(arrays):
            values = np.asarray(arrays[name])
            bfloat16 = values.dtype.name == "bfloat16"
            dataset = file.create_dataset(name, data=values.view("u2") if bfloat16 else values)
            if bfloat16:
                dataset.attrs["dtype"] = "bfloat16"


def save_safetensors(path, tensors: dict, metadata: dict | None = None) -> None:
    """Writes a `.safetensors` file tensor by tensor, without a second copy of all weights.

    Args:
        path: path of the file.
        tensors: dict from names to arrays or tensors.
        metadata: optional dict of strings, kept in the header.
    """
    types = {"float64": "F64", "float32": "F32", "float16": "F16"}
    tensors = {name: Tensor.of(tensors[name]) for name in sorted(tensors)}
    header = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.dtype.itemsize * int(np.prod(tensor.shape, dtype=np.int64))
        header[name] = {
            "dtype": types[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # readers may want the data aligned
    with _whole_file(path) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            values = np.asarray(tensor).astype(tensor.dtype.newbyteorder("<"), copy=False)
            file.write(np.ascontiguousarray(values).data)


@contextlib.contextmanager
def _whole_file(path):
    """A temporary name beside `path`, which becomes `path` unless something fails."""
    path = os.fspath(path)
    temporary = f"{path}.{os.getpid()}.part"
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
