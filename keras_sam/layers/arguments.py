"""What constructors and calls of layers take: names for the types, and configs made of them."""

import inspect
from collections.abc import Callable
from typing import Any

import keras

# A tensor of the running backend, a `keras.KerasTensor`, or a numpy array, which Keras converts.
Tensor = Any
Shape = tuple[int | None, ...]
Activation = str | Callable[[Tensor], Tensor]
DType = str | keras.DTypePolicy | None


class ConfigFromArguments:
    """Gives a class the `get_config` that all layers need: its constructor's arguments.

    The class keeps each argument as an attribute of the same name. A subclass that renames or
    adds arguments extends `get_config` itself, as with any other layer.
    """

    _arguments: tuple[str, ...]

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if ConfigFromArguments in cls.__bases__:
            parameters = inspect.signature(cls.__init__).parameters.values()
            named = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
            cls._arguments = tuple(named[1:])  # without `self`

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()  # has `name` and `dtype` in the form that Keras wants
        own = {name: getattr(self, name) for name in self._arguments if name not in config}
        return {**config, **{name: _serialized(value) for name, value in own.items()}}


def _serialized(value):
    if isinstance(value, keras.layers.Layer):
        return keras.layers.serialize(value)
    return keras.activations.serialize(value) if callable(value) else value
