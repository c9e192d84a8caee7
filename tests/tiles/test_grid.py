"""The tiles of a picture: cores divide it, windows of one size surround them."""

import numpy as np
import pytest

from keras_sam.tiles.grid import TileGrid

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("size", "tile", "halo"),
    [
        ((301, 403), 64, 16),
        ((64, 1000), (50, 70), (0, 35)),  # a strip, and halos of their own
        ((95, 97), 64, 16),  # one window and a little
        ((10, 12), 64, 16),  # smaller than a tile
    ],
)
def test_cores_divide_the_picture_within_windows_of_one_size(size, tile, halo):
    grid = TileGrid(size, tile, halo)
    times = np.zeros(size, int)
    shapes = set()
    for one in grid:
        x1, y1, x2, y2 = one.core
        times[y1:y2, x1:x2] += 1
        left, top, right, bottom = one.window
        assert grid.at(x1, y1) == grid.at(x2 - 0.5, y2 - 0.5) == one
        shapes.add((bottom - top, right - left))
        gaps = (x1 - left, y1 - top, right - x2, bottom - y2)
        halos = (grid.halo[1], grid.halo[0]) * 2
        for gap, needed, cut in zip(gaps, halos, grid.cut_sides(one), strict=True):
            assert gap >= (needed if cut else 0)
    assert (times == 1).all()
    assert len(shapes) == 1 and len(grid) == len(list(grid))


def test_a_picture_that_fits_one_window_is_one_tile():
    (tile,) = TileGrid((96, 80), 64, 16)
    assert tile.core == tile.window == (0, 0, 80, 96)


@pytest.mark.parametrize(
    ("tile", "halo", "words"),
    [
        (64, 65, r"`halo` must not be larger than `tile_shape`.*halo=\(65, 65\), tile_shape=\(64"),
        (64, -1, r"`halo` must be a whole number of pixels from 0 on.*Received: -1"),
        ((64, 64), (3, 3, 3), r"`halo` must be"),
        (0, 0, r"`tile_shape` must be two positive integers"),
    ],
)
def test_what_makes_no_tiles_is_refused(tile, halo, words):
    with pytest.raises(ValueError, match=words):
        TileGrid((100, 100), tile, halo)
