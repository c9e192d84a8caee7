"""Reads `.pth` and `.pt` files as named tensors, without torch.

Python's own unpickler imports and calls whatever a file names. Here the opcodes are interpreted
instead, and no code is run: a few names have a meaning, some more are known to be harmless and
become `Inert`, and a file with any other name is refused.
"""

import dataclasses
import math
import mmap
import os
import pickletools
import struct
import zipfile
from typing import Any, NamedTuple

import numpy as np

from keras_sam.converters.tables import Tensor, widen_bfloat16

# ViT-H's pickle has 0.1 MB, and somewhat more with an optimizer's state and a log.
_MAX_PICKLE_BYTES = 64 * 2**20
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
# Keys under which training scripts save the weights, the most common first.
_WRAPPERS = ("model", "state_dict", "model_state", "model_state_dict", "net", "network", "sam")

# Opcodes by what they do to the stack. Others have a method of `_Machine`, or are refused.
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = (
    {"BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "BINFLOAT", "FLOAT"}
    | {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
    | {"BINSTRING", "SHORT_BINSTRING", "STRING"}
)
_STARTS = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_SILENT = {"PROTO", "FRAME"}

# torch's storage classes and the numpy types of their values; numpy has none for bfloat16.
STORAGE_TYPES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}

# What training scripts save besides the weights. It is skipped, and never created.
_INERT = {
    "argparse.Namespace",
    "builtins.set",
    "__builtin__.set",
    "_codecs.encode",
    "collections.Counter",
    "collections.defaultdict",
    "datetime.datetime",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "torch.Size",
    "torch.device",
    "torch.dtype",
    *(f"torch.{name}" for name in ("float16", "bfloat16", "float32", "float64")),
    *(f"torch.{name}" for name in ("uint8", "int8", "int16", "int32", "int64", "bool")),
}


def read_torch(path) -> dict[str, Tensor]:
    """Reads a file that `torch.save` wrote, zip or older; see `read_checkpoint`.

    A state dict inside another dict (`{"model": ...}`) is unwrapped.
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
    for name, value in _state_dict(content).items():
        if isinstance(value, StoredTensor):
            tensors[str(name)] = _tensor(str(name), value, storages)
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
            if load_pickle(stream) != _LEGACY_MAGIC:
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


def _state_dict(content):
    """Finds the dict of tensors in what a training script saved."""
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
    return sum(isinstance(value, StoredTensor) for value in content.values())


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


def _ints(sizes):
    return sizes if isinstance(sizes, (tuple, list)) else (None,)


class Global(NamedTuple):
    """A name in a pickle; nothing is imported for it."""

    module: str
    name: str

    def __str__(self):
        return f"{self.module}.{self.name}"


@dataclasses.dataclass(eq=False)
class Inert:
    """Stands for an object that weights do not depend on."""

    kind: str


@dataclasses.dataclass(eq=False)
class StoredTensor:
    """A tensor as the pickle declares it; nothing in it has been checked yet."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any


class Storage(NamedTuple):
    """A storage as the pickle declares it."""

    type_name: str
    key: str
    size: Any


def load_pickle(stream):
    """What a pickle describes: dicts, lists, strings, numbers, `StoredTensor`s and `Inert`s.

    It is given as bytes, or as a binary file, which is read to the end of the pickle.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.step(opcode.name, argument)
    except (IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"The pickle is damaged: {type(error).__name__}: {error}") from error
    raise ValueError("The pickle is damaged: it has no end.")


class _Machine:
    """The pickle machine's stack, marks and memo, for the opcodes that state dicts use."""

    def __init__(self):
        self.stack = []
        self.marks = []
        self.memo = {}

    def step(self, name, argument):
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _STARTS:
            self.stack.append(_STARTS[name]())
        elif name in _TUPLES:
            self.stack.append(tuple(self._take(_TUPLES[name])))
        elif name in _PUTS:
            self.memo[argument] = self.stack[-1]
        elif name in _GETS:
            self.stack.append(self.memo[argument])
        elif name not in _SILENT:
            handler = getattr(self, f"_{name.lower()}", None)
            if handler is None:
                raise ValueError(f"The pickle uses {name}, which no state dict needs.")
            handler(argument)

    def _take(self, count):
        if len(self.stack) < count:
            raise ValueError("The pickle is damaged: it takes more values than there are.")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def _take_marked(self):
        return self._take(len(self.stack) - self.marks.pop())

    def _mark(self, _):
        self.marks.append(len(self.stack))

    def _memoize(self, _):
        self.memo[len(self.memo)] = self.stack[-1]

    def _pop(self, _):
        self.stack.pop()

    def _tuple(self, _):
        self.stack.append(tuple(self._take_marked()))

    def _list(self, _):
        self.stack.append(self._take_marked())

    def _dict(self, _):
        items = self._take_marked()
        self.stack.append(dict(zip(items[::2], items[1::2], strict=True)))

    def _append(self, _):
        (item,) = self._take(1)
        self._extend([item])

    def _appends(self, _):
        self._extend(self._take_marked())

    _additems = _appends

    def _extend(self, items):
        if not isinstance(self.stack[-1], Inert):
            list.extend(self.stack[-1], items)

    def _setitem(self, _):
        self._update(self._take(2))

    def _setitems(self, _):
        self._update(self._take_marked())

    def _update(self, items):
        if not isinstance(self.stack[-1], Inert):
            dict.update(self.stack[-1], zip(items[::2], items[1::2], strict=True))

    def _global(self, argument):
        self.stack.append(_known(*argument.split(" ", 1)))

    def _stack_global(self, _):
        self.stack.append(_known(*self._take(2)))

    def _reduce(self, _):
        function, arguments = self._take(2)
        self.stack.append(_call(function, arguments))

    _newobj = _reduce

    def _build(self, _):
        # The state of an ordered dict is torch's `_metadata`, which is not needed.
        self._take(1)
        if not isinstance(self.stack[-1], (dict, Inert)):
            raise ValueError("The pickle sets the state of something that has none.")

    def _binpersid(self, _):
        (persistent_id,) = self._take(1)
        self.stack.append(_storage(persistent_id))


_REBUILD = {
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
}


def _known(module, name):
    known = Global(module, name)
    if str(known) in _INERT | _REBUILD | {"collections.OrderedDict"}:
        return known
    if module in ("torch", "torch.storage") and name in (*STORAGE_TYPES, "UntypedStorage"):
        return known
    raise ValueError(
        f"The file would import `{module}.{name}`, which weights do not need and which might run "
        "code. If you trust it, load it with torch and save the state dict alone: "
        "torch.save(model.state_dict(), path)."
    )


def _call(function, arguments):
    if not isinstance(function, Global) or not isinstance(arguments, tuple):
        raise ValueError("The pickle calls something that is not a function.")
    name = str(function)
    if name == "collections.OrderedDict":
        return dict(*arguments)
    if name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
        return StoredTensor(*arguments[:4])
    if name in _REBUILD:
        return arguments[0]
    return Inert(name)


def _storage(persistent_id):
    """Reads `("storage", type, key, location, size)`; old files add a view as a sixth entry."""
    if not isinstance(persistent_id, tuple) or len(persistent_id) not in (5, 6):
        raise ValueError("The pickle refers to something that is not a storage.")
    kind, storage_type, key, _, size = persistent_id[:5]
    if kind != "storage" or not isinstance(storage_type, Global) or not isinstance(key, str):
        raise ValueError(f"The pickle refers to a {kind!r}, not to a storage.")
    if len(persistent_id) == 6 and persistent_id[5] is not None:
        raise ValueError("The pickle refers to a view of a storage, which is not supported.")
    return Storage(storage_type.name, key, size)
