"""Warnings at the line of the user's code, and notices: what is said once about a choice that was
made for the user.
"""

import sys
import warnings
from types import FrameType

# Whose lines say nothing to a user: they lie between our code and a thread of its own.
_NOT_THE_USERS = (
    "concurrent",
    "jax",
    "keras",
    "multiprocessing",
    "tensorflow",
    "threading",
    "torch",
)

_given: set[str] = set()


def notice(text: str, topic: str | None = None) -> None:
    """Warns once per process, so that a loop over a folder does not say it for every image.

    Args:
        text: one sentence on what was chosen and how to choose otherwise.
        topic: optional. What counts as the same notice, where the text holds values of one
            image. Defaults to the text.
    """
    topic = topic or text
    if topic not in _given:
        _given.add(topic)
        warn(text)


def warn(text: str) -> None:
    """Warns at the line that called this package, however deep inside the package this is.

    In a thread that data are read in, there is no such line, and none is shown.
    """
    frame = _callers_frame()
    if frame is None:
        warnings.warn_explicit(text, UserWarning, "keras_sam", 0)
        return
    names = frame.f_globals
    warnings.warn_explicit(
        text,
        UserWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        names.get("__name__"),
        names.setdefault("__warningregistry__", {}),
    )


def _callers_frame() -> FrameType | None:
    """The frame that called the outermost function of this package on the stack."""
    frame, found = sys._getframe(1), None
    while frame is not None:
        if _package_of(frame) == "keras_sam":
            found = frame.f_back
        frame = frame.f_back
    return None if found is None or _package_of(found) in _NOT_THE_USERS else found


def _package_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]
