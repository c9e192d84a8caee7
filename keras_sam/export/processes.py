"""What only another backend can do, done by it: in a process of its own, on the same weights."""

from __future__ import annotations

import builtins
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from keras_sam.backend_choice import is_installed

_CODE = """
import importlib, json, sys
function = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])
function(**json.loads(sys.argv[3]))
"""


def run_with(
    needed: Sequence[str], format: str, model: Any, function: Callable, task: dict[str, Any]
) -> None:
    """Calls `function(model=..., **task)` in a process with the first backend that is installed.

    `model` is a model of ours, or what `from_preset` takes; `function` gets a path or a name.
    `task` is what JSON can hold. Errors are raised as they were there.
    """
    backend = next(filter(is_installed, needed), None)
    if backend is None:
        raise ImportError(
            f"Exporting to {format} needs {needed[0]}, which is not installed: "
            f'pip install "keras-sam[{needed[0]},export]"'
        )
    with tempfile.TemporaryDirectory(prefix="keras_sam_") as place:
        if not isinstance(model, (str, os.PathLike)):
            source = os.path.join(place, "model")
            model.save_to_preset(source)
            model = source
        task = {"model": os.fspath(model), **task}
        task = json.dumps(task, default=lambda x: x.item())  # of numpy's numbers
        ended = subprocess.run(
            [sys.executable, "-c", _CODE, function.__module__, function.__name__, task],
            env={**os.environ, "KERAS_BACKEND": backend, "PYTHONUTF8": "1"},
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
    if ended.returncode:
        lines = ended.stderr.strip().splitlines()
        kind, _, message = (lines[-1] if lines else "").partition(": ")
        error = getattr(builtins, kind, None)
        known = (ValueError, TypeError, ImportError, OSError)
        if not (isinstance(error, type) and issubclass(error, known)) or "Unicode" in kind:
            error = RuntimeError
        raise error(message or f"The export ended with {lines[-5:]}.")
