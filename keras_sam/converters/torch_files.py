"""Reads `.pth` and `.pt` files as named tensors, without torch."""

import math
import mmap
import os
import re
import struct
import zipfile

import numpy as np

from keras_sam.converters.pickles import (
    STORAGE_TYPES,
    Storage,
    StoredArray,
    StoredTensor,
    int_sequence,
    load_pickle,
)
from keras_sam.converters.tables import (
    Tensor,
    is_average,
    several_models,
    under_key,
    widen_bfloat16,
)

# Of tensors, a pickle holds names and sizes: 0.1 MB for ViT-H. Of numpy arrays it holds the values,
# as text of up to 1.5 times their size.
_MAX_PICKLE_BYTES = 4 * 2**30
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
# Keys under which training scripts save the weights, the most common first.
_WRAPPERS = ("model", "state_dict", "model_state", "model_state_dict", "net", "network", "sam")
_CONTAINERS = (dict, list, tuple)
_MAX_DEPTH = 8  # of containers in containers
# Parts of a SAM that are saved as entries of one dict.
_PARTS = {"image_encoder", "prompt_encoder", "mask_decoder"}


def read_torch(path, checkpoint_key: str | None = None) -> dict[str, Tensor]:
    """Reads a file that `torch.save` wrote, zip or older, or a pickle; see `read_checkpoint`.

    A state dict inside other dicts (`{"model": ...}`) is found.
    """
    with open(path, "rb") as file:
        start = file.read(4)
        if os.path.getsize(path) == 0:
            raise ValueError("The file is empty.")
    mapped = map_file(path)
    if start[:2] == b"PK":
        content, storages = _read_zip(path, mapped)
    else:
        content, storages = _read_legacy(path, mapped)
    tensors = {}
    for name, value in _state_dict(content, path, checkpoint_key).items():
        if isinstance(value, StoredTensor):
            tensors[str(name)] = _tensor(str(name), value, storages)
        elif _is_tensor(value):
            tensors[str(name)] = value.tensor(str(name))
    return tensors


def _read_zip(path, mapped):
    """The unpickled content, and a function that returns the bytes of a storage."""
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
        raise ValueError(f"Its pickle of {info.file_size} bytes is too large for a state dict.")
    content = load_pickle(zip_member(mapped, info).tobytes())

    def storage_bytes(storage):
        info = members.get(f"{root}data/{storage.key}")
        if info is None:
            raise ValueError(f"Its storage {storage.key!r} is missing.")
        return zip_member(mapped, info), order

    return content, storage_bytes


def _order(mapped, info):
    return b"little" if info is None else zip_member(mapped, info).tobytes()


def map_file(path: str | os.PathLike) -> np.ndarray:
    """The bytes of a file, memory-mapped."""
    with open(path, "rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def zip_member(mapped: np.ndarray, info: zipfile.ZipInfo) -> np.ndarray:
    """The bytes of a member of a zip archive, as a view of the mapped file."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 0x1:
        # A few compressed bytes could expand to any size.
        raise ValueError(
            f"Its part {info.filename!r} is compressed, which torch and Keras never do."
        )
    header = mapped[info.header_offset : info.header_offset + 30].tobytes()
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise ValueError(f"Its part {info.filename!r} is damaged.")
    start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
    data = mapped[start : start + info.file_size]
    if info.file_size < 0 or len(data) != info.file_size:
        raise ValueError(f"Its part {info.filename!r} is truncated.")
    return data


def _read_legacy(path, mapped):
    """Reads files from before torch 1.6: five pickles, then each storage's size and bytes."""
    with open(path, "rb") as stream:
        try:
            magic = load_pickle(stream)
            if isinstance(magic, dict):  # of numpy arrays, by Python's own pickle
                return magic, None
            if magic != _LEGACY_MAGIC:
                raise ValueError("it does not start with torch's magic number.")
        except ValueError as error:
            raise ValueError(f"The file is not one that `torch.save` wrote: {error}") from error
        if load_pickle(stream) != _LEGACY_PROTOCOL:
            raise ValueError("The file's version of torch's format is unknown.")
        system = load_pickle(stream)
        content = load_pickle(stream)
        keys = load_pickle(stream)
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
        if isinstance(value, StoredTensor):
            value = value.storage
        if isinstance(value, Storage):
            yield value
        elif isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, (list, tuple)):
            waiting.extend(value)


def _state_dict(content, path, checkpoint_key):
    """Finds the dict of tensors in what a training script saved."""
    found = dict(_dicts_of_tensors(content)) if isinstance(content, _CONTAINERS) else {}
    if not found and not isinstance(content, dict):
        raise ValueError(
            "The file holds no dict of tensors. Save one: torch.save(model.state_dict(), path)."
        )
    if not found:
        entries = ", ".join(sorted(map(str, content)))
        raise ValueError(f"The file holds no tensors by name. Its entries are: {entries}.")
    if checkpoint_key is not None:
        named = [k for k in found if checkpoint_key in ("/".join(k), *k[:1], *k[-1:])]
        if named:
            return found[max(named, key=lambda k: _count_tensors(found[k]))]
        return under_key(found[_best(found)[0]], checkpoint_key, ["/".join(k) for k in found if k])
    best, others = _best(found)
    if others:
        several_models(f"The file {os.fspath(path)!r}", "/".join(best), "/".join(others[0]))
    return found[best]


def _best(found):
    """The entry that holds the model, and those with tensors of the same names."""
    most = max(map(_count_tensors, found.values()))
    large = [k for k in found if 2 * _count_tensors(found[k]) >= most]

    def preference(k):
        rank = _WRAPPERS.index(k[-1]) if k and k[-1] in _WRAPPERS else len(_WRAPPERS)
        return is_average("/".join(k)), rank, len(k)

    best = min(large, key=preference)
    wanted = _endings(found[best])
    same = [k for k in large if 2 * len(_endings(found[k]) & wanted) >= len(wanted)]
    return best, [k for k in same if k != best]


def _endings(content):
    return {str(name)[-20:] for name in content}


def _dicts_of_tensors(content):
    """Every dict with tensors, by the keys that lead to it, without the optimizer's."""
    seen, waiting = set(), [((), content)]
    for keys, value in waiting:  # which grows
        if id(value) in seen:
            continue
        seen.add(id(value))
        inner = enumerate(value)
        if isinstance(value, dict):
            if _PARTS & value.keys():
                value = _joined_parts(value)
            if _count_tensors(value):
                yield keys, value
            inner = value.items()
        waiting += [
            ((*keys, str(key)), x)
            for key, x in inner
            if isinstance(x, _CONTAINERS)
            and len(keys) < _MAX_DEPTH
            and not re.search("optim|sched", str(key))
        ]


def _joined_parts(content):
    """The dicts of SAM's parts as one, with their names in front."""
    joined = {k: v for k, v in content.items() if k not in _PARTS or not isinstance(v, dict)}
    for part in sorted(content.keys() - joined.keys()):
        joined.update((f"{part}.{name}", value) for name, value in content[part].items())
    return joined


def _count_tensors(content):
    return sum(map(_is_tensor, content.values()))


def _is_tensor(value):
    return isinstance(value, StoredTensor) or (isinstance(value, StoredArray) and value.is_numeric)


def _storage_dtype(type_name, order):
    kind = STORAGE_TYPES.get(type_name)
    if kind is None:
        raise ValueError(f"Its storages of type {type_name} are not supported.")
    return np.dtype(order + ("u2" if kind == "bfloat16" else kind))


def _tensor(name, stored, storages):
    storage = stored.storage
    if not isinstance(storage, Storage):
        raise ValueError(f"Its tensor {name!r} has no storage.")
    data, order = storages(storage)
    dtype = _storage_dtype(storage.type_name, order)
    capacity = len(data) // dtype.itemsize
    numbers = (
        storage.size,
        stored.offset,
        *int_sequence(stored.shape),
        *int_sequence(stored.strides),
    )
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
    size = math.prod(shape)
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
