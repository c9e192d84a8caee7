"""Reads checkpoint files of any kind as named tensors, whose values are read when used."""

import io
import json
import math
import os
import re
import struct
import zipfile

import numpy as np

from keras_sam.converters.tables import Tensor, under_key, widen_bfloat16
from keras_sam.converters.torch_files import map_file, read_torch, zip_member
from keras_sam.files import import_h5py

_MAX_HEADER_BYTES = 100 * 10**6  # the safetensors format's own limit
# The entry in the header's metadata under which our files have their config.
CONFIG_KEY = "keras_sam_config"
_SAFETENSORS_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}


def read_checkpoint(path, checkpoint_key: str | None = None) -> dict[str, Tensor]:
    """Reads a checkpoint file into named tensors, without the framework that wrote it.

    The kind of file is recognised by its first bytes where possible, not by its name.

    Args:
        path: path of a `.pth`, `.pt`, `.safetensors`, `.safetensors.index.json`, `.h5` or
            `.keras` file.
        checkpoint_key: optional str. Which weights to read from a file with those of several
            models: the entry of a `.pth` file, such as `"model_ema"`, or what precedes the names.

    Returns:
        Dict from the file's own names to `Tensor`s. HDF5 datasets are named by their path.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, truncated, of another kind, or would run code, or has
            no such `checkpoint_key`.

    Example:

    ```python
    from keras_sam import converters

    tensors = converters.read_checkpoint("sam_vit_b_01ec64.pth")
    tensors["image_encoder.pos_embed"].shape  # of ViT-B: (1, 64, 64, 768) for ViT-B
    ```
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        raise FileNotFoundError(
            f"The checkpoint must be a file. Received: {path!r}, a folder. Name the file of its "
            "weights, such as model.weights.h5 or model.safetensors; `from_preset` reads folders."
        )
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no checkpoint file at {path!r}.")
    try:
        reader = _reader(path, first_bytes(path))
        if reader is read_torch:
            return read_torch(path, checkpoint_key)
        tensors = reader(path)
        return tensors if checkpoint_key is None else under_key(tensors, checkpoint_key)
    except ValueError as error:
        raise ValueError(f"Cannot read the checkpoint {path!r}. {error}") from error


def first_bytes(path) -> bytes:
    """The start of a file, or a ValueError if it is what people get in place of large files."""
    with open(path, "rb") as file:
        start = file.read(512)
    if start.startswith(b"version https://git-lfs"):
        size = re.search(rb"\nsize (\d+)", start)
        size = f" of {size.group(1).decode()} bytes" if size else ""
        raise ValueError(
            f"It is a Git LFS pointer to a file{size}, not that file. Get the file with "
            "`git lfs pull` in its repository, or by the repository's download link."
        )
    if re.match(rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml|!--)", start):
        raise ValueError(
            "It is a web page, as servers send it in place of a file that needs a login or a "
            "confirmation. Download the file in a browser."
        )
    return start


def _reader(path, start):
    if path.endswith(".json"):
        return read_sharded_safetensors
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return read_hdf5
    if start.startswith(b"PK"):
        return read_keras if _has_member(path, "model.weights.h5") else read_torch
    if len(start) > 8 and start[8:9] == b"{":
        return read_safetensors
    if path.endswith((".safetensors", ".h5", ".keras")):
        kind = {"s": read_safetensors, "h": read_hdf5, "k": read_keras}
        return kind[path.rsplit(".", 1)[1][0]]
    return read_torch


def _has_member(path, name):
    try:
        with zipfile.ZipFile(path) as archive:
            return name in archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
        return path.endswith(".keras")


def read_safetensors(path) -> dict[str, Tensor]:
    """Reads a `.safetensors` file; see `read_checkpoint`."""
    header, begin = _safetensors_header(path)
    data = map_file(path)[begin:]
    header.pop("__metadata__", None)
    return {name: _safetensor(name, entry, data) for name, entry in header.items()}


def _safetensors_header(path):
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
        if length > min(_MAX_HEADER_BYTES, size - 8):
            raise ValueError("The file is truncated, or not a safetensors file.")
        try:
            text = file.read(length).decode("utf-8")
            header = json.loads(text, object_pairs_hook=_without_repeats)
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"Its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise ValueError("Its header is not a table of tensors.")
    return header, 8 + length


def _without_repeats(pairs):
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("Its header names a tensor twice.")
    return table


def _safetensor(name, entry, data):
    try:
        kind, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"Its header's entry for {name!r} is incomplete.") from error
    if kind not in _SAFETENSORS_TYPES:
        raise ValueError(f"Its tensor {name!r} has type {kind!r}, which is not supported.")
    dtype = np.dtype(_SAFETENSORS_TYPES[kind])
    if any(type(n) is not int or n < 0 for n in (*shape, begin, end)):
        raise ValueError(f"Its header gives {name!r} impossible sizes.")
    if end > len(data) or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(
            f"Its header says that {name!r} of shape {shape} lies at bytes {begin} to {end} of "
            f"{len(data)}, which cannot be right: the file is truncated or damaged."
        )

    def read():
        values = data[begin:end].view(dtype).reshape(shape)
        return widen_bfloat16(values) if kind == "BF16" else values

    return Tensor(shape, "f4" if kind == "BF16" else dtype, read)


def read_sharded_safetensors(path) -> dict[str, Tensor]:
    """Reads the shards that a `.safetensors.index.json` names; see `read_checkpoint`."""
    with open(path, encoding="utf-8") as file:
        index = json.load(file)
    tensors = {}
    for shard in shard_names(index):
        place = os.path.join(os.path.dirname(path), shard)
        if not os.path.isfile(place):
            raise ValueError(f"Its shard {shard!r} is missing.")
        inside = read_safetensors(place)
        wanted = {name for name, file in index["weight_map"].items() if file == shard}
        if wanted - inside.keys():
            missing = ", ".join(sorted(wanted - inside.keys()))
            raise ValueError(f"Its shard {shard!r} lacks the tensors {missing}.")
        tensors.update((name, inside[name]) for name in wanted)
    return tensors


def shard_names(index: dict) -> list[str]:
    """The files that a safetensors index names, all of them in its own folder.

    Raises:
        ValueError: if it is not such an index, or names a file elsewhere.
    """
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict):
        raise ValueError("It is not an index of safetensors files.")
    for shard in weight_map.values():
        if not isinstance(shard, str) or os.path.basename(shard) != shard or "\\" in shard:
            raise ValueError(f"Its index names a file in another folder: {shard!r}.")
    return sorted(set(weight_map.values()))


def read_hdf5(path) -> dict[str, Tensor]:
    """Reads an HDF5 file; see `read_checkpoint`."""
    return _read_mapped_hdf5(map_file(path))


def _read_mapped_hdf5(data):
    h5py = import_h5py()

    try:
        root = h5py.File(_Window(data), "r")
        tensors = {}
        # Visits hard links only, so a link to another file is never followed.
        root.visititems(lambda name, entry: _collect_dataset(tensors, name, entry, data))
    except (OSError, RuntimeError, KeyError) as error:
        raise ValueError(f"The file is truncated or damaged: {error}") from error
    return tensors


def _collect_dataset(tensors, name, entry, data):
    h5py = import_h5py()

    bfloat16 = isinstance(entry, h5py.Dataset) and entry.attrs.get("dtype") == "bfloat16"
    if not isinstance(entry, h5py.Dataset) or not (bfloat16 or entry.dtype.kind in "fiub"):
        return
    if entry.external or entry.is_virtual:
        raise ValueError(f"Its dataset {name!r} takes its values from another file.")
    if entry.chunks is not None:
        # Chunks may be compressed: a few bytes could expand to any size.
        raise ValueError(f"Its dataset {name!r} is in chunks, which Keras never writes.")

    def read():
        begin = entry.id.get_offset()
        if begin is None:  # empty, or so small that it lies in the header
            values = entry[()]
        elif begin + entry.nbytes > len(data):
            raise ValueError(f"Its dataset {name!r} is truncated or damaged.")
        else:
            values = data[begin : begin + entry.nbytes].view(entry.dtype).reshape(entry.shape)
        return widen_bfloat16(np.asarray(values).view("<u2")) if bfloat16 else values

    tensors[name] = Tensor(entry.shape, "f4" if bfloat16 else entry.dtype, read)


def read_keras(path) -> dict[str, Tensor]:
    """Reads the weights in a `.keras` file; see `read_checkpoint`."""
    try:
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo("model.weights.h5")
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise ValueError(f"The file is truncated or damaged: {error}") from error
    return _read_mapped_hdf5(zip_member(map_file(path), info))


def read_keras_config(path) -> dict | None:
    """The config in a `.keras` file, or in a `.safetensors` file that we wrote, or None.

    Raises:
        ValueError: if the config is damaged.
    """
    with open(path, "rb") as file:
        start = file.read(9)
    if not start.startswith(b"PK") and start[8:] == b"{":
        return _safetensors_config(path)
    if not start.startswith(b"PK") or not _has_member(path, "model.weights.h5"):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo("config.json").file_size > _MAX_HEADER_BYTES:
                raise ValueError("Its config is too large.")
            return json.loads(archive.read("config.json"))
    except (zipfile.BadZipFile, KeyError, OSError, RecursionError, ValueError) as error:
        raise ValueError(f"Cannot read the config of {os.fspath(path)!r}: {error}") from error


def _safetensors_config(path):
    try:
        metadata = _safetensors_header(path)[0].get("__metadata__")
        text = metadata.get(CONFIG_KEY) if isinstance(metadata, dict) else None
        return None if text is None else json.loads(text)
    except (RecursionError, TypeError, ValueError):
        return None  # `read_checkpoint` says what is wrong with the file


class _Window(io.RawIOBase):
    """Bytes of a mapped file as a file of their own, which HDF5 can read in place."""

    def __init__(self, data):
        self._data = memoryview(data)
        self._position = 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=os.SEEK_SET):
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: len(self._data)}[whence]
        self._position = base + offset
        return self._position

    def tell(self):
        return self._position

    def readinto(self, buffer):
        part = self._data[self._position :][: len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)
