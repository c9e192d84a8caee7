"""What frameworks have and do not promise: any of it may be missing in their next version.

Every such name is looked up here. Where it is missing, public functions give the same numbers.
"""

import collections
import importlib
from collections.abc import Iterator
from typing import Any

import keras


def look_up(owner: Any, name: str) -> Any:
    """`owner.name`, or None; an owner may be the dotted name of a module, which is imported."""
    try:
        return getattr(importlib.import_module(owner) if isinstance(owner, str) else owner, name)
    except (ImportError, AttributeError):
        return None


def sublayers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """All layers inside a layer, at any depth, in Keras's order."""
    flatten = look_up(layer, "_flatten_layers")
    if flatten is not None:
        return flatten(include_self=False)
    found, waiting = {}, collections.deque(_attribute_layers(layer))
    while waiting:
        part = waiting.popleft()
        if part not in found:
            found[part] = None
            waiting.extendleft(_attribute_layers(part))
    return [*found]


def _attribute_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layers among a layer's attributes, also in lists and dicts."""

    def layers_in(value: Any) -> Iterator[keras.layers.Layer]:
        if isinstance(value, keras.layers.Layer):
            yield value
        elif isinstance(value, dict | list | tuple):
            for item in value.values() if isinstance(value, dict) else value:
                yield from layers_in(item)

    return [*dict.fromkeys(layers_in(vars(layer)))]


def plain_kernel(layer: keras.layers.Layer) -> keras.Variable:
    """The kernel of a layer with LoRA, of which `layer.kernel` is the sum with LoRA's product."""
    return next(variable for variable in layer.variables if variable.name == "kernel")


def has_value(variable: keras.Variable) -> bool:
    """Whether a variable has its value, which Keras's trainer for JAX takes away for a while."""
    return getattr(variable, "_value", variable) is not None


def is_cloning(arguments: dict[str, Any]) -> bool:
    """Whether Keras runs a graph with these arguments for `keras.models.clone_model`."""
    modules = (getattr(value, "__module__", None) for value in arguments.values())
    return "keras.src.models.cloning" in modules


def hook_tables(layer: keras.layers.Layer) -> list[dict | None]:
    """Where torch keeps the hooks that it calls when a layer runs; None where that is unknown."""
    return [look_up(layer, name) for name in ("_forward_hooks", "_forward_pre_hooks")]
