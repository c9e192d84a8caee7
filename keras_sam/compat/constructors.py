"""Classes of other packages that are constructors of ours."""

from collections.abc import Callable
from typing import Any

import keras


class ConstructsOurs(type(keras.Model)):
    """The metaclass of a class whose `__new__` makes an instance of one of ours, its `makes`.

    `isinstance` then answers as it does in the other package.
    """

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, cls.makes)


class ClassProperty:
    """A property of a class: `SomeClass.name` calls a function of the class."""

    def __init__(self, get: Callable):
        self.get = get

    def __get__(self, instance: Any, owner: type) -> Any:
        return self.get(owner)
