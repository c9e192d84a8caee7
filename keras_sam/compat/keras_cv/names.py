"""How KerasCV's names of arguments become ours."""

from operator import attrgetter
from typing import Any

import keras

register = keras.saving.register_keras_serializable(package="keras_sam.compat.keras_cv")


def renamed(values: dict, names: dict) -> dict:
    """The dict with the keys that `names` maps replaced by what it maps them to."""
    return {names.get(name, name): value for name, value in values.items()}


class KerasCVNames:
    """Before a layer of ours: KerasCV's names for its arguments and attributes, and their order.

    `order` is the constructor's positional arguments in KerasCV's documentation, `names` and
    `call_names` map its names to ours, for the constructor and the call. Configs keep our names,
    by which presets are read and written; `unused` are arguments of KerasCV's that ours does
    without, and that configs keep.
    """

    order = ""
    names: dict[str, str] = {}
    call_names: dict[str, str] = {}
    unused: tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        for theirs, ours in cls.names.items():
            setattr(cls, theirs, property(attrgetter(ours)))

    def __init__(self, *args: Any, **kwargs: Any):
        order = self.order.split()
        given = renamed(dict(zip(order, args, strict=False)), self.names)
        kwargs = renamed(kwargs, self.names)
        if len(args) > len(order) or given.keys() & kwargs.keys():
            raise TypeError(
                f"{type(self).__name__} takes at most {len(order)} positional arguments, each "
                f"argument once: {', '.join(order)}. "
                f"Received: {len(args)} positional arguments and {sorted(kwargs)}."
            )
        super().__init__(**given, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any):
        return super().__call__(*args, **renamed(kwargs, self.call_names))

    def get_config(self):
        return super().get_config() | {name: getattr(self, name) for name in self.unused}
