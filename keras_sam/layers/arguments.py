"""What constructors and calls of layers take: names for the types, and configs made of them."""

import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_sam.prompts.nested import to_numpy

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
        """Sets the attributes, activations as functions.

        Args:
            values: dict. The constructor's `locals()`, where it may have normalised arguments.
        """
        for name in self._arguments:
            value = values[name]
            is_activation = name.endswith("activation")
            setattr(self, name, keras.activations.get(value) if is_activation else value)

    def get_config(self) -> dict[str, Any]:
        own = {name: _serialized(getattr(self, name)) for name in self._arguments}
        return {**super().get_config(), **own}


def of_one_kind(values: Any) -> Any:
    """Values of a call as Keras takes them: no lists, and only arrays or only tensors in a dict.

    Args:
        values: dict of arrays, tensors and nested lists. Anything else is returned as it is.

    Returns:
        Dict of arrays, or of tensors if one of the values is a tensor.
    """
    if not isinstance(values, dict):
        return values
    values = {k: to_numpy(v) if isinstance(v, (list, tuple)) else v for k, v in values.items()}
    if not any(ops.is_tensor(v) for v in values.values()):
        return values
    dtypes = {"float64": "float32", "int64": "int32"}  # as Keras converts arrays
    return {
        k: ops.convert_to_tensor(v, dtypes.get(v.dtype.name)) if isinstance(v, np.ndarray) else v
        for k, v in values.items()
    }


def _serialized(value):
    if isinstance(value, keras.layers.Layer):
        return keras.layers.serialize(value)
    return keras.activations.serialize(value) if callable(value) else value
