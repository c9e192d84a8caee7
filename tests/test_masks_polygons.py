"""Polygons with holes both ways, in COCO's and YOLO's form."""

import numpy as np
import pytest
from pycocotools import mask as coco
from scipy import ndimage

from keras_sam import masks as tools
from tests.mask_samples import mask_stacks

pytestmark = pytest.mark.once


def single_masks(count, seed=0):
    return (stack[0] for stack in mask_stacks(count, seed))


def signed_area(ring):
    """Positive for rings that run clockwise on the screen (y points down)."""
    x, y = ring[:, 0], ring[:, 1]
    return (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2


def test_round_trip():
    for mask in single_masks(200):
        polygons = tools.mask_to_polygons(mask)
        np.testing.assert_array_equal(tools.polygons_to_mask(polygons, mask.shape), mask)


def test_parts_and_holes_are_those_of_the_labelled_mask():
    holes_seen = 0
    for mask in single_masks(150, seed=1):
        polygons = tools.mask_to_polygons(mask)
        labels, parts = ndimage.label(mask, np.ones((3, 3)))
        assert len(polygons) == parts
        # Where pixels that touch at a corner are connected, those around them are not.
        _, background = ndimage.label(np.pad(~mask, 1, constant_values=True))
        assert sum(len(rings) - 1 for rings in polygons) == background - 1
        holes_seen += background - 1
        for rings in polygons:  # each hole lies in its own part
            alone = tools.polygons_to_mask([rings], mask.shape)
            assert len(np.unique(labels[alone])) == 1
            assert alone.sum() == sum(signed_area(ring) for ring in rings)
    assert holes_seen > 50


def test_outlines_run_clockwise_and_holes_against():
    mask = np.ones((5, 7), bool)
    mask[2, 2:4] = mask[1:3, 5] = False
    (rings,) = tools.mask_to_polygons(mask)
    assert [signed_area(ring) for ring in rings] == [35, -2, -2]
    assert rings[0].tolist() == [[0, 0], [7, 0], [7, 5], [0, 5]]


def test_no_corner_is_kept_on_a_straight_edge():
    for mask in single_masks(100, seed=2):
        for ring in (ring for rings in tools.mask_to_polygons(mask) for ring in rings):
            steps = np.roll(ring, -1, axis=0) - ring
            assert ((steps != 0).sum(axis=1) == 1).all()  # along one axis each
            assert ((steps[:, 0] != 0) != (np.roll(steps, 1, axis=0)[:, 0] != 0)).all()


def test_coco_polygons_keep_holes():
    for mask in single_masks(120, seed=4):
        flat = tools.polygons_to_coco(tools.mask_to_polygons(mask))
        assert all(isinstance(n, float | int) for polygon in flat for n in polygon)
        np.testing.assert_array_equal(tools.polygons_to_mask(flat, mask.shape), mask)
        if flat:
            runs = coco.merge(coco.frPyObjects(flat, *mask.shape))
            np.testing.assert_array_equal(coco.decode(runs), mask)


def test_yolo_rings_keep_parts_and_holes_in_seven_digits():
    for mask in single_masks(120, seed=5):
        values = tools.polygons_to_yolo(tools.mask_to_polygons(mask), mask.shape)
        if not mask.any():
            assert values == []
            continue
        assert min(values) >= 0 and max(values) <= 1
        written = [float(f"{value:.7g}") for value in values]
        ((ring,),) = tools.yolo_to_polygons(written, mask.shape)
        np.testing.assert_array_equal(tools.polygons_to_mask([[ring]], mask.shape), mask)
        runs = coco.frPyObjects([ring.reshape(-1).tolist()], *mask.shape)
        np.testing.assert_array_equal(coco.decode(runs)[..., 0], mask)


def test_filling_equals_pycocotools():
    rng = np.random.default_rng(0)
    filled = 0
    for number in range(1500):
        h, w = (int(n) for n in rng.integers(1, 60, 2))
        # Crossing themselves and leaving the image on all sides; on pixels, tenths, and anywhere.
        ring = rng.uniform(-15, 75, (int(rng.integers(3, 12)), 2)).round([0, 1, 6][number % 3])
        ours = tools.polygons_to_mask([ring], (h, w))
        expected = coco.decode(coco.frPyObjects([ring.reshape(-1).tolist()], h, w))[..., 0]
        np.testing.assert_array_equal(ours, expected)
        filled += expected.any() and not expected.all()
    assert filled > 500


def test_polygons_unite_and_rings_of_one_polygon_do_not():
    outer, inner = [[0, 0], [4, 0], [4, 4], [0, 4]], [[1, 1], [3, 1], [3, 3], [1, 3]]
    ring = np.ones((4, 4), bool)
    ring[1:3, 1:3] = False
    np.testing.assert_array_equal(tools.polygons_to_mask([[outer, inner]], (4, 4)), ring)
    assert tools.polygons_to_mask([outer, inner], (4, 4)).all()


def test_every_form_of_a_polygon_is_read():
    ring = [[1, 0], [3, 0], [3, 2], [1, 2]]
    flat = [1, 0, 3, 0, 3, 2, 1, 2]
    expected = np.zeros((3, 4), bool)
    expected[:2, 1:3] = True
    for form in (ring, flat, np.array(ring), [ring], [flat], [np.array(ring, "float32")]):
        np.testing.assert_array_equal(tools.polygons_to_mask([form], (3, 4)), expected)
    triangle = [[0, 0], [4, 0], [0, 3]]
    ragged = [ring, triangle]  # rings of different lengths
    assert tools.polygons_to_mask([ragged], (3, 4)).any()
    assert not tools.polygons_to_mask([], (3, 4)).any()


def test_simplified_outlines_stay_within_the_tolerance():
    y, x = np.mgrid[:120, :160]
    mask = ((x - 80) / 70) ** 2 + ((y - 60) / 45) ** 2 < 1
    mask &= ((x - 60) / 12) ** 2 + ((y - 60) / 9) ** 2 > 1
    exact = tools.mask_to_polygons(mask)
    corners = [sum(len(ring) for ring in exact[0])]
    for tolerance in (1.0, 2.0, 4.0):
        (rings,) = tools.mask_to_polygons(mask, tolerance)
        assert len(rings) == 2
        corners.append(sum(len(ring) for ring in rings))
        for ring, full in zip(rings, exact[0], strict=True):
            assert {tuple(p) for p in ring} <= {tuple(p) for p in full}
            assert distance_to_ring(full, ring).max() <= tolerance
    assert corners == sorted(corners, reverse=True)
    assert corners[1] < corners[0] / 4


def distance_to_ring(points, ring):
    """Distance of each point to the nearest segment of a closed ring."""
    start, end = ring.astype(float), np.roll(ring, -1, axis=0).astype(float)
    along = ((points[:, None] - start) * (end - start)).sum(-1) / ((end - start) ** 2).sum(-1)
    nearest = start + np.clip(along, 0, 1)[..., None] * (end - start)
    return np.linalg.norm(points[:, None] - nearest, axis=-1).min(axis=1)


def test_rings_that_would_collapse_are_kept():
    mask = np.zeros((9, 9), bool)
    mask[4, 4] = True
    (rings,) = tools.mask_to_polygons(mask, tolerance=50)
    assert rings[0].tolist() == [[4, 4], [5, 4], [5, 5], [4, 5]]


BAD_POLYGONS = [
    ([[0, 0, 5, 5]], "at least 3 points"),  # a line
    ([[0, 0, 5, 5, 5]], "at least 3 points"),  # half a point
    ([[[0, 0, 1], [5, 5, 1], [5, 0, 1]]], "at least 3 points"),  # three coordinates
    ([[[0, 0], [float("nan"), 5], [5, 0]]], "at least 3 points"),  # not a number
    ([[]], "at least 3 points"),  # nothing
]


@pytest.mark.parametrize(("polygons", "words"), BAD_POLYGONS)
def test_what_is_no_polygon_is_refused(polygons, words):
    with pytest.raises(ValueError, match=words):
        tools.polygons_to_mask(polygons, (9, 9))


def test_tracing_refuses_stacks_logits_and_negative_tolerances():
    with pytest.raises(ValueError, match="must have shape"):
        tools.mask_to_polygons(np.ones((2, 3, 4), bool))
    with pytest.raises(ValueError, match="binary masks"):
        tools.mask_to_polygons(np.ones((3, 4)))
    with pytest.raises(ValueError, match="at least 0 pixels"):
        tools.mask_to_polygons(np.ones((3, 4), bool), tolerance=-1)
    with pytest.raises(ValueError, match="two positive integers"):
        tools.polygons_to_mask([], (0, 4))
