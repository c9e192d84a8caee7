"""Areas, boxes, overlaps, stability and the candidate filter, against pycocotools and Meta."""

import warnings

import numpy as np
import pytest
from pycocotools import mask as coco

from keras_sam import boxes as box_tools
from keras_sam import masks as tools
from tests.mask_samples import blobs, mask_stacks
from tests.meta_oracle import import_segment_anything

pytestmark = pytest.mark.once


def test_area_of_masks_and_run_lengths_equals_pycocotools():
    for stack in mask_stacks(120):
        expected = coco.area(coco.encode(np.asfortranarray(stack.transpose(1, 2, 0).view("u1"))))
        encoded = tools.encode_rle(stack)
        np.testing.assert_array_equal(tools.mask_area(stack), expected)
        np.testing.assert_array_equal(tools.mask_area(encoded), expected)
        assert tools.mask_area(encoded[0]) == tools.mask_area(stack[0]) == expected[0]


def test_inclusive_box_equals_metas():
    import_segment_anything()
    import torch
    from segment_anything.utils.amg import batched_mask_to_box

    for stack in mask_stacks(150, seed=1):
        expected = batched_mask_to_box(torch.from_numpy(stack)).numpy()
        np.testing.assert_array_equal(tools.mask_to_box(stack), expected)
        np.testing.assert_array_equal(tools.mask_to_box(stack[0]), expected[0])
        np.testing.assert_array_equal(tools.mask_to_box(stack[:, None]), expected[:, None])


def test_exclusive_box_equals_pycocotools():
    for stack in mask_stacks(120, seed=2):
        encoded = coco.encode(np.asfortranarray(stack.transpose(1, 2, 0).view("u1")))
        expected = coco.toBbox(encoded)  # x y width height
        ours = tools.mask_to_box(stack, inclusive=False)
        np.testing.assert_array_equal(ours[:, 2:] - ours[:, :2], expected[:, 2:])
        filled = expected[:, 2] > 0
        np.testing.assert_array_equal(ours[filled, :2], expected[filled, :2])
        assert (ours[~filled] == 0).all()


def test_box_of_run_lengths_equals_box_of_the_mask():
    for stack in mask_stacks(150, seed=3):
        for compressed in (True, False):
            encoded = tools.encode_rle(stack, compressed)
            for inclusive in (True, False):
                expected = tools.mask_to_box(stack, inclusive)
                np.testing.assert_array_equal(tools.mask_to_box(encoded, inclusive), expected)
                np.testing.assert_array_equal(tools.mask_to_box(encoded[0], inclusive), expected[0])


def test_runs_of_no_length_do_not_move_the_box():
    # Pixel (1, 1) of 3 x 3, with empty runs at both ends and inside.
    counts = [0, 0, 4, 0, 0, 1, 4, 0]
    assert tools.mask_to_box({"size": [3, 3], "counts": counts}).tolist() == [1, 1, 1, 1]


def test_overlap_equals_pycocotools_in_every_form():
    rng = np.random.default_rng(0)
    for _ in range(40):
        h, w = rng.integers(1, 40, 2)
        a, b = rng.random((5, h, w)) < 0.6, rng.random((3, h, w)) < 0.3
        a[0] = b[0] = False  # nothing and nothing have nothing in common: 0, not NaN
        runs_a, runs_b = tools.encode_rle(a), tools.encode_rle(b, compressed=False)
        as_bytes = [
            [{**one, "counts": tools.compress_rle(one)["counts"].encode()} for one in runs]
            for runs in (runs_a, runs_b)
        ]
        expected = np.asarray(coco.iou(*as_bytes, [0] * 3)).reshape(5, 3)
        records = [{"segmentation": one, "area": -1} for one in runs_a]
        for ours in (a, list(a), runs_a, records, iter(runs_a)):
            np.testing.assert_allclose(tools.mask_iou(ours, runs_b), expected, atol=1e-7)
        np.testing.assert_array_equal(tools.mask_iou(a), tools.mask_iou(a, a))


def test_overlap_counts_every_chunk_of_a_large_image_once():
    # 1.2 million pixels: four full products and a rest.
    a = np.zeros((2, 1001, 1201), bool)
    a[0, :, :600] = True
    a[1, 500:] = True
    expected = 501 * 600 / (1001 * 600 + 501 * 1201 - 501 * 600)
    np.testing.assert_allclose(tools.mask_iou(a)[0, 1], expected, rtol=1e-6)
    np.testing.assert_array_equal(np.diag(tools.mask_iou(a)), 1)


def test_overlap_of_no_masks_is_an_empty_matrix():
    some = np.ones((2, 3, 4), bool)
    assert tools.mask_iou(some, []).shape == (2, 0)
    assert tools.mask_iou([], some).shape == (0, 2)
    assert tools.mask_iou([]).shape == (0, 0)


def test_overlap_refuses_masks_of_different_sizes():
    with pytest.raises(ValueError, match="one size"):
        tools.mask_iou([np.ones((2, 3), bool), np.ones((3, 2), bool)])
    with pytest.raises(ValueError, match="of one size"):
        tools.mask_iou(np.ones((1, 2, 3), bool), np.ones((1, 3, 2), bool))


def test_stability_equals_metas_and_nothing_over_nothing_is_nan():
    import_segment_anything()
    import torch
    from segment_anything.utils.amg import calculate_stability_score

    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (4, 3, 17, 31)).astype("float32")
    logits[0, 0] = -5  # outside at either threshold
    logits[0, 1] = 1.0  # `>`: exactly at the upper threshold is outside
    for threshold, offset in [(0.0, 1.0), (0.5, 2.0), (-1.0, 0.25)]:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ours = tools.stability_score(logits, threshold, offset)
        expected = calculate_stability_score(torch.from_numpy(logits), threshold, offset).numpy()
        np.testing.assert_array_equal(ours, expected)
        assert np.isnan(ours[0, 0])
        assert ours.dtype == "float32"
    assert tools.stability_score(logits)[0, 1] == 0
    assert not tools.stability_score(logits)[0, 0] >= 0.95  # so the filter drops it


def test_stability_of_one_mask_needs_no_batch_and_one_row_is_no_mask():
    assert tools.stability_score([[2.0, 0.0], [-2.0, 3.0]]) == np.float32(2 / 3)
    with pytest.raises(ValueError, match="must have shape"):
        tools.stability_score([1.0, 2.0])


def candidates(seed=0):
    """Logits of 12 blobs in a 60 x 80 crop, sharp ones and soft ones, and scores on both sides."""
    rng = np.random.default_rng(seed)
    inside = blobs(rng.random((12, 60, 80)), passes=30)
    inside[:4, :25] = inside[:4, -25:] = inside[:4, :, :25] = inside[:4, :, -25:] = False
    steepness = np.where(np.arange(12) % 3 == 0, 0.9, 6)[:, None, None]
    logits = np.where(inside, steepness, -steepness) + rng.normal(0, 0.4, inside.shape)
    logits[5] = -9  # empty: 0/0
    return logits.astype("float32").reshape(4, 3, 60, 80), rng.uniform(0.8, 1, (4, 3))


def metas_filter(logits, scores, size, crop_box, iou_thresh, stability_thresh):
    """The oracle: the steps of `_process_batch` after the model, with Meta's own functions."""
    import torch
    from segment_anything.utils import amg

    data = amg.MaskData(
        masks=torch.from_numpy(logits).flatten(0, 1),
        iou_preds=torch.from_numpy(scores.astype("float32")).flatten(),
        indices=torch.arange(scores.size),
    )
    if iou_thresh > 0.0:
        data.filter(data["iou_preds"] > iou_thresh)
    data["stability_score"] = amg.calculate_stability_score(data["masks"], 0.0, 1.0)
    if stability_thresh > 0.0:
        data.filter(data["stability_score"] >= stability_thresh)
    data["masks"] = data["masks"] > 0.0
    data["boxes"] = amg.batched_mask_to_box(data["masks"])
    keep = ~amg.is_box_near_crop_edge(data["boxes"], crop_box, [0, 0, size[1], size[0]])
    if not torch.all(keep):
        data.filter(keep)
    data["masks"] = amg.uncrop_masks(data["masks"], crop_box, *size)
    data["boxes"] = amg.uncrop_boxes_xyxy(data["boxes"], crop_box)
    return data


@pytest.mark.parametrize(
    ("crop_box", "size", "thresholds"),
    [
        ([0, 0, 80, 60], (60, 80), (0.88, 0.95)),  # the whole image: no edge filter
        ([30, 40, 110, 100], (200, 210), (0.88, 0.95)),  # inside: the edge filter drops some
        ([0, 40, 80, 100], (100, 210), (0.88, 0.95)),  # two sides are the image's own
        ([30, 40, 110, 100], (200, 210), (0.0, 0.95)),  # 0 switches the score filter off
        ([30, 40, 110, 100], (200, 210), (0.88, 0.0)),  # and the stability filter, NaN included
        ([30, 40, 110, 100], (200, 210), (1.0, 0.95)),  # nothing is left
    ],
)
def test_filter_keeps_what_metas_generator_keeps(crop_box, size, thresholds):
    import_segment_anything()
    logits, scores = candidates()
    expected = metas_filter(logits, scores, size, crop_box, *thresholds)
    kept = tools.filter_masks(logits, scores, size, crop_box, *thresholds)
    np.testing.assert_array_equal(kept["indices"], expected["indices"])
    np.testing.assert_array_equal(kept["predicted_iou"], expected["iou_preds"])
    np.testing.assert_array_equal(kept["stability_score"], expected["stability_score"])
    np.testing.assert_array_equal(kept["boxes"], expected["boxes"])
    if len(kept["indices"]):
        masks = tools.decode_rle(kept["segmentations"])
        np.testing.assert_array_equal(masks, expected["masks"].numpy())
    else:
        assert kept["segmentations"] == []


def test_each_filter_had_something_to_drop():
    logits, scores = candidates()
    crop, size = [30, 40, 110, 100], (200, 210)
    everything = tools.filter_masks(logits, scores, (60, 80), None, 0.0, 0.0)
    assert len(everything["indices"]) == 12
    by_score = tools.filter_masks(logits, scores, (60, 80), None, 0.88, 0.0)
    by_stability = tools.filter_masks(logits, scores, (60, 80), None, 0.0, 0.95)
    by_edge = tools.filter_masks(logits, scores, size, crop, 0.0, 0.0)
    for kept in (by_score, by_stability, by_edge):
        assert 0 < len(kept["indices"]) < 12
    near = box_tools.boxes_near_crop_edge(everything["boxes"], crop, size)
    np.testing.assert_array_equal(by_edge["indices"], np.flatnonzero(~near))


def test_filter_refuses_shapes_that_do_not_fit():
    logits, scores = candidates()
    with pytest.raises(ValueError, match="the crop's height and width"):
        tools.filter_masks(logits, scores, (80, 60))
    with pytest.raises(ValueError, match="the shape of `scores`"):
        tools.filter_masks(logits, scores[:2], (60, 80))


def test_what_is_no_mask_has_no_area_and_no_box():
    for tool in (tools.mask_area, tools.mask_to_box):
        with pytest.raises(ValueError, match="must have shape"):
            tool(np.ones(3, bool))
        with pytest.raises(ValueError, match="binary masks"):
            tool(np.ones((2, 3), "float32"))
        with pytest.raises(ValueError, match="must be run lengths that fill"):
            tool({"size": [2, 2], "counts": [3]})
