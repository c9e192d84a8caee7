"""Which masks of tiles are one object: with tiles that show exactly what is there."""

import numpy as np
import pytest

from keras_sam.masks import decode_rle, encode_rle, mask_to_box
from keras_sam.tiles.grid import TileGrid
from keras_sam.tiles.joining import Joiner
from tests.scenes import scene

pytestmark = pytest.mark.once


def record_of(mask, score=0.9):
    x1, y1, x2, y2 = (int(n) for n in mask_to_box(mask))
    return {
        "segmentation": encode_rle(mask),
        "area": int(mask.sum()),
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "predicted_iou": score,
        "point_coords": np.argwhere(mask)[:1, ::-1].tolist(),
        "stability_score": 1.0,
        "crop_box": [0, 0, mask.shape[1], mask.shape[0]],
    }


def seen(masks, tile, missing=()):
    """The records of a tile in which every object is found that it shows, but for `missing`."""
    x1, y1, x2, y2 = tile.window
    return [
        record_of(part)
        for number, mask in enumerate(masks)
        if (part := mask[y1:y2, x1:x2]).any() and (number, tile.row, tile.column) not in missing
    ]


def joined(masks, grid, missing=(), **settings):
    joiner = Joiner(grid, **settings)
    records = [record for tile in grid for record in joiner.add(tile, seen(masks, tile, missing))]
    return records, joiner


def rectangle(size, x1, y1, x2, y2):
    mask = np.zeros(size, bool)
    mask[y1:y2, x1:x2] = True
    return mask


@pytest.mark.parametrize(
    ("tile", "halo"),
    [
        (96, 40),  # most objects are whole in a window
        (64, 12),  # many are larger than what windows share
        (40, 40),  # windows overlap those after the next
        ((50, 110), (20, 30)),  # sides of their own
    ],
)
def test_every_object_comes_out_once_and_whole(tile, halo):
    _, masks = scene((301, 403), (6, 7), 2, filled=1.0)
    grid = TileGrid((301, 403), tile, halo)
    records, joiner = joined(masks, grid)
    assert len(grid) > 5 and joiner.dropped == 0
    found = decode_rle([record["segmentation"] for record in records])
    key = lambda mask: mask.tobytes()  # noqa: E731
    assert sorted(map(key, found)) == sorted(map(key, masks))
    for record, mask in zip(records, found, strict=True):
        x1, y1, x2, y2 = mask_to_box(mask).tolist()
        assert record["bbox"] == [x1, y1, x2 - x1, y2 - y1]
        assert record["area"] == mask.sum()
        assert record["point_coords"] and all(mask[y, x] for x, y in record["point_coords"])


def test_memory_holds_a_few_rows_of_tiles():
    _, masks = scene((600, 90), (14, 2), 4, filled=1.0)
    grid = TileGrid((600, 90), 40, 12)
    joiner, most = Joiner(grid), 0
    for tile in grid:
        done = list(joiner.add(tile, seen(masks, tile)))
        most = max(most, len(joiner._objects))
    assert done and len(joiner._objects) == 0
    assert most < len(masks)


def test_a_large_object_is_as_each_tile_says_in_its_core():
    size = (100, 400)
    grid = TileGrid(size, (100, 80), (0, 20))
    long = rectangle(size, 30, 20, 330, 60)
    joiner, records = Joiner(grid), []
    for tile in grid:
        part = seen([long], tile)
        if tile.column == 1:  # its mask reaches farther down
            x1, _, x2, _ = tile.window
            part = [record_of(rectangle(size, 30, 20, 330, 70)[:, x1:x2], 0.5)]
        records += joiner.add(tile, part)
    (record,) = records
    mask = decode_rle(record["segmentation"])
    x1, _, x2, _ = grid.tile(0, 1).core
    expected = long.copy()
    expected[60:70, x1:x2] = True
    np.testing.assert_array_equal(mask, expected)
    assert 0.5 < record["predicted_iou"] < 0.9


def test_what_a_tile_has_missed_is_filled_by_neighbours_or_the_object_is_dropped():
    size = (100, 400)
    grid = TileGrid(size, (100, 80), (0, 20))
    long = rectangle(size, 30, 20, 330, 60)
    records, joiner = joined([long], grid, missing={(0, 0, 3)})  # its right end
    assert records == [] and joiner.dropped == 2  # the part on each side of the gap is cut


def test_the_ground_is_dropped_and_what_lies_on_it_stays():
    size = (300, 300)
    thing = rectangle(size, 140, 140, 160, 160)
    ground = ~thing
    grid = TileGrid(size, 40, 10)
    records, joiner = joined([ground, thing], grid)
    assert [record["area"] for record in records] == [400] and joiner.dropped == 1
    records, joiner = joined([ground, thing], grid, max_windows=6)
    assert sorted(record["area"] for record in records) == [400, 300 * 300 - 400]


@pytest.mark.parametrize("is_ground", [False, True])
def test_a_mask_of_two_objects_does_not_swallow_those_that_neighbours_show_whole(is_ground):
    size = (60, 260)
    one, other = rectangle(size, 82, 5, 115, 55), rectangle(size, 145, 5, 185, 55)
    both = one | other | rectangle(size, 115, 20, 145, 40)
    if is_ground:
        both[:, 80:200] = True
    grid = TileGrid(size, (60, 80), (0, 20))
    joiner, records = Joiner(grid), []
    assert [tile.window[::2] for tile in grid] == [(0, 120), (80, 200), (140, 260)]
    for tile, masks in zip(grid, ([one], [both], [other]), strict=True):
        records += joiner.add(tile, seen(masks, tile))
    found = decode_rle([record["segmentation"] for record in records])
    assert {mask.tobytes() for mask in found} >= {one.tobytes(), other.tobytes()}


def test_nearly_the_same_mask_of_one_tile_counts_once():
    size = (90, 90)
    better, worse = rectangle(size, 10, 10, 30, 30), rectangle(size, 10, 10, 30, 31)
    worse[85, 85] = True  # a stray pixel: the boxes differ
    inner = rectangle(size, 12, 12, 27, 28)  # a part: 60 % of it
    grid = TileGrid(size, 60, 10)
    joiner, records = Joiner(grid), []
    for tile in grid:
        x1, y1, x2, y2 = tile.window
        parts = [(worse, 0.8), (better, 0.9), (inner, 0.7)]
        records += joiner.add(
            tile,
            [record_of(m[y1:y2, x1:x2], s) for m, s in parts if m[y1:y2, x1:x2].any()],
        )
    assert [record["area"] for record in records] == [400, 240]
