"""COCO run lengths: a mask as the lengths of its runs, column by column.

A run-length dict is `{"size": [H0, W0], "counts": counts}`. The counts start with a run of
background (of length 0 if the first pixel is inside) and are a list of ints, or COCO's compressed
string of them.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from keras_sam.geometry import size_pair

# Masks are encoded in chunks: large enough to spread the cost of numpy's calls, in which threads
# wait for Python's lock, small enough for every thread to get some, and for 16 bits to number the
# columns.
_CHUNK_PIXELS = 1 << 24
_CHUNK_COLUMNS = 0xFFFF
_MAX_THREADS = 4  # numpy releases Python's lock; more threads only wait for memory
_MAX_GROUPS = 9  # 5 bits each: 45 bits hold every count of a mask with fewer than 2**44 pixels.


def encode_rle(
    masks: ArrayLike,
    compressed: bool = True,
    crop_box: Sequence[int] | None = None,
    original_size: Sequence[int] | None = None,
) -> dict | list[dict]:
    """Encodes binary masks as COCO run lengths.

    Equal to `pycocotools.mask.encode`, with the string as `str`, ready for JSON. Masks of a crop
    are encoded as masks of the whole image without being padded to its size.

    Args:
        masks: bool or integer array `(H0, W0)` or `(M, H0, W0)`; everything but 0 is inside.
        compressed: bool. True for COCO's string, False for a list of ints. Defaults to `True`.
        crop_box: four ints, x1 y1 x2 y2 in original pixels: the part of the image that `masks`
            show; outside it is background. Defaults to the whole image.
        original_size: pair of ints `(H0, W0)`, with `crop_box`: the size of the image.

    Returns:
        A dict with `size`, `[H0, W0]`, and `counts`; for a stack a list of `M`.

    Raises:
        ValueError: if `masks` are not masks, or the crop has another size or leaves the image.

    Example:

    >>> keras_sam.masks.encode_rle([[0, 1], [1, 1]], compressed=False)
    {'size': [2, 2], 'counts': [1, 3]}
    >>> keras_sam.masks.encode_rle([[1]], False, crop_box=[2, 0, 3, 1], original_size=(2, 3))
    {'size': [2, 3], 'counts': [4, 1, 1]}
    """
    stack = as_mask_stack(masks)
    corner, size = _place(stack.shape[1:], crop_box, original_size)
    h, w = stack.shape[1:]
    step = max(1, min(_CHUNK_PIXELS // (h * w), _CHUNK_COLUMNS // (w + 7)))
    encode = functools.partial(_encode_chunk, compressed=compressed, corner=corner, size=size)
    if len(stack) <= step:
        encoded = encode(stack) if len(stack) else []
    else:
        threads = min(_MAX_THREADS, os.cpu_count() or 1)
        turns = -(-len(stack) // (threads * step))
        # Chunks of one size, and as many for each thread, so that no thread finishes late.
        chunks = np.array_split(stack, min(threads * turns, len(stack)))
        with ThreadPoolExecutor(threads) as pool:
            encoded = list(itertools.chain.from_iterable(pool.map(encode, chunks)))
    return encoded[0] if np.ndim(masks) == 2 else encoded


def decode_rle(rle: dict | Sequence[dict], crop_box: Sequence[int] | None = None) -> np.ndarray:
    """Decodes COCO run lengths, compressed or not, to binary masks.

    Args:
        rle: a run-length dict, or a sequence of dicts of one size.
        crop_box: optional four ints, x1 y1 x2 y2 in original pixels: the part of the image to
            decode, however large the image is. Defaults to the whole image.

    Returns:
        Bool array `(H0, W0)`, or as large as the crop; for a sequence `(M, H0, W0)`.

    Raises:
        ValueError: if a dict is malformed, counts do not fill their size, sizes differ, or the crop
            is empty or leaves the image.

    Example:

    >>> keras_sam.masks.decode_rle({"size": [2, 2], "counts": [1, 3]}).astype(int)
    array([[0, 1],
           [1, 1]])
    >>> rle = {"size": [30000, 40000], "counts": [30002, 1, 1199969997]}
    >>> keras_sam.masks.decode_rle(rle, crop_box=[0, 1, 3, 4]).astype(int)
    array([[0, 0, 0],
           [0, 1, 0],
           [0, 0, 0]])
    """
    if isinstance(rle, dict):
        return _decode(rle, crop_box)
    if not len(rle):
        raise ValueError("`rle` must hold at least one run-length dict. Received: an empty list.")
    masks = None
    for i, one in enumerate(rle):
        mask = _decode(one, crop_box)
        if masks is None:
            masks = np.empty((len(rle), *mask.shape), bool)
        if mask.shape != masks.shape[1:]:
            raise ValueError(
                "`rle` must hold masks of one size, or be decoded one dict at a time. "
                f"Received: sizes {masks.shape[1:]} and {mask.shape}."
            )
        masks[i] = mask
    return masks


def compress_rle(rle: dict) -> dict:
    """Writes the counts of a run-length dict as COCO's string, which `pycocotools` reads.

    Args:
        rle: a run-length dict, compressed or not.

    Returns:
        A new dict.

    Raises:
        ValueError: as `decode_rle`.
    """
    counts, (h0, w0) = read_counts(rle)
    characters, _ = _compress(counts, np.zeros(1, int))
    return {"size": [h0, w0], "counts": characters.tobytes().decode("ascii")}


def decompress_rle(rle: dict) -> dict:
    """Returns the dict with its counts as a list of ints, as Meta's `uncompressed_rle`.

    Args:
        rle: a run-length dict, compressed or not.

    Returns:
        A new dict with `size` and the int list `counts`.

    Raises:
        ValueError: as `decode_rle`.
    """
    counts, (h0, w0) = read_counts(rle)
    return {"size": [h0, w0], "counts": counts.tolist()}


def as_mask_stack(masks: ArrayLike, name: str = "masks") -> np.ndarray:
    """Checks binary masks and gives them a leading axis: `(M, H0, W0)`, bool or integer."""
    stack = np.asarray(masks)
    if stack.ndim not in (2, 3) or 0 in stack.shape[-2:]:
        raise ValueError(
            f"`{name}` must have shape (H0, W0) or (M, H0, W0) with at least one pixel. "
            f"Received: shape={stack.shape}."
        )
    if stack.dtype.kind not in "bui":
        raise ValueError(
            f"`{name}` must be binary masks, of a bool or integer dtype. Received: "
            f"dtype={stack.dtype}. Turn logits into masks first: logits > mask_threshold."
        )
    return stack[None] if stack.ndim == 2 else stack


def read_counts(rle: dict) -> tuple[np.ndarray, tuple[int, int]]:
    """Checks a run-length dict. Returns its counts as int64 `(runs,)` and `(H0, W0)`."""
    if not isinstance(rle, dict) or "size" not in rle or "counts" not in rle:
        raise ValueError(
            f"A run-length mask must be a dict with `size` and `counts`. Received: {_shorten(rle)}."
        )
    size = size_pair(rle["size"], "size", square=False)
    counts = rle["counts"]
    if isinstance(counts, (str, bytes)):
        counts = _decompress(counts)
    else:
        counts = np.asarray(counts)
        if counts.ndim != 1 or not np.array_equal(counts, counts.astype("int64")):
            raise ValueError(
                "`counts` of a run-length mask must be a list of ints or COCO's string. "
                f"Received: {_shorten(rle['counts'])}."
            )
        counts = counts.astype("int64")
    if (counts < 0).any() or counts.sum() != size[0] * size[1]:
        raise ValueError(
            "`counts` of a run-length mask must be run lengths that fill height * width = "
            f"{size[0] * size[1]} pixels. Received: sum={int(counts.sum())}, "
            f"smallest={int(counts.min(initial=0))}."
        )
    return counts, size


def flips_to_mask(flips: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Paints a bool mask `(H0, W0)` from the positions at which its value changes.

    `flips` are positions `x * H0 + y` in ascending order; a position that occurs twice changes
    nothing.
    """
    h0, w0 = size
    x, y = np.divmod(flips[flips < h0 * w0], h0)
    bits = np.zeros((h0, -(-w0 // 64) * 8), "uint8")  # one bit per pixel, rows of whole words
    below = y > 0
    column_bit = (128 >> (x & 7)).astype("uint8")
    flat = y * bits.shape[1] + (x >> 3)
    np.bitwise_xor.at(bits.reshape(-1), flat[below], column_bit[below])
    # A run may continue from the bottom of a column to the top of the next. So the top row holds
    # values, and the rows below hold changes, which a running exclusive-or turns into values.
    top = np.searchsorted(flips, np.arange(w0) * h0, side="right") & 1
    bits[0, : -(-w0 // 8)] = np.packbits(top.astype(bool))
    words = bits.view("uint64")
    np.bitwise_xor.accumulate(words, axis=0, out=words)
    return np.unpackbits(bits, axis=1, count=w0).view(bool)


def mask_flips(
    stack: np.ndarray, corner: tuple[int, int] = (0, 0), size: tuple[int, int] | None = None
) -> np.ndarray:
    """Positions `m * H0 * W0 + x * H0 + y` where values of masks change down their columns.

    Ascending, without repeats. Every mask starts with background, so a mask whose first pixel is
    inside changes at position 0. `corner` is `(x, y)` of the stack `(M, h, w)` in an image of
    `size`.
    """
    m, h, w = stack.shape
    h0, w0 = size or (h, w)
    if stack.dtype != bool:
        stack = stack != 0
    if w % 8 or not stack.flags.c_contiguous:
        padded = np.zeros((m, h, -(-w // 8) * 8), bool)
        padded[..., :w] = stack
        stack = padded
    # Rows are compared eight pixels at a time, which is as fast as reading them from memory.
    words = stack.view("uint64")
    width = words.shape[2]
    count = m * (h - 1) * width
    differ = np.empty(-(-count // 8) * 8, bool)
    differ[count:] = False
    np.not_equal(words[:, 1:], words[:, :-1], out=differ[:count].reshape(m, h - 1, width))
    # Few words differ. Numpy holds Python's lock while it finds them, so it looks for groups first.
    eights = differ.view("uint64")
    eight = np.flatnonzero(eights != 0)
    found = np.flatnonzero(eights[eight].view(bool))
    found = (eight[found >> 3] << 3) + (found & 7)
    mask = found // max(1, (h - 1) * width)
    found += mask * width  # counted in whole masks, like `words`
    pair = words.reshape(-1)[[found, found + width]].view(bool)
    pixel = np.flatnonzero(pair[0] != pair[1])
    row = found // width  # much faster than numpy's `divmod`
    # With the masks side by side, `wide` columns each, values change in these columns and rows:
    wide = 8 * width
    x = (mask * wide + 8 * (found - row * width))[pixel >> 3] + (pixel & 7)
    y = (row + 1 - mask * h)[pixel >> 3]
    # A column whose last pixel is inside gets a flip below it. If the next column starts inside,
    # the two flips cancel; after the last pixel of the image there is none.
    top, foot = np.flatnonzero(stack[:, 0]), np.flatnonzero(stack[:, -1])
    foot = foot[(foot % wide + corner[0]) * h0 + corner[1] + h < h0 * w0]
    x = np.concatenate([top, x, foot])
    y = np.concatenate([np.zeros(len(top), int), y, np.full(len(foot), h)])
    flips = (x + corner[0] + x // wide * (w0 - wide)) * h0 + (y + corner[1])
    # The flips are in row order already, so a stable sort by column is enough. Numpy sorts numbers
    # of up to 16 bits by radix sort, which is much faster.
    flips = flips[np.argsort(x.astype(np.min_scalar_type(m * wide)), kind="stable")]
    twice = np.flatnonzero(flips[1:] == flips[:-1])
    return np.delete(flips, np.concatenate([twice, twice + 1])) if len(twice) else flips


def _decode(rle: dict, crop_box: Sequence[int] | None) -> np.ndarray:
    counts, size = read_counts(rle)
    flips = np.cumsum(counts[:-1])
    if crop_box is None:
        return flips_to_mask(flips, size)
    x1, y1, x2, y2 = box = tuple(int(n) for n in crop_box)
    if not (0 <= x1 < x2 <= size[1] and 0 <= y1 < y2 <= size[0]):
        raise ValueError(
            "`crop_box` must be x1 y1 x2 y2 inside the image, at least one pixel. Received: "
            f"crop_box={box}, and run lengths of size {size}."
        )
    return flips_to_mask(_crop_flips(flips, size, box), (y2 - y1, x2 - x1))


def _crop_flips(
    flips: np.ndarray, size: tuple[int, int], box: tuple[int, int, int, int]
) -> np.ndarray:
    """Positions in a crop at which a mask's value changes, of those in the whole image."""
    (h0, w0), (x1, y1, x2, y2) = size, box
    starts, ends = flips[0::2], np.append(flips[1::2], h0 * w0)[: len(flips[0::2])]
    inside = (ends > x1 * h0) & (starts < x2 * h0) & (starts < ends)
    starts, ends = np.maximum(starts[inside], x1 * h0), np.minimum(ends[inside], x2 * h0)
    # A run that reaches the bottom of a column may go on in the next ones.
    first = starts // h0
    columns = (ends - 1) // h0 - first + 1
    run = np.repeat(np.arange(len(starts)), columns)
    x = first[run] + np.arange(len(run)) - np.repeat(np.cumsum(columns) - columns, columns)
    rows = np.stack([starts[run], ends[run]], axis=-1) - (x * h0)[:, None]
    rows = np.clip(rows, y1, y2) - y1  # (runs, 2)
    return (rows + ((x - x1) * (y2 - y1))[:, None]).reshape(-1)


def _place(
    shape: tuple[int, int], crop_box: Sequence[int] | None, original_size: Sequence[int] | None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Checks the place of masks of `shape`. Returns its `(x, y)` and the image's `(H0, W0)`."""
    if crop_box is None and original_size is None:
        return (0, 0), shape
    if crop_box is None or original_size is None:
        raise ValueError("`crop_box` and `original_size` must be given together, or neither.")
    h0, w0 = size_pair(original_size, "original_size", square=False)
    x1, y1, x2, y2 = (int(n) for n in crop_box)
    if shape != (y2 - y1, x2 - x1) or min(x1, y1) < 0 or x2 > w0 or y2 > h0:
        raise ValueError(
            "`crop_box` must be x1 y1 x2 y2 inside the image, as large as the masks. Received: "
            f"crop_box={(x1, y1, x2, y2)}, original_size={(h0, w0)}, masks of size {shape}."
        )
    return (x1, y1), (h0, w0)


def _encode_chunk(
    stack: np.ndarray, compressed: bool, corner: tuple[int, int], size: tuple[int, int]
) -> list[dict]:
    h0, w0 = size
    flips = mask_flips(stack, corner, size)
    last = np.arange(1, len(stack) + 1) * (h0 * w0)
    ends_before = np.searchsorted(flips, last)
    counts = np.diff(np.insert(flips, ends_before, last), prepend=0)
    stops = ends_before + np.arange(1, len(stack) + 1)
    starts = np.concatenate([[0], stops[:-1]])
    if not compressed:
        values = counts.tolist()
    else:
        characters, ends = _compress(counts, starts)
        values = characters.tobytes().decode("ascii")
        stops = ends[stops - 1]
        starts = np.concatenate([[0], stops[:-1]])
    return [{"size": [h0, w0], "counts": values[a:b]} for a, b in zip(starts, stops, strict=True)]


def _compress(counts: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Writes counts as COCO's string: 5 bits a character, least significant first.

    From the fourth run on, a count is written as its difference to the count of the same colour
    before it. Bit 5 of a character says that more follow. `counts` `(runs,)` are the runs of all
    masks, `starts` `(M,)` where those of each mask begin. Returns the characters, uint8, and the
    place after each run's last one.
    """
    value = counts.copy()
    value[2:] -= counts[:-2]
    first = (starts[:, None] + np.arange(3)).reshape(-1)
    first = first[first < len(counts)]
    value[first] = counts[first]
    length = np.ones(len(value), "int8")
    # Most runs need one character, of which one bit is the sign; only longer ones are processed
    # further. `x ^ (x >> 63)` is the magnitude: -1 needs as many bits as 0.
    longer = np.flatnonzero((value ^ (value >> 63)) >> 4)
    rest = value[longer]
    magnitude = (rest ^ (rest >> 63)) >> 4
    while magnitude.any():
        length[longer] += magnitude > 0
        magnitude >>= 5
    ends = np.cumsum(length, dtype="int64")
    place = ends - length
    characters = np.empty(length.sum(dtype="int64"), "uint8")
    characters[place] = (value & 31) + 48
    place, left = place[longer], length[longer]
    while len(rest):
        characters[place] += 32
        place, left, rest = place + 1, left - 1, rest >> 5
        characters[place] = (rest & 31) + 48
        more = left > 1
        place, left, rest = place[more], left[more], rest[more]
    return characters, ends


def _decompress(string: str | bytes) -> np.ndarray:
    """Reads COCO's string of counts: the inverse of `_compress` for one mask."""
    malformed = ValueError(
        "`counts` of a run-length mask must be COCO's compressed string. "
        f"Received: {_shorten(string)}."
    )
    try:
        raw = string.encode("ascii") if isinstance(string, str) else bytes(string)
    except UnicodeEncodeError:
        raise malformed from None
    character = np.frombuffer(raw, "uint8").astype("int64") - 48
    last = np.flatnonzero(character & 32 == 0)
    if not len(last) or last[-1] != len(character) - 1 or (character >> 6).any():
        raise malformed
    first = np.concatenate([[0], last[:-1] + 1])
    groups = last + 1 - first
    if groups.max() > _MAX_GROUPS:
        raise malformed
    place = 5 * (np.arange(len(character)) - np.repeat(first, groups))
    value = np.add.reduceat((character & 31) << place, first)
    value -= (character[last] >> 4 & 1) << (5 * groups)
    value[1::2] = np.cumsum(value[1::2])
    value[2::2] = np.cumsum(value[2::2])
    return value


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
