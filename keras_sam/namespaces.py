"""Modules whose public names are imported when they are first used."""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType


def import_with_keras(module: str, name: str) -> ModuleType:
    """A module that may need Keras, or an ImportError that says how `name` can be had."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != "keras":
            raise
        raise ImportError(
            f'`{name}` needs Keras: pip install "keras-sam[jax]" (or [torch], [tensorflow], '
            "[openvino])."
        ) from error


def lazy_names(
    module: dict, homes: Mapping[str, str], submodules: Sequence[str] = ()
) -> tuple[list[str], Callable, Callable]:
    """The `__all__`, `__getattr__` and `__dir__` of a module that imports its names lazily.

    Args:
        module: dict. The `globals()` of the module.
        homes: dict from public names to the modules that define them.
        submodules: sequence of str. Public modules inside this one.
    """
    package = module["__name__"]
    public = sorted([*homes, *submodules])

    def get(name):
        if name in homes:
            value = getattr(import_with_keras(homes[name], name), name)
        elif name in submodules:
            value = import_with_keras(f"{package}.{name}", f"{package}.{name}")
        else:
            # With these, Python names the nearest of `__dir__` below the traceback.
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package]
            )
        module[name] = value
        return value

    return public, get, lambda: public
