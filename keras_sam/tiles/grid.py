"""The tiles of a large picture: cores that divide it, and windows around them that overlap.

Numpy only. Boxes are x1 y1 x2 y2 in pixels of the picture, x2 and y2 one past the last.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from keras_sam.geometry import size_pair

Box = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Tile:
    """A part of a picture that is segmented by itself."""

    row: int
    column: int
    core: Box  # the pixels that this tile decides about
    window: Box  # what the model sees: the core and its surroundings


@dataclasses.dataclass(frozen=True)
class TileGrid:
    """The tiles of a picture.

    All windows have one size, `tile_shape` and a halo on each side, so that an object has the same
    scale in each; where they would leave the picture they are moved inside. A picture that fits one
    window is one tile. The border of two cores is in the middle of what their windows share. So
    an object up to twice the halo is whole in at least one window.

    Args:
        size: pair of ints, `(H0, W0)` of the picture.
        tile_shape: int or pair of ints, height and width of a core in pixels.
        halo: int or pair of ints, how far a window reaches beyond its core, in pixels.

    Raises:
        ValueError: if a side is not positive, the halo is negative, or larger than a tile.

    Example:

    >>> grid = keras_sam.tiles.TileGrid((1000, 3000), tile_shape=1024, halo=256)
    >>> [tile.window for tile in grid]
    [(0, 0, 1536, 1000), (1024, 0, 2560, 1000), (1464, 0, 3000, 1000)]
    >>> [tile.core for tile in grid]
    [(0, 0, 1280, 1000), (1280, 0, 2304, 1000), (2304, 0, 3000, 1000)]
    """

    size: tuple[int, int]
    tile_shape: tuple[int, int] = (1024, 1024)
    halo: tuple[int, int] = (256, 256)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", size_pair(self.size, "size", square=False))
        object.__setattr__(self, "tile_shape", size_pair(self.tile_shape, "tile_shape"))
        object.__setattr__(self, "halo", _halo_pair(self.halo))
        if any(halo > side for halo, side in zip(self.halo, self.tile_shape)):
            raise ValueError(
                "`halo` must not be larger than `tile_shape`, both in pixels. Received: "
                f"halo={self.halo}, tile_shape={self.tile_shape}."
            )

    @functools.cached_property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        sides = zip(self.size, self.tile_shape, self.halo)
        rows, columns = (max(1, -(-(size - 2 * halo) // tile)) for size, tile, halo in sides)
        return rows, columns

    def __len__(self) -> int:
        return self.shape[0] * self.shape[1]

    def __iter__(self) -> Iterator[Tile]:
        """The tiles, row by row."""
        rows, columns = self.shape
        for row in range(rows):
            for column in range(columns):
                yield self.tile(row, column)

    def tile(self, row: int, column: int) -> Tile:
        """One tile."""
        (y1, y2), (top, bottom) = self._span(0, row)
        (x1, x2), (left, right) = self._span(1, column)
        return Tile(row, column, (x1, y1, x2, y2), (left, top, right, bottom))

    def at(self, x: float, y: float) -> Tile:
        """The tile whose core holds a point of the picture."""
        places = zip((y, x), self.tile_shape, self.halo, self.shape)
        row, column = (
            min(max(int((place - halo) // tile), 0), count - 1)
            for place, tile, halo, count in places
        )
        return self.tile(row, column)

    def cut_sides(self, tile: Tile) -> tuple[bool, bool, bool, bool]:
        """On which sides, left top right bottom, a window ends within the picture."""
        x1, y1, x2, y2 = tile.window
        return x1 > 0, y1 > 0, x2 < self.size[1], y2 < self.size[0]

    def _span(self, axis: int, index: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """From where to where a core, and its window, go along an axis."""
        size, tile, halo = self.size[axis], self.tile_shape[axis], self.halo[axis]
        last = self.shape[axis] - 1
        start = 0 if index == 0 else halo + tile * index
        stop = size if index == last else halo + tile * (index + 1)
        length = min(tile + 2 * halo, size)
        first = min(tile * index, size - length)
        return (start, stop), (first, first + length)


def _halo_pair(halo: Any) -> tuple[int, int]:
    pair = tuple(halo) if isinstance(halo, Sequence) and not isinstance(halo, str) else (halo, halo)
    if len(pair) != 2 or any(int(n) != n for n in pair) or min(pair) < 0:
        raise ValueError(
            "`halo` must be a whole number of pixels from 0 on, or two, for height and width. "
            f"Received: {halo!r}."
        )
    return int(pair[0]), int(pair[1])


def overlap(a: Box, b: Box) -> Box | None:
    """What two boxes share, or None."""
    x1, y1, x2, y2 = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def around(boxes: Sequence[Box]) -> Box:
    """The box around boxes."""
    x1, y1, x2, y2 = zip(*boxes)
    return min(x1), min(y1), max(x2), max(y2)


def moved(box: Sequence[int], x: int, y: int) -> Box:
    """A box whose corner `(x, y)` is the new origin."""
    return box[0] - x, box[1] - y, box[2] - x, box[3] - y
