"""Gives a model's variables their values: all of them, or none and one error."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np

from keras_sam.converters import Tensor, looks_like, part_of

_FREQUENCIES = "prompt_encoder/positional_embedding/gaussian_matrix"
_SHOWN = 40  # names per list in the error


def assign(
    variables: Iterable,
    arrays: dict,
    assign_value: Callable,
    ignore: Iterable[str] = (),
    keep: Iterable[str] = (),
) -> None:
    """Sets every variable to the array of its path.

    Everything is compared before anything is set, so that a file that does not fit leaves
    the model as it was; the error lists all that does not. Values are read one at a time.

    `assign_value(variable, array)` copies the array, which may be in any memory order and a view of
    a file. Arrays whose whole name matches a regular expression in `ignore` may be left over;
    variables whose path matches one in `keep` may be missing, and stay as they are.
    """
    variables = list(variables)
    arrays = {name: Tensor.of(array) for name, array in arrays.items()}
    by_path = {v.path: v for v in variables}
    if len(by_path) < len(variables):
        counts = Counter(v.path for v in variables)
        repeated = sorted(path for path, count in counts.items() if count > 1)
        raise ValueError(f"These paths belong to more than one variable: {', '.join(repeated)}.")
    missing = by_path.keys() - arrays.keys()
    problems = {
        "Missing, not in the file": sorted(without_matches(missing, keep)),
        "Unexpected, not in the model": sorted(without_matches(arrays.keys() - by_path, ignore)),
        "Of another shape or type": sorted(
            f"{path} (file {_kind(arrays[path])}, model {tuple(variable.shape)})"
            for path, variable in by_path.items()
            if path in arrays and not _fits(variable, arrays[path])
        ),
    }
    if any(problems.values()):
        raise ValueError(_message(problems, arrays, by_path))
    by_path = {path: variable for path, variable in by_path.items() if path in arrays}
    broken = sorted(path for path in by_path if not np.isfinite(arrays[path]).all())
    if broken:
        raise ValueError(
            "The weights are not all finite numbers, as after a training that diverged; nothing "
            f"was loaded. NaN or infinite ({len(broken)}): {_shortened(broken)}."
        )
    # Variables of one size in a row, the largest first: each value then fits into the memory that
    # the one before it has freed. In another order TensorFlow's allocator leaves large holes.
    for path, variable in sorted(by_path.items(), key=lambda item: -math.prod(item[1].shape)):
        assign_value(variable, np.asarray(arrays[path]))


def without_matches(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The names that match none of the regular expressions as a whole."""
    patterns = [re.compile(pattern) for pattern in patterns]
    return [name for name in names if not any(p.fullmatch(name) for p in patterns)]


def _fits(variable, tensor):
    return tuple(variable.shape) == tensor.shape and tensor.dtype.kind == "f"


def _kind(tensor):
    return f"{tensor.shape}" if tensor.dtype.kind == "f" else f"{tensor.shape} of {tensor.dtype}"


def _message(problems, arrays, by_path):
    lines = ["The weights do not fit the model; nothing was loaded."]
    for title, names in problems.items():
        lines.append(f"{title} ({len(names)}): {_shortened(names) or 'none'}.")
    if looks_like(arrays) != looks_like(by_path):
        lines.append(looks_like(arrays))
    missing, unexpected, misshapen = problems.values()
    parts = {part_of(name) for name in arrays} - {None}
    lacking = {part_of(name) for name in missing} - {None, *parts}
    if misshapen:
        pass
    elif parts and lacking:
        held = sorted(parts)
        each = " and ".join(f"`part={part!r}`" for part in held)
        lines.append(
            f"The file holds {' and '.join(f'`{part}`' for part in held)} alone. Load it with "
            f"`segmenter.load_checkpoint(path, part=...)`, {each}: the rest stays as it is."
        )
    elif _FREQUENCIES in missing:
        lines.append(
            f"`{_FREQUENCIES}` holds the frozen frequencies of SAM's positions, which no file of "
            "the parameters alone has. Load the model that was trained, and then this file with "
            f'`segmenter.load_checkpoint(path, keep=["{_FREQUENCIES}"])`.'
        )
    elif unexpected and not missing:
        head = re.escape(unexpected[0].partition(".")[0])
        lines.append(
            "Heads that were trained together with the model are left out with `ignore=`, an "
            f'argument of `from_preset` and `load_checkpoint`: ignore=r"{head}.*", for instance.'
        )
    return "\n".join(line for line in lines if line)


def _shortened(names):
    more = [f"and {len(names) - _SHOWN} more"] if names[_SHOWN:] else []
    return ", ".join(names[:_SHOWN] + more)
