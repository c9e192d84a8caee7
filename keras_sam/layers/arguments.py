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


class KeptArguments:
    """Constructor arguments as attributes of the same names, and the `get_config` made of them.

    The constructor of a class that lists this among its bases calls `keep_arguments(locals())`.
    A subclass of that class extends `get_config` for arguments of its own, as in any layer.
    """

    _arguments: tuple[str, ...]

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if KeptArguments in cls.__bases__:
            parameters = inspect.signature(cls.__init__).parameters.values()
            names = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
            # `name` and `dtype` are Keras's to keep.
            cls._arguments = tuple(n for n in names if n not in ("self", "name", "dtype"))

    def keep_arguments(self, values: dict[str, Any]) -> None:
        """Sets the attributes from the constructor's `locals()`, activations as functions."""
        for name in self._arguments:
            value = values[name]
            is_activation = name.endswith("activation")
            setattr(self, name, keras.activations.get(value) if is_activation else value)

    def get_config(self) -> dict[str, Any]:
        own = {name: _serialized(getattr(self, name)) for name in self._arguments}
        return {**super().get_config(), **own}


def _serialized(value):
    if isinstance(value, keras.layers.Layer):
        return keras.layers.serialize(value)
    return keras.activations.serialize(value) if callable(value) else value
