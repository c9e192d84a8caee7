"""Masks as polygons with holes, and back.

A polygon is a list of rings, the outline first, then its holes; a ring is an array `(V, 2)` of
x, y. Vertices are pixel *corners*: the pixel in row 0 and column 0 is the square from (0, 0) to
(1, 1), so a traced mask comes back exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from keras_sam.geometry import size_pair
from keras_sam.masks.rle import as_mask_stack, flips_to_mask

# COCO draws polygons on a grid of fifths of a pixel; its middle line is the pixel's centre.
_FINE = 5


def mask_to_polygons(mask: ArrayLike, tolerance: float = 0.0) -> list[list[np.ndarray]]:
    """Traces the outlines of a mask along the edges of its pixels.

    Each 8-connected part is one polygon. With a tolerance of 0, `polygons_to_mask` returns the
    same mask. Where two pixels touch only at a corner, the ring passes it twice.

    Args:
        mask: bool or integer array `(H0, W0)`.
        tolerance: float, original pixels. Drops vertices that lie closer
            than this to the simplified ring (Douglas-Peucker); a ring that
            would collapse is kept unchanged. Defaults to `0.0`.

    Returns:
        A list of polygons, from the top down. Rings are int64 `(V, 2)`, x y in pixels, not closed;
        seen on a screen, outlines run clockwise and holes counterclockwise.

    Raises:
        ValueError: if `mask` is not a single binary mask, or `tolerance` is negative.

    Example:

    >>> polygons = keras_sam.masks.mask_to_polygons([[0, 1], [0, 1]])
    >>> polygons[0][0].tolist()
    [[1, 0], [2, 0], [2, 2], [1, 2]]
    """
    if not tolerance >= 0:
        raise ValueError(f"`tolerance` must be at least 0 pixels. Received: {tolerance}.")
    stack = as_mask_stack(mask, "mask")
    if np.ndim(mask) != 2:
        raise ValueError(f"`mask` must have shape (H0, W0). Received: shape={np.shape(mask)}.")
    mask = stack[0] != 0
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    corner = np.array([columns[0], rows[0]])
    mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    polygons = _trace(mask)
    return [[_simplify(ring, tolerance) + corner for ring in rings] for rings in polygons]


def polygons_to_mask(polygons: Sequence[Any], size: Sequence[int]) -> np.ndarray:
    """Fills polygons by COCO's rule.

    The rings of a polygon are filled by the even-odd rule, so holes stay open; of several polygons
    the union is taken. A pixel is inside if its centre is, on a grid of fifths of a pixel. The
    result equals that of `pycocotools` pixel by pixel (`test_filling_equals_pycocotools`).

    Args:
        polygons: sequence of polygons in original pixels: lists of rings `(V, 2)`, single rings, or
            COCO's flat `[x1, y1, x2, y2, ...]`. They may leave the image.
        size: pair of ints, `(H0, W0)`.

    Returns:
        Bool array `(H0, W0)`.

    Raises:
        ValueError: if a ring has fewer than three points.
    """
    size = size_pair(size, "size", square=False)
    mask = np.zeros(size, bool)
    for polygon in polygons:
        flips = np.concatenate([_ring_flips(ring, size) for ring in _rings_of(polygon)])
        mask |= flips_to_mask(np.sort(flips), size)
    return mask


def polygons_to_coco(polygons: Sequence[Any]) -> list[list[float]]:
    """Writes polygons as COCO does, one flat `[x1, y1, x2, y2, ...]` each.

    COCO has no holes: each is joined to its outline by a cut of zero width, which fills nothing.

    Args:
        polygons: sequence of polygons, as `polygons_to_mask`.

    Returns:
        A list of flat lists, `segmentation` of a COCO annotation.
    """
    return [_join(_rings_of(polygon)).reshape(-1).tolist() for polygon in polygons]


def polygons_to_yolo(polygons: Sequence[Any], size: Sequence[int]) -> list[float]:
    """Writes the polygons of one object as YOLO does: one ring, in fractions of the image.

    A YOLO line holds only one ring, so several parts and holes are joined by
    cuts of zero width. Parts must not overlap; those of a traced mask never do.

    Args:
        polygons: sequence of polygons, as `polygons_to_mask`.
        size: pair of ints, `(H0, W0)`.

    Returns:
        Flat list `[x1, y1, x2, y2, ...]` in 0..1; empty if there are no polygons.
    """
    h0, w0 = size_pair(size, "size", square=False)
    rings = [ring for polygon in polygons for ring in _rings_of(polygon)]
    return (_join(rings) / [w0, h0]).reshape(-1).tolist() if rings else []


def yolo_to_polygons(values: Sequence[float], size: Sequence[int]) -> list[list[np.ndarray]]:
    """Reads YOLO's ring in fractions of the image: one polygon in original pixels.

    Args:
        values: flat sequence `[x1, y1, x2, y2, ...]` in 0..1.
        size: pair of ints, `(H0, W0)`.

    Returns:
        A list with one polygon of one float64 ring `(V, 2)`.
    """
    h0, w0 = size_pair(size, "size", square=False)
    return [[ring * [w0, h0] for ring in _rings_of(values)]]


def _rings_of(polygon: Any) -> list[np.ndarray]:
    """The rings of a polygon in any accepted form, float64 `(V, 2)` each."""
    try:
        rings = [np.asarray(polygon, "float64")]
        if rings[0].ndim == 3 or (rings[0].ndim == 2 and rings[0].shape[1] != 2):
            rings = list(rings[0])
    except ValueError:  # rings of different lengths
        rings = [np.asarray(ring, "float64") for ring in polygon]
    checked = []
    for ring in rings:
        if ring.ndim == 1 and ring.size % 2 == 0:
            ring = ring.reshape(-1, 2)
        if ring.ndim != 2 or ring.shape[1] != 2 or len(ring) < 3 or not np.isfinite(ring).all():
            raise ValueError(
                "A ring of a polygon must be at least 3 points x, y in pixels, (V, 2) or flat. "
                f"Received: shape={ring.shape}."
            )
        checked.append(ring)
    return checked


def _trace(mask: np.ndarray) -> list[list[np.ndarray]]:
    """Rings of a mask, grouped into polygons, with all corners kept."""
    height, width = mask.shape
    padded = np.pad(mask, 1)
    upper_left, upper_right = padded[:-1, :-1], padded[:-1, 1:]
    lower_left, lower_right = padded[1:, :-1], padded[1:, 1:]
    # A ring turns where one or three of the four pixels around a corner are inside; where two
    # pixels touch diagonally, two rings (or one, twice) turn at the same corner.
    turns = (upper_left ^ upper_right ^ lower_left ^ lower_right).astype("uint8")
    turns[
        (upper_left == lower_right) & (upper_right == lower_left) & (upper_left != upper_right)
    ] = 2
    place = np.flatnonzero(turns)
    place = np.repeat(place, turns.reshape(-1)[place])
    y, x = np.divmod(place, width + 1)
    # Along a row of corners, outlines run from the 1st to the 2nd, the 3rd to the 4th, and so on;
    # likewise down a column. Of two turns at a corner, the first in row order ends the edge from
    # the left; ordered so in its column that diagonal pixels stay connected.
    second = np.concatenate([[False], place[1:] == place[:-1]])
    order = np.lexsort((second ^ upper_left.reshape(-1)[place], y, x))
    across = np.empty(len(place), "int64")
    across[order[0::2]], across[order[1::2]] = order[1::2], order[0::2]

    ring_of, starts, indices = _walk(across.tolist())
    polygons: dict[int, list[np.ndarray]] = {}
    owner = []
    column_keys = x[order] * (height + 2) + y[order]
    for number, (start, index) in enumerate(zip(starts, indices, strict=True)):
        ring = np.stack([x[index], y[index]], axis=-1)  # (V, 2)
        y1, x1 = y[start], x[start]
        if lower_right.reshape(-1)[place[start]]:
            owner.append(number)
            polygons[number] = [ring]
            continue
        # A hole. The pixel above its first corner belongs to the polygon. The run of pixels that
        # it lies in starts at an edge of the outline or of an earlier hole.
        outside = np.flatnonzero(~mask[y1 - 1, :x1])
        left = outside[-1] + 1 if len(outside) else 0
        above = np.searchsorted(column_keys, left * (height + 2) + y1 - 1, side="right") - 1
        owner.append(owner[ring_of[order[above]]])
        polygons[owner[number]].append(ring[::-1])
    return list(polygons.values())


def _walk(across: list[int]) -> tuple[list[int], list[int], list[list[int]]]:
    """Follows rings from turn to turn: along the row to turn `i ^ 1`, then up or down.

    Returns the ring of each turn, the first turn of each ring in row order, and the turns of each
    ring in the order of the walk.
    """
    ring_of = [-1] * len(across)
    starts, indices = [], []
    for start in range(len(across)):
        if ring_of[start] >= 0:
            continue
        at, index = start, []
        while ring_of[at] < 0:
            ring_of[at] = ring_of[at ^ 1] = len(starts)
            index += (at, at ^ 1)
            at = across[at ^ 1]
        starts.append(start)
        indices.append(index)
    return ring_of, starts, indices


def _simplify(ring: np.ndarray, tolerance: float) -> np.ndarray:
    """Douglas-Peucker on a closed ring, split at its first vertex and the one farthest from it."""
    if tolerance == 0 or len(ring) < 4:
        return ring
    far = int(np.linalg.norm(ring - ring[0], axis=1).argmax())
    closed = np.concatenate([ring, ring[:1]])
    keep = np.zeros(len(closed), bool)
    keep[[0, far, len(ring)]] = True
    spans = [(0, far), (far, len(ring))]
    while spans:
        a, b = spans.pop()
        if b - a < 2:
            continue
        chord, points = (closed[b] - closed[a]).astype("float64"), closed[a + 1 : b] - closed[a]
        along = np.clip(points @ chord / max(chord @ chord, 1e-12), 0, 1)
        distance = np.linalg.norm(points - along[:, None] * chord, axis=1)
        worst = int(distance.argmax())
        if distance[worst] >= tolerance:
            keep[a + 1 + worst] = True
            spans += [(a, a + 1 + worst), (a + 1 + worst, b)]
    kept = ring[keep[:-1]]
    return kept if len(kept) >= 3 else ring


def _join(rings: list[np.ndarray]) -> np.ndarray:
    """Joins rings into one by cuts between nearby vertices, each passed in both directions."""
    joined = rings[0]
    for ring in rings[1:]:
        # The vertex nearest to the ring's first vertex, and the ring's vertex nearest to that one.
        # The closest pair of all would be slow to find, and is not needed.
        a = ((joined - ring[0]) ** 2).sum(axis=1).argmin()
        b = ((ring - joined[a]) ** 2).sum(axis=1).argmin()
        loop = np.concatenate([ring[b:], ring[: b + 1]])
        joined = np.concatenate([joined[: a + 1], loop, joined[a:]])
    return joined


def _ring_flips(ring: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Where a ring crosses the middles of pixel columns, as positions `x * H0 + y`.

    Source:
        The drawing rule of `rleFrPoly`, cocodataset/cocoapi@8c9bcc3: vertices
        on a grid of fifths of a pixel, one point per step along the longer
        axis of an edge, a crossing where such a step passes a column's middle.
    """
    h0, w0 = size
    fine = np.trunc(_FINE * ring + 0.5)
    following = np.roll(fine, -1, axis=0)
    sloping = fine[:, 0] != following[:, 0]  # vertical edges cross no column
    start, end = fine[sloping], following[sloping]
    steep = np.abs(end - start)[:, 1] > np.abs(end - start)[:, 0]
    axis = np.where(steep, 1, 0)
    edge = np.arange(len(start))
    # Every edge is drawn in the positive direction of its longer axis, so that its points do not
    # depend on the direction of the ring.
    backward = start[edge, axis] > end[edge, axis]
    start[backward], end[backward] = end[backward], start[backward].copy()
    length = (end - start)[edge, axis]
    slope = (end - start)[edge, 1 - axis] / length
    points = length.astype("int64") + 1
    edge = np.repeat(edge, points)
    t = np.arange(len(edge)) - np.repeat(np.cumsum(points) - points, points)
    longer = start[edge, axis[edge]] + t
    shorter = np.trunc(start[edge, 1 - axis[edge]] + slope[edge] * t + 0.5)
    u, v = np.where(steep[edge], shorter, longer), np.where(steep[edge], longer, shorter)
    step = np.flatnonzero((u[1:] != u[:-1]) & (edge[1:] == edge[:-1]))
    column, off = np.divmod(np.minimum(u[step], u[step + 1]) - _FINE // 2, _FINE)
    crossing = (off == 0) & (column >= 0) & (column < w0)
    row = (np.minimum(v[step], v[step + 1])[crossing] + 0.5) / _FINE - 0.5
    return (column[crossing] * h0 + np.ceil(np.clip(row, 0, h0))).astype("int64")
