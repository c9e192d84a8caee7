"""Notices: what is said once about a choice that was made for the user."""

import warnings

_given: set[str] = set()


def notice(text: str, topic: str | None = None, stacklevel: int = 2) -> None:
    """Warns once per process, so that a loop over a folder does not say it for every image.

    Args:
        text: one sentence on what was chosen and how to choose otherwise.
        topic: optional. What counts as the same notice, where the text holds values of one
            image. Defaults to the text.
        stacklevel: as in `warnings.warn`, counted from the caller.
    """
    topic = topic or text
    if topic not in _given:
        _given.add(topic)
        warnings.warn(text, stacklevel=stacklevel + 1)
