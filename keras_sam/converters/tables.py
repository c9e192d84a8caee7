"""Named tensors, and the tables that turn foreign names and layouts into ours."""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from keras_sam.notices import notice


class Tensor:
    """An array in a file, whose values are read when they are needed.

    So files of gigabytes are converted tensor by tensor, without a second copy of all weights in
    memory. `numpy.asarray(tensor)` reads the values, which may be a view of a memory-mapped file.
    """

    __slots__ = ("dtype", "read", "shape")

    def __init__(self, shape, dtype, read: Callable[[], np.ndarray]):
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self.read = read

    @classmethod
    def of(cls, array) -> "Tensor":
        """Wraps an array, or returns a `Tensor` as it is."""
        if isinstance(array, cls):
            return array
        array = np.asarray(array)
        return cls(array.shape, array.dtype, lambda: array)

    def map(self, function: Callable, shape, dtype=None) -> "Tensor":
        """A tensor whose values are `function(values)`, of the given shape."""
        return Tensor(shape, dtype or self.dtype, lambda: function(self.read()))

    def __array__(self, dtype=None, copy=None):
        values = self.read()
        if copy:
            return np.array(values, dtype=dtype)
        return values if dtype is None else values.astype(dtype, copy=False)

    def __repr__(self):
        return f"Tensor(shape={self.shape}, dtype={self.dtype})"


def widen_bfloat16(words: np.ndarray) -> np.ndarray:
    """The float32 values of bfloat16 numbers, of which numpy has only the bits."""
    return (words.astype("<u4") << 16).view("<f4")


def narrow_bfloat16(values: np.ndarray) -> np.ndarray:
    """The bits, uint16, of the bfloat16 numbers nearest to finite float32 values, ties to even.

    `widen_bfloat16` is the inverse.
    """
    bits = np.ascontiguousarray(values, "float32").view("uint32")
    # Adds half of the last bit that is kept, or one less if that bit is 0: ties go to even.
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("uint16")


def is_average(name: str) -> bool:
    """Whether an entry or a prefix is named like an average of the weights that were trained."""
    return re.search(r"(?i)(?<![a-z])(ema|avg|swa|teacher)|average", name) is not None


def several_models(place: str, taken: str, other: str) -> None:
    """Says which of several models in a file is read, and how to ask for the other."""
    taken = f"the entry {taken!r}" if taken else "the one outside"
    notice(
        f"{place} holds the weights of more than one model, of which {taken} is read. "
        f"Pass `checkpoint_key={other!r}` to read the other."
    )


def under_key(tensors: dict, key: str, entries: Iterable[str] = ()) -> dict:
    """The tensors whose names start with a key, for files without nested dicts."""
    found = {k: v for k, v in tensors.items() if str(k).startswith((f"{key}.", f"{key}/"))}
    if not found:
        first = {re.split("[./]", str(name))[0] for name in tensors}
        known = ", ".join(sorted({*entries} or first)[:10])
        raise ValueError(
            "`checkpoint_key` must be an entry of the file, or what precedes its tensors' names. "
            f"Received: checkpoint_key={key!r}. The file has: {known}."
        )
    return found


class Layout(NamedTuple):
    """An order of axes; transposing by `axes` turns the foreign layout into Keras's."""

    rank: int | None = None
    axes: tuple | None = None

    def to_keras(self, tensor: Tensor) -> Tensor:
        return self._permute(tensor, self.axes)

    def to_foreign(self, tensor: Tensor) -> Tensor:
        inverse = self.axes and tuple(self.axes.index(i) for i in range(self.rank))
        return self._permute(tensor, inverse)

    def _permute(self, tensor, axes):
        if axes is None or len(tensor.shape) != self.rank:
            # A tensor of another rank does not fit, and is reported later with its own shape.
            return tensor
        shape = tuple(tensor.shape[i] for i in axes)
        return tensor.map(lambda values: values.transpose(axes), shape)


SAME = Layout()
LINEAR = Layout(2, (1, 0))  # (out, in) to (in, out)
CONV = Layout(4, (2, 3, 1, 0))  # (out, in, h, w) to (h, w, in, out); also for transposed ones
DEPTHWISE = Layout(4, (2, 3, 0, 1))  # (channels, 1, h, w) to (h, w, channels, 1)


class Row(NamedTuple):
    """One line of a table.

    In both names `{i}`, `{j}` and `{k}` stand for a number. In a foreign name, `{_i}`
    stands for a counter of Keras: nothing for 0, `_1` for 1, and so on.
    """

    foreign: str
    ours: str
    layout: Layout = SAME


def with_prefixes(prefixes: tuple[str, str, str], *rows: tuple) -> list[tuple]:
    """The rows (ours, kind, theirs, others') with a prefix before each of the three names."""
    ours, theirs, others = prefixes
    return [(ours + a, kind, theirs + b, others + c) for a, kind, b, c in rows]


def torch_rows(table: Iterable[tuple[str, str, str]]) -> tuple[Row, ...]:
    """Rows from (our prefix, kind, foreign prefix); the names of kind `tensor` are complete."""
    endings = {
        "dense": ((".weight", "/kernel", LINEAR), (".bias", "/bias", SAME)),
        "conv": ((".weight", "/kernel", CONV), (".bias", "/bias", SAME)),
        "conv_no_bias": ((".weight", "/kernel", CONV),),
        "depthwise": ((".weight", "/kernel", DEPTHWISE),),
        "norm": ((".weight", "/gamma", SAME), (".bias", "/beta", SAME)),
        "batch_norm": (
            (".weight", "/gamma", SAME),
            (".bias", "/beta", SAME),
            (".running_mean", "/moving_mean", SAME),
            (".running_var", "/moving_variance", SAME),
        ),
        "embedding": ((".weight", "", SAME),),
        "tensor": (("", "", SAME),),
    }
    return _expand(table, endings)


def keras_rows(table: Iterable[tuple[str, str, str]]) -> tuple[Row, ...]:
    """`torch_rows` for the paths in Keras weight files, where variables have numbers as names."""
    weights = (("/vars/0", "/kernel", SAME), ("/vars/1", "/bias", SAME))
    endings = {
        "dense": weights,
        "conv": weights,
        "conv_no_bias": weights[:1],
        "norm": (("/vars/0", "/gamma", SAME), ("/vars/1", "/beta", SAME)),
        "batch_norm": tuple(
            (f"/vars/{n}", f"/{name}", SAME)
            for n, name in enumerate(("gamma", "beta", "moving_mean", "moving_variance"))
        ),
        "embedding": (("/vars/0", "", SAME),),
        "tensor": (("", "", SAME),),
    }
    return _expand(table, endings)


def _expand(table, endings):
    return tuple(
        Row(foreign + a, ours + b, layout)
        for ours, kind, foreign in table
        for a, b, layout in endings[kind]
    )


def to_ours(tensors: dict, rows) -> dict[str, Tensor]:
    """A file's tensors under our variable paths, laid out as Keras does.

    A tensor that no row knows keeps its own name.
    """
    patterns = [(_pattern(row.foreign), row) for row in rows]
    arrays = {}
    for name, tensor in tensors.items():
        tensor = Tensor.of(tensor)
        found = _find(patterns, name)
        if found is None:
            arrays[name] = tensor
        else:
            numbers, row = found
            arrays[row.ours.format(**numbers)] = row.layout.to_keras(tensor)
    return arrays


def to_foreign(arrays: dict, rows) -> dict[str, Tensor]:
    """The inverse of `to_ours`; a variable that the table has no name for is an error."""
    patterns = [(_pattern(row.ours), row) for row in rows]
    tensors, unknown = {}, []
    for name, tensor in arrays.items():
        found = _find(patterns, name)
        if found is None:
            unknown.append(name)
            continue
        numbers, row = found
        counters = {f"_{k}": f"_{v}" if int(v) else "" for k, v in numbers.items()}
        foreign = row.foreign.format(**numbers, **counters)
        tensors[foreign] = row.layout.to_foreign(Tensor.of(tensor))
    if unknown:
        raise ValueError(
            "The format to write has no name for these variables: " + ", ".join(sorted(unknown))
        )
    return tensors


def count_matches(names, rows) -> int:
    """How many of the names a table knows."""
    patterns = [(_pattern(row.foreign), row) for row in rows]
    return sum(_find(patterns, name) is not None for name in names)


def _find(patterns, name):
    for pattern, row in patterns:
        match = pattern.fullmatch(name)
        if match:
            numbers = {k.lstrip("n"): v or "0" for k, v in match.groupdict().items()}
            return numbers, row
    return None


def _pattern(template):
    """A regular expression with one named group per placeholder."""
    seen = set()

    def group(match):
        name = match.group(2)
        counter = bool(match.group(1))
        if name in seen:
            return f"(?P=n{name})"
        seen.add(name)
        digits = rf"(?P<n{name}>\d+)"
        return f"(?:_{digits})?" if counter else digits

    escaped = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
    return re.compile(re.sub(r"\{(_?)([ijk])\}", group, escaped))
