"""Embeddings of pictures on disk, within a limit, so that each is encoded once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from pathlib import Path

from keras_sam.encode_decode import EncodesAndDecodes
from keras_sam.files import remove_leftovers
from keras_sam.notices import notice
from keras_sam.predictor import SAMPredictor

_NAMES = r"[0-9a-f]{32}_[0-9a-f]{16}\.safetensors"  # of our files; a user's own may lie there


class EmbeddingCache:
    """A folder of embeddings, of which those that were not used for longest are deleted.

    A file is named by the photograph's content, the model, its precision and its preprocessing:
    what has changed is encoded again. A damaged file counts as missing, and a full disk is no
    error. Files of other names are left alone.

    Args:
        folder: path, created when needed.
        predictor: a `SAMPredictor` of the model.
        limit: int, bytes that all files may have together.
    """

    def __init__(self, folder: str | os.PathLike, predictor: SAMPredictor, limit: int):
        self.folder, self.limit = Path(folder), limit
        frame = sorted(predictor.preprocessor.image_converter.settings().items())
        model = predictor.segmenter.encoder_fingerprint(), precision_of(predictor.segmenter)
        self._model = hashlib.blake2b(f"{model} {frame}".encode(), digest_size=8).hexdigest()

    def load(self, predictor: SAMPredictor, content: bytes) -> bool:
        """Sets a photograph in the predictor if its embedding is there."""
        path = self._path(content)
        try:
            predictor.load_embedding(path)
        except FileNotFoundError:
            return False
        except (ValueError, OSError):
            with contextlib.suppress(OSError):
                path.unlink()
            return False
        with contextlib.suppress(OSError):
            os.utime(path)  # used just now
        return True

    def save(self, predictor: SAMPredictor, content: bytes) -> None:
        """Keeps the embedding that is set, and deletes old ones beyond the limit."""
        try:
            predictor.save_embedding(self._path(content))
            self._trim()
        except OSError as error:
            notice(f"Embeddings are not kept on disk: {error}.", "embeddings not kept")

    def _path(self, content: bytes) -> Path:
        digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        return self.folder / f"{digest}_{self._model}.safetensors"

    def _trim(self) -> None:
        remove_leftovers(self.folder, _NAMES)
        files = []
        for entry in os.scandir(self.folder):
            if re.fullmatch(_NAMES, entry.name):
                about = entry.stat()
                files.append((about.st_mtime_ns, about.st_size, entry.path))
        left = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if left <= self.limit:
                break
            with contextlib.suppress(OSError):  # another server has deleted it
                os.unlink(path)
            left -= size


def precision_of(segmenter: EncodesAndDecodes) -> str:
    """What a model computes in; its parts may differ, and the whole says nothing of them."""
    if hasattr(segmenter, "computes_in"):
        return segmenter.computes_in
    parts = segmenter.image_encoder, segmenter.mask_decoder
    return ", ".join(dict.fromkeys(part.dtype_policy.name for part in parts))
