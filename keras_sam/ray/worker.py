"""The actor of `keras-sam everything --ray`: one model, a photograph per call."""

from __future__ import annotations

from typing import Any

from keras_sam.ray.engine import Everything, File, open_segmenter, reason_of, segment, sha256
from keras_sam.ray.sources import Photo, read_bytes


class Worker:
    """Segments photographs in a process of its own.

    Args:
        options: dict. Arguments of `engine.open_segmenter`.
        parameters: dict. The mask generator's.
    """

    def __init__(self, options: dict[str, Any], parameters: dict[str, Any]):
        self._options, self._parameters = options, parameters

    def version(self) -> str:
        """Of this package; asked for before anything is loaded."""
        from keras_sam import __version__

        return __version__

    def load(self) -> None:
        """Loads the model."""
        self._engine = Everything(open_segmenter(**self._options), self._parameters)

    def segment(self, photo: Photo) -> dict[str, Any]:
        """The row of a photograph, or `{"unchanged": True}` if its hash is the known one."""
        try:
            data = read_bytes(photo.place or photo.path) if photo.data is None else photo.data
        except (OSError, ValueError) as error:
            return {"sha256": None, "error": reason_of(error)}
        image = File(data, photo.name)
        if photo.known is not None and sha256(image) == photo.known:
            return {"unchanged": True}
        return segment(self._engine, image)
