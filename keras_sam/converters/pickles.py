"""Interprets pickles of tensors and arrays, without running anything that they name.

Python's own unpickler imports and calls whatever a file names. Here the opcodes are interpreted
instead, and no code is run: a few names have a meaning, some more are known to be harmless and
become `Inert`, and a file with any other name is refused.
"""

import dataclasses
import math
import pickletools
import re
from typing import Any, NamedTuple

import numpy as np

from keras_sam.converters.tables import Tensor

# Opcodes by what they do to the stack. Others have a method of `_Machine`, or are refused.
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = (
    {"BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT"}
    | {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
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

# What training scripts save besides the weights, by module. It is skipped, and never created.
_INERT_MODULES = {
    "argparse": "Namespace",
    "builtins": "bool bytearray bytes complex dict float frozenset int list long range set slice "
    "str tuple unicode",
    "collections": "deque",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "mmengine.logging.history_buffer": "HistoryBuffer",
    "numpy": "ndarray",
    "numpy.core.multiarray": "scalar",
    "omegaconf.base": "ContainerMetadata Metadata",
    "omegaconf.dictconfig": "DictConfig",
    "omegaconf.listconfig": "ListConfig",
    "omegaconf.nodes": "AnyNode BooleanNode FloatNode IntegerNode StringNode",
    "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "torch": "Size device dtype float16 bfloat16 float32 float64 uint8 int8 int16 int32 int64 bool",
    "torch.torch_version": "TorchVersion",
    "types": "SimpleNamespace",
    "typing": "Any",
    "uuid": "UUID",
}
_INERT = {f"{module}.{name}" for module, names in _INERT_MODULES.items() for name in names.split()}
# Dicts by other names, whose items are read.
_DICTS = {
    "addict.addict.Dict",
    "collections.Counter",
    "collections.OrderedDict",
    "collections.defaultdict",
    "easydict.EasyDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "yacs.config.CfgNode",
}
# Modules that have moved: Python 2's and numpy 2's, and Python 3.13's paths.
_MOVED = {
    "__builtin__": "builtins",
    "numpy._core.multiarray": "numpy.core.multiarray",
    "numpy._core.numeric": "numpy.core.numeric",
    "pathlib._local": "pathlib",
}


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


@dataclasses.dataclass(eq=False)
class NumpyType:
    """A numpy dtype as the pickle declares it, such as `f4`."""

    code: Any
    order: Any = "<"


@dataclasses.dataclass(eq=False)
class StoredArray:
    """A numpy array as the pickle declares it; nothing in it has been checked yet."""

    shape: Any = None
    dtype: Any = None
    fortran: Any = False
    data: Any = None

    @property
    def is_numeric(self):
        code = self.dtype.code if isinstance(self.dtype, NumpyType) else None
        return isinstance(code, str) and re.fullmatch("b1|f[248]|[iu][1248]", code) is not None

    def tensor(self, name):
        order = ">" if self.dtype.order == ">" else "<"
        dtype, shape = np.dtype(order + self.dtype.code), int_sequence(self.shape)
        if any(type(n) is not int or n < 0 for n in shape) or len(shape) > 8:
            raise ValueError(f"Its array {name!r} has impossible sizes.")
        if not isinstance(self.data, (bytes, bytearray)):
            raise ValueError(f"Its array {name!r} has no values.")
        if len(self.data) != math.prod(shape) * dtype.itemsize:
            raise ValueError(
                f"Its array {name!r} of shape {shape} and {dtype} has {len(self.data)} bytes."
            )
        values = np.frombuffer(self.data, dtype).reshape(shape, order="F" if self.fortran else "C")
        return Tensor(shape, dtype, lambda: values)


def int_sequence(sizes):
    """Sizes as they were declared, or what no check accepts."""
    return sizes if isinstance(sizes, (tuple, list)) else (None,)


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

    _frozenset = _tuple

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
        (state,) = self._take(1)
        target = self.stack[-1]
        if isinstance(target, StoredArray):
            _, target.shape, target.dtype, target.fortran, target.data = state
        elif isinstance(target, NumpyType):
            target.order = state[1]
        # The state of an ordered dict is torch's `_metadata`, which is not needed.
        elif not isinstance(target, (dict, Inert)):
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
# What numpy's arrays are made with.
_NUMPY = {
    "_codecs.encode",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.numeric._frombuffer",
    "numpy.dtype",
}


def _known(module, name):
    known = Global(_MOVED.get(module, module), name)
    if str(known) in _INERT | _DICTS | _REBUILD | _NUMPY:
        return known
    if module in ("torch", "torch.storage") and name in (*STORAGE_TYPES, "UntypedStorage"):
        return known
    yolo = "It looks like FastSAM or another YOLO model, which is no SAM. "
    raise ValueError(
        f"The file would import `{module}.{name}`, which weights do not need and which might run "
        f"code. {yolo if module.startswith('ultralytics') else ''}If you trust it, load it with "
        "torch and save the state dict alone: torch.save(model.state_dict(), path)."
    )


def _call(function, arguments):
    if not isinstance(function, Global) or not isinstance(arguments, tuple):
        raise ValueError("The pickle calls something that is not a function.")
    name = str(function)
    if name == "collections.OrderedDict":
        return dict(*arguments)
    if name in _DICTS:  # the first argument may be a factory; items follow
        return {}
    if name == "builtins.bytes" and not arguments:
        return b""
    if name == "_codecs.encode":  # how protocol 2 stores other bytes
        text, encoding = arguments
        return text.encode("latin1") if encoding == "latin1" else Inert(name)
    if name == "numpy.dtype":
        return NumpyType(arguments[0])
    if name == "numpy.core.multiarray._reconstruct":
        return StoredArray()
    if name == "numpy.core.numeric._frombuffer":
        data, dtype, shape, order = arguments
        return StoredArray(shape, dtype, order == "F", data)
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
