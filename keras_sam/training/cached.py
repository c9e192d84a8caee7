"""Embeddings on disk: a data set is encoded once, and training does not run the encoder."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from keras_sam.converters.tables import narrow_bfloat16, widen_bfloat16
from keras_sam.encode_decode import check_segmenter
from keras_sam.files import whole_file
from keras_sam.models.sam_image_segmenter import SAMImageSegmenter
from keras_sam.models.vit_det_backbone import encoder_fingerprint
from keras_sam.preprocessing.preprocessor import resizing_preprocessor
from keras_sam.training.sources import item_name, report_unreadable, targets_of

DTYPES = ("float16", "bfloat16")
INDEX = "embeddings.json"
_FORMAT = "keras_sam cached embeddings 1"


class CachedEmbeddings(Sequence):
    """The images of a data set as embeddings in a folder, encoded at their first use.

    It replaces the data set that it is made from: `ObjectBatches` of it have embeddings instead of
    images, and `fit` and `SAMTrainer` then train prompt encoder and mask decoder without running
    the image encoder, which must be frozen.

    There is a file per image, named by a hash of the image and written whole or not at all. So
    encoding continues where it was interrupted, and images can be added, left out and reordered
    later. Files are memory-mapped, so that only what a batch needs is read.

    Args:
        segmenter: the `SAMImageSegmenter` whose encoder encodes the images.
        source: sequence of tuples of an image and its objects, as for `ObjectBatches`.
        folder: the folder of the embeddings. It is created if it does not exist.
        dtype: `"float16"` or `"bfloat16"`, the dtype of the files: 2 MB for an image of
            1024 x 1024. Defaults to `"float16"`.
        batch_size: int. Images that are encoded at once. Defaults to 1.
        skip_unreadable: bool. Leave out images that cannot be read, with a warning that names
            them, instead of raising an error.
        verbose: `"auto"`, 0, 1 or 2. Whether to show the progress of encoding.

    Raises:
        ValueError: if `folder` has embeddings of another model, another preprocessing or
            another dtype, or an image cannot be read.
        OSError: if an embedding cannot be written; those that were written stay.

    Example:

    ```python
    objects = np.zeros((1, 60, 90), "uint8")
    objects[0, 20:40, 30:60] = 1
    source = [(np.zeros((60, 90, 3), "uint8"), objects)]
    cache = CachedEmbeddings(tiny_segmenter, source, "cache", verbose=0)
    tiny_segmenter.freeze("image_encoder")
    tiny_segmenter.compile(optimizer=keras.optimizers.AdamW(1e-4))
    data = keras_sam.training.ObjectBatches(cache, prompts="boxes")
    history = tiny_segmenter.fit(data, verbose=0)
    ```
    """

    def __init__(
        self,
        segmenter: SAMImageSegmenter,
        source: Sequence,
        folder: str | os.PathLike,
        dtype: str = "float16",
        batch_size: int = 1,
        skip_unreadable: bool = False,
        verbose: str | int = "auto",
    ):
        if dtype not in DTYPES:
            raise ValueError(f"`dtype` must be one of {DTYPES}. Received: dtype={dtype!r}.")
        check_segmenter(segmenter)
        if batch_size < 1 or len(source) == 0:
            raise ValueError(
                "`batch_size` must be at least 1, and `source` hold at least one image. "
                f"Received: batch_size={batch_size}, {len(source)} images."
            )
        self._source = source
        self._folder = Path(folder)
        self._dtype = dtype
        self._shapes = segmenter.feature_shapes
        self._skip_unreadable = skip_unreadable
        self._claim_folder(_identity(segmenter, dtype))
        self._files = self._encode_missing(segmenter, batch_size, verbose)  # by index of source
        self._indices = sorted(self._files)
        if not self._indices:
            raise ValueError("`source` holds no image that can be read.")

    has_read_targets = True

    def __len__(self) -> int:
        return len(self._indices)

    def path(self, index: int) -> str:
        """The image file of an item, or its index where the source has no files."""
        return item_name(self._source, self._indices[index])

    def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """An item: the encoder's features by name, float32, and the objects, uint8 `(P, H0, W0)`.

        `image_embeddings` `(Eh, Ew, C)` is among the features.
        """
        inner = self._indices[index]
        file, size = self._files[inner]
        try:
            stored = np.load(file, mmap_mode="r")
        except ValueError as error:
            raise ValueError(
                f"The embedding `{file}` is damaged. Delete it and create `CachedEmbeddings` "
                "again, which encodes the image once more."
            ) from error
        values = _to_float32(np.asarray(stored).reshape(-1), self._dtype)
        return self._split(values), targets_of(self._source, inner, size)

    def _split(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """The features whose values are in a file one after the other."""
        features, start = {}, 0
        for name, shape in self._shapes.items():
            stop = start + math.prod(shape)
            features[name] = values[start:stop].reshape(shape)
            start = stop
        return features

    def _claim_folder(self, identity: dict[str, str]) -> None:
        """Marks an empty folder as this model's, and refuses that of another model."""
        index = self._folder / INDEX
        if not index.is_file():
            if self._folder.is_dir() and any(self._folder.iterdir()):
                raise ValueError(
                    "`folder` must be new, empty, or a cache of embeddings. Received: "
                    f"{self._folder}, which holds other files."
                )
            with whole_file(index, text=True) as file:
                json.dump(identity, file, indent=2)
            return
        try:
            stored = json.loads(index.read_text(encoding="utf-8"))
        except ValueError:
            stored = None
        stored = stored if isinstance(stored, dict) else {}
        different = [name for name, value in identity.items() if stored.get(name) != value]
        if different:
            raise ValueError(
                f"`folder` holds embeddings with another {', '.join(different)}: {self._folder}. "
                "A decoder that is trained on them would not fit this model. Choose another "
                "folder, or delete this one to encode the images again."
            )

    def _encode_missing(
        self, segmenter: SAMImageSegmenter, batch_size: int, verbose: str | int
    ) -> dict[int, tuple[Path, tuple[int, int]]]:
        """Encodes the images without a file. Returns each image's file and size by its index."""
        blank = {name: np.zeros(shape, "uint16") for name, shape in self._shapes.items()}
        length = len(_npy(_joined(blank)))
        there = {  # a file of another length is damaged
            entry.name.split("_")[0]: Path(entry.path)
            for entry in os.scandir(self._folder)
            if entry.name.endswith(".npy") and entry.stat().st_size == length
        }
        files, missing = {}, []
        for index in range(len(self._source)):
            digest = self._digest(index)
            if digest in there:
                files[index] = (there[digest], _size_of(there[digest]))
            elif digest is not None:
                missing.append((index, digest))
        show = bool(missing) and verbose != 0
        bar = keras.utils.Progbar(len(missing), unit_name="image") if show else None
        for start in range(0, len(missing), batch_size):
            self._encode(segmenter, missing[start : start + batch_size], files)
            if bar is not None:
                bar.update(min(start + batch_size, len(missing)))
        return files

    def _digest(self, index: int) -> str | None:
        """A hash of the image's content; None for an image that is left out."""
        path = getattr(self._source, "path", None)
        try:
            if path is None:
                image = np.ascontiguousarray(self._source[index][0])
                content = f"{image.shape} {image.dtype}".encode() + image.tobytes()
            else:
                content = Path(path(index)).read_bytes()
        except (OSError, ValueError) as error:
            report_unreadable(self._source, index, error, self._skip_unreadable)
            return None
        return hashlib.blake2b(content, digest_size=16).hexdigest()

    def _encode(
        self, segmenter: SAMImageSegmenter, chosen: list[tuple[int, str]], files: dict[int, tuple]
    ) -> None:
        readable = []
        for index, digest in chosen:
            try:
                readable.append((index, digest, self._source[index][0]))
            except (OSError, ValueError) as error:
                report_unreadable(self._source, index, error, self._skip_unreadable)
        if not readable:
            return
        encoded = segmenter.encode([image for _, _, image in readable], len(readable))
        for number, (index, digest, image) in enumerate(readable):
            features = _joined({name: encoded[name][number] for name in self._shapes})
            size = tuple(image.shape[:2])
            path = self._folder / f"{digest}_{size[0]}x{size[1]}.npy"
            stored = _stored(features, self._dtype)
            if stored is None:
                raise ValueError(
                    f"The embedding of {item_name(self._source, index)} has values that "
                    f'{self._dtype} cannot hold. Pass dtype="bfloat16", or look for a broken image '
                    "or model."
                )
            with whole_file(path) as file:
                file.write(_npy(stored))
            files[index] = (path, size)


def _identity(segmenter: SAMImageSegmenter, dtype: str) -> dict[str, str]:
    """What must match for stored embeddings to fit a segmenter."""
    config = resizing_preprocessor(segmenter).image_converter.get_config()
    frame = repr(sorted((k, v) for k, v in config.items() if k not in ("name", "trainable")))
    return {
        "format": _FORMAT,
        "model": encoder_fingerprint(segmenter.image_encoder),
        "preprocessing": hashlib.blake2b(frame.encode(), digest_size=16).hexdigest(),
        "dtype": dtype,
    }


def _joined(features: dict[str, np.ndarray]) -> np.ndarray:
    """One array for a file: the features' values one after the other, or an embedding as it is."""
    arrays = list(features.values())
    return arrays[0] if len(arrays) == 1 else np.concatenate([x.reshape(-1) for x in arrays])


def _size_of(path: Path) -> tuple[int, int]:
    height, width = path.stem.split("_")[1].split("x")
    return int(height), int(width)


def _stored(features: np.ndarray, dtype: str) -> np.ndarray | None:
    """The values as they are stored, bfloat16 as bits. None if they are out of range."""
    if dtype == "bfloat16":
        return narrow_bfloat16(features) if np.isfinite(features).all() else None
    with np.errstate(over="ignore"):
        values = features.astype("float16")
    return values if np.isfinite(values).all() else None


def _to_float32(stored: np.ndarray, dtype: str) -> np.ndarray:
    return widen_bfloat16(stored) if dtype == "bfloat16" else stored.astype("float32")


def _npy(stored: np.ndarray) -> bytes:
    """The bytes of a numpy file."""
    file = io.BytesIO()
    np.save(file, stored)
    return file.getvalue()
