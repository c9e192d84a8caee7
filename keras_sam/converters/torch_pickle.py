"""Reads the pickles that `torch.save` writes, by interpreting their opcodes: no code is run.

Python's own unpickler imports and calls whatever a file names. Here a name stays a name:
a handful of known ones have a meaning, a few more are known to be harmless and become
`Inert`, and any other makes the file be refused.
"""

import dataclasses
import pickletools
from typing import Any, NamedTuple

# Opcodes by the way they act on the stack; what is missing here is refused.
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

# Storage classes of torch and the numpy type of what they store; bfloat16 has none.
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

# What training scripts leave beside the weights: read over, never made.
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


class Global(NamedTuple):
    """A name that a pickle asked for; nothing is imported."""

    module: str
    name: str

    def __str__(self):
        return f"{self.module}.{self.name}"


@dataclasses.dataclass(eq=False)
class Inert:
    """Stands for an object that has no meaning for weights."""

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


def load(stream):
    """Interprets one pickle.

    Args:
        stream: bytes, or a binary file at the start of a pickle; it is left after its end.

    Returns:
        What the pickle describes, made of dicts, lists, tuples, strings, numbers,
        `StoredTensor` and `Inert`.

    Raises:
        ValueError: if the pickle is damaged, or names anything but tensors and the few
            harmless classes that training scripts leave beside them.
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
            raise ValueError("The pickle is damaged: it takes more than it has given.")
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
        # The state of an ordered dict is its `_metadata`, which weights do not need.
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
        f"The file asks to import `{module}.{name}`, which weights have no use for, and might "
        "run code. If you trust it, load it with torch and save the state dict alone: "
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
    """`("storage", type, key, location, size)`, in old files with a view as sixth entry."""
    if not isinstance(persistent_id, tuple) or len(persistent_id) not in (5, 6):
        raise ValueError("The pickle refers to something that is not a storage.")
    kind, storage_type, key, _, size = persistent_id[:5]
    if kind != "storage" or not isinstance(storage_type, Global) or not isinstance(key, str):
        raise ValueError(f"The pickle refers to a {kind!r}, not to a storage.")
    if len(persistent_id) == 6 and persistent_id[5] is not None:
        raise ValueError("The pickle refers to a view of a storage, which is not supported.")
    return Storage(storage_type.name, key, size)
