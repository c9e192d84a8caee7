"""Which Keras backend a process gets whose user named none. Imports no backend, and not Keras."""

import importlib.util
import logging
import os
import sys
from collections.abc import Sequence

# The order in which an installed backend is taken. OpenVINO comes last: it only predicts.
BACKENDS = ("jax", "torch", "tensorflow", "openvino")

_log = logging.getLogger("keras_sam")


def is_installed(package: str) -> bool:
    """Whether a package can be found; it is not imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def first_installed(order: Sequence[str] = BACKENDS) -> str | None:
    """The first that is installed, or None."""
    return next(filter(is_installed, order), None)


def keras_home() -> str:
    """Keras's folder for its settings and downloads, without importing Keras."""
    return os.path.expanduser(os.environ.get("KERAS_HOME") or os.path.join("~", ".keras"))


def choose_backend() -> None:
    """Sets `KERAS_BACKEND` to an installed backend where Keras would ask for TensorFlow in vain.

    Nothing changes where the user has made a choice (`KERAS_BACKEND` or a `keras.json`), where
    Keras is running already, or where TensorFlow, Keras's own default, is installed.
    """
    if os.environ.get("KERAS_BACKEND") or "keras" in sys.modules or is_installed("tensorflow"):
        return
    if os.path.exists(os.path.join(keras_home(), "keras.json")):
        return
    name = first_installed()
    if name is not None:
        os.environ["KERAS_BACKEND"] = name
        _log.info("Keras runs on %s: KERAS_BACKEND is not set, TensorFlow is not installed.", name)
