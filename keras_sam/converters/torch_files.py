"""`.pth` and `.pt` files to named tensors, without torch."""

import mmap
import os
import struct
import zipfile

import numpy as np

from keras_sam.converters import torch_pickle
from keras_sam.converters.tensors import Tensor, widen_bfloat16

# ViT-H's pickle has 0.1 MB; one with an optimiser and a log some more.
_MAX_PICKLE_BYTES = 64 * 2**20
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
# Names that training scripts keep the weights under, the likeliest first.
_WRAPPERS = ("model", "state_dict", "model_state", "model_state_dict", "net", "network", "sam")


def read_torch(path) -> dict[str, Tensor]:
    """Reads a file that `torch.save` wrote, zip or older.

    The file is memory-mapped: a tensor costs memory when its values are used.

    Args:
        path: path of the file.

    Returns:
        Dict from names to tensors. When the file wraps the state dict in another one
        (`{"model": ...}`), the wrapped one is returned.

    Raises:
        ValueError: if the file is damaged, asks for code to be run, or has no tensors.
    """
    with open(path, "rb") as file:
        start = file.read(4)
        if os.path.getsize(path) == 0:
            raise ValueError("The file is empty.")
        mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    if start[:2] == b"PK":
        content, storages = _read_zip(path, mapped)
    else:
        content, storages = _read_legacy(path, mapped)
    tensors = {}
    for name, value in _state_dict(content).items():
        if isinstance(value, torch_pickle.StoredTensor):
            tensors[str(name)] = _tensor(str(name), value, storages)
    return tensors


def _read_zip(path, mapped):
    """The unpickled content, and a function from a storage to its bytes."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error) as error:
        raise ValueError(f"The file is truncated or damaged: {error}") from error
    roots = [name[: -len("data.pkl")] for name in members if name.endswith("/data.pkl")]
    if len(roots) != 1 or roots[0].count("/") != 1:
        raise ValueError("The file is a zip archive, but not one that `torch.save` wrote.")
    (root,) = roots
    if f"{root}constants.pkl" in members:
        raise ValueError(
            "The file is a TorchScript archive, which holds code. "
            "Save the weights alone: torch.save(model.state_dict(), path)."
        )
    order = ">" if _order(mapped, members.get(f"{root}byteorder")) == b"big" else "<"
    info = members[f"{root}data.pkl"]
    if info.file_size > _MAX_PICKLE_BYTES:
        raise ValueError(f"Its pickle of {info.file_size} bytes is no state dict's.")
    content = torch_pickle.load(_member(mapped, info).tobytes())

    def storage_bytes(storage):
        info = members.get(f"{root}data/{storage.key}")
        if info is None:
            raise ValueError(f"Its storage {storage.key!r} is missing.")
        return _member(mapped, info), order

    return content, storage_bytes


def _order(mapped, info):
    return b"little" if info is None else _member(mapped, info).tobytes()


def _member(mapped, info):
    """The bytes of a zip member, as a view of the mapped file."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 0x1:
        # torch stores without compression; a few compressed bytes could claim any size.
        raise ValueError(f"Its part {info.filename!r} is compressed, which torch never does.")
    header = mapped[info.header_offset : info.header_offset + 30].tobytes()
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise ValueError(f"Its part {info.filename!r} is damaged.")
    start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
    data = mapped[start : start + info.file_size]
    if info.file_size < 0 or len(data) != info.file_size:
        raise ValueError(f"Its part {info.filename!r} is truncated.")
    return data


def _read_legacy(path, mapped):
    """Files from before torch 1.6: five pickles, then each storage's size and bytes."""
    with open(path, "rb") as stream:
        try:
            if torch_pickle.load(stream) != _LEGACY_MAGIC:
                raise ValueError("it starts with another number than torch's.")
        except ValueError as error:
            raise ValueError(f"The file is not one that `torch.save` wrote: {error}") from error
        if torch_pickle.load(stream) != _LEGACY_PROTOCOL:
            raise ValueError("The file's version of torch's format is unknown.")
        system = torch_pickle.load(stream)
        content = torch_pickle.load(stream)
        keys = torch_pickle.load(stream)
        position = stream.tell()
    order = "<" if system.get("little_endian", True) else ">"
    types = {s.key: s.type_name for s in _storages(content)}
    places = {}
    for key in keys:
        dtype = _storage_dtype(types.get(key, "FloatStorage"), order)
        count = mapped[position : position + 8].tobytes()
        if len(count) < 8:
            raise ValueError("The file is truncated.")
        (count,) = struct.unpack(order + "q", count)
        end = position + 8 + count * dtype.itemsize
        if count < 0 or end > len(mapped):
            raise ValueError("The file is truncated.")
        places[key] = mapped[position + 8 : end]
        position = end

    def storage_bytes(storage):
        if storage.key not in places:
            raise ValueError(f"Its storage {storage.key!r} is missing.")
        return places[storage.key], order

    return content, storage_bytes


def _storages(content):
    """Every storage in the content, each object visited once."""
    seen, waiting = set(), [content]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch_pickle.StoredTensor):
            value = value.storage
        if isinstance(value, torch_pickle.Storage):
            yield value
        elif isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, (list, tuple)):
            waiting.extend(value)


def _state_dict(content):
    """The dict of tensors in what a training script saved."""
    if not isinstance(content, dict):
        raise ValueError(
            "The file holds no dict of tensors. Save one: torch.save(model.state_dict(), path)."
        )
    if _count_tensors(content):
        return content
    inner = {k: v for k, v in content.items() if isinstance(v, dict) and _count_tensors(v)}
    for name in _WRAPPERS:
        if name in inner:
            return inner[name]
    if not inner:
        raise ValueError(
            "The file holds no tensors by name. "
            f"Its entries are: {', '.join(sorted(map(str, content)))}."
        )
    return max(inner.values(), key=_count_tensors)


def _count_tensors(content):
    return sum(isinstance(value, torch_pickle.StoredTensor) for value in content.values())


def _storage_dtype(type_name, order):
    kind = torch_pickle.STORAGE_TYPES.get(type_name)
    if kind is None:
        raise ValueError(f"Its storages of type {type_name} are not supported.")
    return np.dtype(order + ("u2" if kind == "bfloat16" else kind))


def _tensor(name, stored, storages):
    storage = stored.storage
    if not isinstance(storage, torch_pickle.Storage):
        raise ValueError(f"Its tensor {name!r} has no storage.")
    data, order = storages(storage)
    dtype = _storage_dtype(storage.type_name, order)
    capacity = len(data) // dtype.itemsize
    numbers = (storage.size, stored.offset, *_ints(stored.shape), *_ints(stored.strides))
    if any(type(n) is not int or not 0 <= n < 2**48 for n in numbers):
        raise ValueError(f"Its tensor {name!r} has impossible sizes.")
    if storage.size > capacity:
        raise ValueError(
            f"Its tensor {name!r} is declared to lie in a storage of {storage.size} numbers, "
            f"but the file has {capacity} of them."
        )
    shape, strides = tuple(stored.shape), tuple(stored.strides)
    if len(shape) != len(strides) or len(shape) > 8:
        raise ValueError(f"Its tensor {name!r} has impossible sizes.")
    size = 1
    for n in shape:
        size *= n
    last = stored.offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if size and (last >= storage.size or size > storage.size):
        raise ValueError(
            f"Its tensor {name!r} of shape {shape} and strides {strides} ends outside its storage "
            f"of {storage.size} numbers."
        )
    bfloat16 = storage.type_name == "BFloat16Storage"

    def read():
        if not size:
            return np.zeros(shape, dtype)
        view = np.ndarray(
            shape,
            dtype,
            buffer=data,
            offset=stored.offset * dtype.itemsize,
            strides=[s * dtype.itemsize for s in strides],
        )
        return widen_bfloat16(view) if bfloat16 else view

    return Tensor(shape, "f4" if bfloat16 else dtype, read)


def _ints(sizes):
    return sizes if isinstance(sizes, (tuple, list)) else (None,)
