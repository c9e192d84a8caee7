"""What records are selected from: candidates of a crop, and masks that wait for suppression.

Numpy only. Both can be larger than memory, so they have temporary files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from keras_sam.geometry import ResizePlan
from keras_sam.masks import encode_rle

_WAITING_IN_MEMORY = 8 * 2**20  # bytes, enough for all masks of most photographs

# With more changes than this along its columns, a mask is packed much faster as bits.
_CHANGES_PER_PIXEL = 1 / 64


@dataclasses.dataclass(frozen=True)
class Crop:
    """A part of an image that is segmented by itself, scaled for the model by its own plan."""

    box: tuple[int, int, int, int]  # x1 y1 x2 y2 in original pixels
    plan: ResizePlan


@dataclasses.dataclass(frozen=True)
class Candidates:
    """The masks of some clicks on one crop."""

    points: np.ndarray  # float64 (N, 2), x y in pixels of the crop
    scores: np.ndarray  # float32 (N, K), predicted IoUs
    logits: np.ndarray  # float32 (N, K, Lh, Lw)


class CandidateFile:
    """Candidates of one image in a temporary file, which is deleted with this object."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="keras_sam_")  # noqa: SIM115
        self._size = 0
        self._crops: list[tuple[Crop, list[tuple]]] = []

    def recorded(
        self, crops: Iterable[tuple[Crop, Iterable[Candidates]]]
    ) -> Iterator[tuple[Crop, Iterator[Candidates]]]:
        """Passes candidates on, and writes them to the file."""
        for crop, batches in crops:
            written: list[tuple] = []
            self._crops.append((crop, written))
            yield crop, self._write(batches, written)

    def _write(self, batches, written):
        for batch in batches:
            # By `write`, not through the map, where a full disk would end the process.
            logits = np.ascontiguousarray(batch.logits, "float32")
            self._file.write(logits.data)
            written.append((batch.points, batch.scores.copy(), self._size, logits.shape))
            self._size += logits.nbytes
            yield batch

    def crops(self) -> Iterator[tuple[Crop, Iterator[Candidates]]]:
        """The candidates again, in the same order; logits are mapped from the file."""
        self._file.flush()
        for crop, written in self._crops:
            yield (
                crop,
                (
                    Candidates(
                        points,
                        scores,
                        np.memmap(self._file, "float32", "r", offset=offset, shape=shape),
                    )
                    for points, scores, offset, shape in written
                ),
            )


@dataclasses.dataclass(frozen=True)
class PackedMask:
    """A mask of a part of an image, as run lengths or, where many pixels are on an edge, as bits.

    Run lengths of an object are short. Those of noise take longer to make than the mask itself,
    and most masks are dropped before their run lengths are needed.
    """

    content: bytes  # COCO's string of the whole image, or the bits of the part's pixels
    is_bits: bool  # which of the two
    box: tuple[int, int, int, int]  # the part: x1 y1 x2 y2 in original pixels


def pack_mask(
    mask: np.ndarray, box: tuple[int, int, int, int], original_size: tuple[int, int]
) -> PackedMask:
    """Packs a bool mask of the part `box` of an image."""
    changes = np.count_nonzero(mask[1:] != mask[:-1])
    if changes > _CHANGES_PER_PIXEL * mask.size:
        return PackedMask(np.packbits(mask).tobytes(), True, box)
    rle = encode_rle(mask, crop_box=box, original_size=original_size)
    return PackedMask(rle["counts"].encode("ascii"), False, box)


class WaitingMasks:
    """Packed masks of one image: the first in memory, many in a temporary file."""

    def __init__(self, original_size: tuple[int, int]) -> None:
        self.original_size = original_size
        self._file = tempfile.SpooledTemporaryFile(  # noqa: SIM115
            _WAITING_IN_MEMORY, prefix="keras_sam_"
        )
        self._size = 0

    def __enter__(self) -> WaitingMasks:
        return self

    def __exit__(self, *exception: Any) -> None:
        with contextlib.suppress(OSError):  # a full disk; the content is no longer needed
            self._file.close()

    def add(self, mask: PackedMask) -> Callable[[], dict]:
        """Stores a mask. Returns a function for its run lengths, compressed, of the whole image."""
        self._file.seek(self._size)
        self._file.write(mask.content)
        place = (self._size, len(mask.content))
        self._size += len(mask.content)
        return functools.partial(self._run_lengths, *place, mask.is_bits, mask.box)

    def _run_lengths(self, start, length, is_bits, box):
        self._file.seek(start)
        content = self._file.read(length)
        if not is_bits:
            return {"size": list(self.original_size), "counts": content.decode("ascii")}
        x1, y1, x2, y2 = box
        h, w = y2 - y1, x2 - x1
        bits = np.unpackbits(np.frombuffer(content, "uint8"), count=h * w)
        mask = bits.view(bool).reshape(h, w)
        return encode_rle(mask, crop_box=box, original_size=self.original_size)
