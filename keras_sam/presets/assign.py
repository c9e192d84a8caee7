"""Gives a model's variables their values: all of them, or none and one error."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np

from keras_sam.converters import Tensor, looks_like

_SHOWN = 40  # names per list in the error


def assign(
    variables: Iterable, arrays: dict, assign_value: Callable, ignore: Iterable[str] = ()
) -> None:
    """Sets every variable to the array of its path.

    Everything is compared before anything is set, so that a file that does not fit leaves
    the model as it was; the error lists all that does not. Values are read one at a time.

    `assign_value(variable, array)` copies the array, which may be in any memory order and a view of
    a file. Arrays whose whole name matches a regular expression in `ignore` may be left over.
    """
    variables = list(variables)
    arrays = {name: Tensor.of(array) for name, array in arrays.items()}
    by_path = {v.path: v for v in variables}
    if len(by_path) < len(variables):
        counts = Counter(v.path for v in variables)
        repeated = sorted(path for path, count in counts.items() if count > 1)
        raise ValueError(f"These paths belong to more than one variable: {', '.join(repeated)}.")
    extra = {
        name
        for name in arrays.keys() - by_path.keys()
        if not any(re.fullmatch(pattern, name) for pattern in ignore)
    }
    problems = {
        "Missing, not in the file": sorted(by_path.keys() - arrays.keys()),
        "Unexpected, not in the model": sorted(extra),
        "Of another shape or type": sorted(
            f"{path} (file {_kind(arrays[path])}, model {tuple(variable.shape)})"
            for path, variable in by_path.items()
            if path in arrays and not _fits(variable, arrays[path])
        ),
    }
    if any(problems.values()):
        raise ValueError(_message(problems, arrays))
    # Variables of one size in a row, the largest first: each value then fits into the memory that
    # the one before it has freed. In another order TensorFlow's allocator leaves large holes.
    for path, variable in sorted(by_path.items(), key=lambda item: -math.prod(item[1].shape)):
        assign_value(variable, np.asarray(arrays[path]))


def _fits(variable, tensor):
    return tuple(variable.shape) == tensor.shape and tensor.dtype.kind == "f"


def _kind(tensor):
    return f"{tensor.shape}" if tensor.dtype.kind == "f" else f"{tensor.shape} of {tensor.dtype}"


def _message(problems, arrays):
    lines = ["The weights do not fit the model; nothing was loaded."]
    for title, names in problems.items():
        shown = names[:_SHOWN] + ([f"and {len(names) - _SHOWN} more"] if names[_SHOWN:] else [])
        lines.append(f"{title} ({len(names)}): {', '.join(shown) or 'none'}.")
    lines.append(looks_like(arrays))
    return "\n".join(line for line in lines if line)
