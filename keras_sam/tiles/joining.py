"""Which masks of neighbouring tiles are one object, and what becomes of it.

Numpy only. Tiles come row by row, and an object is finished when no window that is still to come
can show more of it: only the masks of two or three rows of tiles are in memory.

The rule:

0. Of two masks of one tile whose IoU is above `DUPLICATE`, the one with the higher predicted IoU
   stays. The generator has compared only their boxes, which a stray pixel enlarges.
1. A mask is *cut* if it reaches an edge of its window that is not an edge of the picture.
2. Two masks of different tiles are the same object if they agree where their windows overlap: the
   IoU of what both have there is at least `AGREEMENT`. A mask that is not cut says that the object
   has nothing elsewhere either, so what the other one has elsewhere counts against it: one that
   holds two objects, or the ground, does not swallow what a neighbour shows whole. A mask has at
   most one partner in each other tile, the one with which it agrees best.
3. Of an object that some tiles show whole, the mask of the tile that shows it farthest from the
   edges of its window stays, as it is.
4. An object that is cut in all of them is joined: a pixel is as the tile says in whose core it
   lies, and as its neighbours say where that tile has no mask of the object. Scores are means by
   area.
5. What is still cut after that, as no neighbour has seen how it goes on, is dropped. So is what
   reaches over more than `max_windows` windows' length: the ground that objects lie on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from keras_sam.masks import decode_rle, encode_rle, mask_to_box
from keras_sam.tiles.grid import Box, Tile, TileGrid, around, moved, overlap

AGREEMENT = 0.5
DUPLICATE = 0.7
_EDGE = 20  # pixels from which on a mask reaches an edge, as in Meta's generator for crops
_SEEN = 0.9  # of the pixels at a cut, that a neighbour must have seen


@dataclasses.dataclass(eq=False)
class _Piece:
    """A mask of one tile."""

    tile: Tile
    number: int  # in the order in which they were found
    record: dict  # of the window
    box: Box  # in the picture
    cut: tuple[bool, bool, bool, bool]  # left top right bottom

    def pixels(self, box: Box) -> np.ndarray:
        """The mask in a box of the picture that lies within the window."""
        x, y = self.tile.window[:2]
        return decode_rle(self.record["segmentation"], crop_box=moved(box, x, y))


@dataclasses.dataclass(eq=False)
class _Object:
    """Pieces that are one object; none is kept of one that is too large."""

    pieces: list[_Piece]
    box: Box
    is_too_large: bool = False


class Joiner:
    """Joins the masks of tiles that come row by row.

    Args:
        grid: the `TileGrid`.
        max_windows: float. How many windows' length and width an object may have.
    """

    def __init__(self, grid: TileGrid, max_windows: float = 4):
        self.grid = grid
        self.max_windows = max_windows
        self.dropped = 0  # objects that were cut or too large
        self._count = 0
        self._active: list[tuple[Tile, list[_Piece]]] = []  # whose windows others will overlap
        self._objects: dict[_Piece, _Object] = {}  # of the pieces of objects that are not finished

    def add(self, tile: Tile, records: Sequence[dict]) -> Iterator[dict]:
        """Takes the records of the next tile, with run lengths of its window.

        Yields the records, with run lengths of the picture, of objects that are finished.
        """
        pieces = _without_duplicates(
            [piece for record in records if (piece := self._piece(tile, record))]
        )
        for piece in pieces:
            self._objects[piece] = _Object([piece], piece.box)
        for other, others in self._active:
            shared = overlap(tile.window, other.window)
            if shared is not None:
                for a, b in _partners(others, pieces, shared):
                    self._unite(a, b)
        self._active.append((tile, pieces))
        if tile.column == self.grid.shape[1] - 1:
            yield from self._finish(tile.row)

    def _piece(self, tile, record):
        x, y = tile.window[:2]
        x1, y1, width, height = record["bbox"]  # from inclusive corners
        if not record["area"]:
            return None
        box = moved((x1, y1, x1 + width + 1, y1 + height + 1), -x, -y)
        margin = min(_EDGE, *(halo // 4 for halo in self.grid.halo))
        window = tile.window
        gaps = (box[0] - window[0], box[1] - window[1], window[2] - box[2], window[3] - box[3])
        sides = self.grid.cut_sides(tile)
        cut = tuple(side and gap <= margin for side, gap in zip(sides, gaps))
        self._count += 1
        return _Piece(tile, self._count, record, tuple(int(n) for n in box), cut)

    def _unite(self, a, b):
        one, other = self._objects[a], self._objects[b]
        if one is other:
            return
        if len(one.pieces) < len(other.pieces):
            one, other = other, one
        one.pieces += other.pieces
        one.box = around([one.box, other.box])
        one.is_too_large |= other.is_too_large or self._is_too_large(one.box)
        for piece in other.pieces:
            self._objects[piece] = one

    def _is_too_large(self, box):
        window = self.grid.tile(0, 0).window
        lengths = (box[2] - box[0], box[3] - box[1])
        return any(n > self.max_windows * side for n, side in zip(lengths, window[2:]))

    def _finish(self, row):
        """The records of objects that no later row can show, in the order they were found."""
        below = row + 1
        reach = (
            self.grid.tile(below, 0).window[1] if below < self.grid.shape[0] else self.grid.size[0]
        )
        self._active = [(tile, some) for tile, some in self._active if tile.window[3] > reach]
        waiting = {id(self._objects[piece]) for _, some in self._active for piece in some}
        done = {}
        for piece, found in list(self._objects.items()):
            if id(found) not in waiting:
                done[id(found)] = found
                del self._objects[piece]
            elif found.is_too_large and piece.tile.window[3] <= reach:
                found.pieces.remove(piece)  # its run lengths are not needed any more
                del self._objects[piece]
        for found in done.values():
            record = self._record(found)
            if record is None:
                self.dropped += 1
            else:
                yield record

    def _record(self, found):
        if found.is_too_large:
            return None
        pieces = sorted(found.pieces, key=lambda piece: piece.number)
        whole = [piece for piece in pieces if not any(piece.cut)]
        if whole:
            return self._as_it_is(max(whole, key=self._depth))
        if not all(self._is_continued(piece, pieces) for piece in pieces):
            return None
        return self._joined(pieces, found.box)

    def _depth(self, piece):
        """How far a mask is from the edges of its window that cut objects."""
        (x1, y1, x2, y2), window = piece.box, piece.tile.window
        gaps = (x1 - window[0], y1 - window[1], window[2] - x2, window[3] - y2)
        inner = [gap for gap, side in zip(gaps, self.grid.cut_sides(piece.tile)) if side]
        return min(inner, default=0), -piece.number

    def _is_continued(self, piece, pieces):
        """Whether other tiles show what lies beyond the edges that a mask reaches."""
        margin = max(1, min(_EDGE, *(halo // 4 for halo in self.grid.halo)))
        window, (x1, y1, x2, y2) = piece.tile.window, piece.box
        for side in np.flatnonzero(piece.cut):
            strip = list(piece.box)
            strip[(side + 2) % 4] = (x1 + margin, y1 + margin, x2 - margin, y2 - margin)[side]
            strip = overlap(tuple(strip), piece.box)
            along = 1 - side % 2  # left and right edges go along y, axis 1 of a box
            places = np.flatnonzero(piece.pixels(strip).any(axis=along)) + strip[along]
            seen = np.zeros(len(places), bool)
            for other in pieces:
                beyond = other.tile.window
                farther = beyond[side] < window[side] if side < 2 else beyond[side] > window[side]
                if farther:
                    seen |= (places >= beyond[along]) & (places < beyond[along + 2])
            if seen.mean() < _SEEN:
                return False
        return True

    def _as_it_is(self, piece):
        x, y = piece.tile.window[:2]
        return {
            **piece.record,
            "segmentation": self._run_lengths(piece.pixels(piece.box), piece.box),
            "bbox": _xywh(piece.box),
            "point_coords": _points_of(piece),
            "crop_box": _window_of(piece.tile.window),
        }

    def _joined(self, pieces, box):
        mask = np.zeros((box[3] - box[1], box[2] - box[0]), bool)
        tiles = {(piece.tile.row, piece.tile.column) for piece in pieces}
        decided = np.zeros(mask.shape, bool)  # by the cores of tiles that have a mask of the object
        for row, column in tiles:
            core = overlap(self.grid.tile(row, column).core, box)
            if core is not None:
                decided[_slices(core, box)] = True
        for piece in pieces:
            pixels = piece.pixels(piece.box)
            part = mask[_slices(piece.box, box)]
            part |= pixels & ~decided[_slices(piece.box, box)]
            core = overlap(piece.tile.core, piece.box)
            if core is not None:
                mask[_slices(core, box)] |= pixels[_slices(core, piece.box)]
        if not mask.any():
            return None
        x1, y1, x2, y2 = (int(n) for n in mask_to_box(mask, inclusive=False))
        tight = moved((x1, y1, x2, y2), -box[0], -box[1])
        areas = np.array([piece.record["area"] for piece in pieces], "float64")
        means = {
            name: float(np.average([piece.record[name] for piece in pieces], weights=areas))
            for name in ("predicted_iou", "stability_score")
        }
        return {
            "segmentation": self._run_lengths(mask[y1:y2, x1:x2], tight),
            "area": int(np.count_nonzero(mask)),
            "bbox": _xywh(tight),
            "predicted_iou": means["predicted_iou"],
            "point_coords": [point for piece in pieces for point in _points_of(piece)],
            "stability_score": means["stability_score"],
            "crop_box": _window_of(around([piece.tile.window for piece in pieces])),
        }

    def _run_lengths(self, mask, box):
        return encode_rle(mask, crop_box=box, original_size=self.grid.size)


def _without_duplicates(pieces: list[_Piece]) -> list[_Piece]:
    """Masks of one tile of which none is nearly another one, in their order."""
    if not pieces:
        return []
    worse: set[_Piece] = set()
    ranked = sorted(pieces, key=lambda piece: (-piece.record["predicted_iou"], piece.number))
    rank = {piece: place for place, piece in enumerate(ranked)}
    pairs = [
        sorted((a, b), key=rank.__getitem__)
        for agreement, a, b in _agreements(pieces, pieces, pieces[0].tile.window)
        if agreement > DUPLICATE
    ]
    for better, other in sorted(pairs, key=lambda pair: (rank[pair[0]], rank[pair[1]])):
        if better not in worse:
            worse.add(other)
    return [piece for piece in pieces if piece not in worse]


def _partners(
    some: list[_Piece], others: list[_Piece], shared: Box
) -> Iterator[tuple[_Piece, _Piece]]:
    """Pairs of masks of two tiles that are the same object, at most one for each mask."""
    taken: set[_Piece] = set()
    found = _agreements(some, others, shared)
    for _, a, b in sorted(found, key=lambda pair: (-pair[0], pair[1].number, pair[2].number)):
        if a not in taken and b not in taken:
            taken |= {a, b}
            yield a, b


def _agreements(
    some: list[_Piece], others: list[_Piece], shared: Box
) -> Iterator[tuple[float, _Piece, _Piece]]:
    """The IoU in a box of every two masks for which it is at least `AGREEMENT`.

    Beside a mask that is not cut, all of the other one counts.
    """
    shown: dict[_Piece, tuple[np.ndarray, Box, int]] = {}
    for piece in (*some, *others):
        box = overlap(piece.box, shared)
        if box is not None and piece not in shown:
            pixels = piece.pixels(box)
            shown[piece] = (pixels, box, int(np.count_nonzero(pixels)))
    for a in some:
        for b in others:
            if a not in shown or b not in shown or (some is others and a.number >= b.number):
                continue
            (pixels_a, box_a, area_a), (pixels_b, box_b, area_b) = shown[a], shown[b]
            area_a = area_a if any(b.cut) else a.record["area"]
            area_b = area_b if any(a.cut) else b.record["area"]
            both = overlap(box_a, box_b)
            if both is None or min(area_a, area_b) < AGREEMENT * max(area_a, area_b):
                continue
            common = pixels_a[_slices(both, box_a)] & pixels_b[_slices(both, box_b)]
            count = int(np.count_nonzero(common))
            if count and count >= AGREEMENT * (area_a + area_b - count):
                yield count / (area_a + area_b - count), a, b


def _slices(box: Box, of: Box) -> tuple[slice, slice]:
    """Rows and columns of a box in an array that shows another."""
    x1, y1, x2, y2 = moved(box, *of[:2])
    return slice(y1, y2), slice(x1, x2)


def _xywh(box: Box) -> list[int]:
    """A record's `bbox`, from inclusive corners."""
    return [box[0], box[1], box[2] - box[0] - 1, box[3] - box[1] - 1]


def _window_of(box: Box) -> list[int]:
    """A record's `crop_box`."""
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def _points_of(piece: _Piece) -> list[list[float]]:
    """The clicks of a mask in the picture."""
    x, y = piece.tile.window[:2]
    return [[px + x, py + y] for px, py in piece.record["point_coords"]]
