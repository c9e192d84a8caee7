"""Point grids, crops, box overlap and suppression, against Meta's code and plain loops."""

import math

import numpy as np
import pytest

from keras_sam import boxes as tools
from tests.meta_oracle import import_segment_anything

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def amg():
    import_segment_anything()
    from segment_anything.utils import amg

    return amg


def test_point_grids_equal_metas(amg):
    for n in (1, 2, 3, 7, 16, 32, 33, 100):
        np.testing.assert_array_equal(tools.build_point_grid(n), amg.build_point_grid(n))
    for n, layers, factor in [(32, 0, 1), (32, 2, 1), (32, 2, 2), (33, 3, 2), (9, 1, 3)]:
        ours = tools.build_layer_point_grids(n, layers, factor)
        expected = amg.build_all_layer_point_grids(n, layers, factor)
        assert len(ours) == layers + 1
        for one, other in zip(ours, expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_crops_equal_metas(amg):
    for size in [(100, 100), (333, 500), (1200, 1800), (1801, 77), (64, 1024), (17, 19)]:
        for layers in (0, 1, 2, 3):
            for ratio in (512 / 1500, 0.0, 0.5):
                expected, expected_layers = amg.generate_crop_boxes(size, layers, ratio)
                if any(x1 >= x2 or y1 >= y2 for x1, y1, x2, y2 in expected):
                    assert size == (17, 19)  # Meta returns empty crops and fails on them later
                    with pytest.raises(ValueError, match="too small for 3 layers"):
                        tools.generate_crop_boxes(size, layers, ratio)
                    continue
                boxes, layer_of = tools.generate_crop_boxes(size, layers, ratio)
                assert boxes.tolist() == [list(box) for box in expected]
                assert layer_of.tolist() == expected_layers


def test_crops_cover_the_image_with_no_pixel_left_out():
    boxes, layers = tools.generate_crop_boxes((61, 83), 3)
    assert np.bincount(layers).tolist() == [1, 4, 16, 64]
    for layer in range(4):
        covered = np.zeros((61, 83), bool)
        for x1, y1, x2, y2 in boxes[layers == layer]:
            covered[y1:y2, x1:x2] = True
        assert covered.all()


def test_from_a_crop_to_the_image_as_meta(amg):
    import torch

    rng = np.random.default_rng(0)
    crop, boxes = [30, 20, 70, 95], rng.integers(0, 40, (5, 4))
    expected = amg.uncrop_boxes_xyxy(torch.from_numpy(boxes), crop).numpy()
    np.testing.assert_array_equal(tools.uncrop_boxes(boxes, crop), expected)


def test_boxes_near_a_crops_edge_equal_metas(amg):
    import torch

    rng = np.random.default_rng(0)
    size = (300, 400)
    crops = [[0, 0, 400, 300], [0, 0, 230, 180], [170, 120, 400, 300], [100, 100, 300, 250]]
    found = set()
    for crop in crops:
        w, h = crop[2] - crop[0], crop[3] - crop[1]
        x, y = np.sort(rng.integers(0, w, (500, 2))), np.sort(rng.integers(0, h, (500, 2)))
        boxes = np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=-1)
        boxes[:4] = [[20, 21, 50, 50], [21, 21, 50, 50], [50, 50, w - 20, 60], [50, 50, w - 21, 60]]
        for tolerance in (20.0, 3.0):
            whole = [0, 0, size[1], size[0]]
            expected = amg.is_box_near_crop_edge(
                torch.from_numpy(boxes), crop, whole, tolerance
            ).numpy()
            ours = tools.boxes_near_crop_edge(boxes, crop, size, tolerance)
            np.testing.assert_array_equal(ours, expected)
            found |= set(ours.tolist())
    assert found == {True, False}
    assert not tools.boxes_near_crop_edge(boxes, crops[0], size).any()  # the image has no crop edge
    assert tools.boxes_near_crop_edge([], crops[1], size).shape == (0,)


def random_boxes(rng, n):
    """Boxes on a small grid: many overlap, some are equal, some have no area."""
    corners = rng.integers(0, 12, (n, 2))
    return np.concatenate([corners, corners + rng.integers(0, 8, (n, 2))], axis=1)


def slow_iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return np.float32(shared) / np.float32(union) if union > 0 else np.float32(0)


def slow_nms(boxes, scores, threshold):
    """The rule said slowly: in the order of score, then index, keep what no kept box overlaps."""
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        if all(slow_iou(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


def test_box_overlap_equals_a_plain_loop():
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 30), random_boxes(rng, 20)
    expected = [[slow_iou(one, other) for other in b] for one in a]
    np.testing.assert_array_equal(tools.box_iou(a, b), np.array(expected))
    np.testing.assert_array_equal(tools.box_iou(a), tools.box_iou(a, a))
    assert tools.box_iou([], a).shape == (0, 30)
    assert tools.box_iou(a, []).shape == (30, 0)
    assert tools.box_area(a).tolist() == [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in a]


def test_nms_equals_brute_force():
    rng = np.random.default_rng(1)
    for _ in range(150):
        boxes = random_boxes(rng, int(rng.integers(1, 40)))
        scores = rng.integers(0, 6, len(boxes)) / 5  # with ties
        for threshold in (0.0, 0.5, 0.7, 1.0):
            kept = tools.nms(boxes, scores, threshold)
            assert kept.tolist() == slow_nms(boxes.tolist(), scores, threshold)


def test_nms_equals_metas_torch_functions(amg):
    import torch
    from segment_anything import automatic_mask_generator as meta

    rng = np.random.default_rng(2)
    for _ in range(30):
        boxes, scores = rng.uniform(0, 60, (60, 2)), rng.random(60).astype("float32")
        boxes = np.concatenate([boxes, boxes + rng.uniform(1, 40, (60, 2))], axis=1)
        boxes = boxes.astype("float32")
        one_group = torch.zeros(60)
        expected = meta.batched_nms(
            torch.from_numpy(boxes), torch.from_numpy(scores), one_group, 0.5
        )
        assert tools.nms(boxes, scores, 0.5).tolist() == expected.tolist()


def test_equal_scores_keep_the_earlier_and_boxes_without_area_suppress_nothing():
    box, dot = [0, 0, 4, 4], [2, 2, 2, 2]
    assert tools.nms([box, box, box], [0.5, 0.9, 0.9], 0.7).tolist() == [1]
    assert tools.nms([dot, dot, box], [0.5, 0.9, 0.1], 0.7).tolist() == [1, 0, 2]
    assert tools.nms([box, box], [np.nan, 0.1], 0.7).tolist() == [1]  # NaN comes last
    touching = [[0, 0, 10, 10], [0, 0, 10, 5]]
    assert tools.nms(touching, [1, 0], 0.5).tolist() == [0, 1]  # `>`: exactly 0.5 stays
    assert tools.nms(touching, [1, 0], 0.49).tolist() == [0]


def test_no_boxes_give_no_indices():
    for kept in (
        tools.nms([], []),
        tools.nms(np.zeros((0, 4)), np.zeros(0)),
        tools.nms_across_crops([], []),
    ):
        assert kept.shape == (0,) and kept.dtype == "int64"


def test_across_crops_the_smaller_crop_wins():
    whole, corner, other = [0, 0, 100, 80], [0, 0, 60, 50], [40, 0, 100, 50]
    box, twin, apart = [45, 5, 55, 15], [45, 5, 55, 16], [70, 20, 90, 40]
    boxes, crops = [box, twin, apart, box], [whole, corner, whole, other]
    # Both crops have one area: the earlier of the two stays, and the whole image comes last.
    assert tools.nms_across_crops(boxes, crops, 0.7).tolist() == [1, 2]
    assert tools.nms_across_crops(boxes, crops, 0.95).tolist() == [1, 3, 2]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: tools.build_point_grid(0), "at least 1"),  # a grid without points
        (lambda: tools.build_layer_point_grids(4, 3, 2), r"leaves \[4, 2, 1, 0\]"),  # 4/2/2/2
        (lambda: tools.build_layer_point_grids(4, -1), "at least 0"),  # negative layers
        (lambda: tools.build_layer_point_grids(4, 1, 0), "at least 1"),  # a factor of nothing
        (lambda: tools.generate_crop_boxes((3, 3), 2), "too small"),  # crops without a pixel
        (lambda: tools.generate_crop_boxes((0, 3), 0), "must not be empty"),  # no image
        (lambda: tools.generate_crop_boxes((9, 9), -1), "at least 0"),  # negative layers
        (lambda: tools.generate_crop_boxes((9, 9), 1, 1.0), r"in \[0, 1\)"),  # all overlap
        (lambda: tools.nms([[0, 0, 1, 1]], [0.5, 0.5]), "one number per box"),  # a score too many
        (lambda: tools.nms([[0, 0, 1]], [0.5]), "must have shape"),  # three sides
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_suppression_of_thousands_of_boxes_equals_brute_force_on_their_overlaps():
    rng = np.random.default_rng(4)
    corners = rng.uniform(0, 900, (1500, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 300, (1500, 2))], axis=1)
    scores = rng.random(1500)
    overlap = tools.box_iou(boxes)
    kept = []
    for i in np.argsort(-scores):
        if not kept or overlap[i, kept].max() <= 0.5:
            kept.append(int(i))
    assert tools.nms(boxes, scores, 0.5).tolist() == kept
    assert math.isclose(overlap.max(), 1)
