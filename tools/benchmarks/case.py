"""A case of the benchmark: its sides, and how a side is left out."""

import dataclasses
import importlib.util
from collections.abc import Callable


class LeftOut(Exception):
    """A side cannot run here, such as a peer that is not installed; the message says why."""


@dataclasses.dataclass(frozen=True)
class Job:
    """The settings of a run, as every side gets them.

    Args:
        backend: str, ours.
        quick: bool. Small models.
        size: str. "base", "large" or "huge"; "quick" with `quick`.
        batch: int. Images that the encoder gets at once.
        folder: str. For files that the sides share.
        keras_hub: optional str. A folder with the package `keras_hub`.
    """

    backend: str
    quick: bool
    size: str
    batch: int
    folder: str
    keras_hub: str | None = None


@dataclasses.dataclass(frozen=True)
class Side:
    """One of those that a case compares.

    Args:
        prepare: function of a dict that returns what is timed: a function, or a dict of them by
            variant. In the dict, a side finds what those before it have put there, ready for
            JSON. What is timed returns a dict of facts about its result; an entry `measured` in
            it replaces what the worker has measured.
        variables: dict. Environment variables of the side's process.
        restart: bool. Ends the process after each repetition: it would keep gigabytes.
    """

    prepare: Callable
    variables: dict[str, str] = dataclasses.field(default_factory=dict)
    restart: bool = False


@dataclasses.dataclass(frozen=True)
class Case:
    """Something that several sides can do.

    Args:
        about: str, for the table.
        sides: dict from a side's name to a `Side`.
        repeats: int. How often each side is timed.
        warmups: int. How often each side runs before it is timed: first runs compile.
        together: bool. False runs one side after the other, each process alone in memory.
        variants: dict. For each variant the number that its time is divided by.
        unit: str. "s" or "ms", and what for: "ms per prompt".
    """

    about: str
    sides: dict[str, Side]
    repeats: int = 5
    warmups: int = 1
    together: bool = True
    variants: dict[str, float] = dataclasses.field(default_factory=lambda: {"": 1})
    unit: str = "s"


def need(*modules: str) -> None:
    """Leaves a side out that needs modules which are not installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise LeftOut(f"not installed: {', '.join(missing)}")
