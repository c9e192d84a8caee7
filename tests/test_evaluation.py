"""Measures on cases whose answers are known, and recall against pycocotools."""

import csv

import numpy as np
import pytest

from keras_sam import SAMPredictor
from keras_sam.evaluation import (
    Evaluation,
    average_recall,
    boundary_iou,
    center_click,
    evaluate,
    mask_iou,
    next_click,
)
from tests.tiny import photograph


def rectangle(x1, y1, x2, y2, size=(40, 60)):
    mask = np.zeros(size, "uint8")
    mask[y1:y2, x1:x2] = 1
    return mask


@pytest.mark.parametrize(
    "mask, click",
    [
        (rectangle(10, 5, 21, 16), (15, 10)),  # the middle of a square
        (rectangle(0, 0, 11, 11), (5, 5)),  # the image's edge is a boundary too
        (rectangle(30, 20, 31, 21), (30, 20)),  # one pixel
    ],
)
def test_center_click(mask, click):
    assert center_click(mask) == click


def test_there_is_nothing_to_click_on_in_an_empty_mask():
    with pytest.raises(ValueError, match="at least one pixel"):
        center_click(rectangle(0, 0, 0, 0))


def test_next_click_goes_to_the_larger_error():
    target = rectangle(10, 10, 30, 30)
    missing = rectangle(10, 10, 30, 19).astype(bool)  # 11 rows are missing
    assert next_click(missing, target) == ((15, 24), 1)
    surplus = target.astype(bool) | rectangle(30, 0, 60, 40).astype(bool)
    (x, y), label = next_click(surplus, target)
    assert label == 0
    assert surplus[y, x] and not target[y, x]


def test_void_is_no_error():
    target = rectangle(10, 10, 30, 30)
    target[:, 30:] = 255
    everything_right = target != 0
    assert next_click(everything_right, target) is None
    assert mask_iou(everything_right, target) == 1.0


@pytest.mark.parametrize(
    "prediction, iou",
    [
        (rectangle(10, 10, 30, 30), 1.0),
        (rectangle(10, 10, 20, 30), 0.5),  # half of it
        (rectangle(40, 0, 50, 5), 0.0),
        (rectangle(0, 0, 0, 0), 0.0),
    ],
)
def test_mask_iou(prediction, iou):
    assert mask_iou(prediction.astype(bool), rectangle(10, 10, 30, 30)) == iou


def test_two_empty_masks_are_equal():
    empty = rectangle(0, 0, 0, 0)
    assert mask_iou(empty.astype(bool), empty) == boundary_iou(empty.astype(bool), empty) == 1.0


def test_boundary_iou_of_a_square_that_is_one_pixel_too_small():
    # Boundaries of one pixel: rings of 20 x 20 and 18 x 18 share nothing.
    target, smaller = rectangle(10, 10, 30, 30), rectangle(11, 11, 29, 29).astype(bool)
    assert boundary_iou(smaller, target, dilation_ratio=0.01) == 0.0
    # Of two pixels: the outer ring of the smaller one, 18^2 - 16^2 pixels, is shared; the union
    # is 20^2 - 14^2.
    assert boundary_iou(smaller, target, dilation_ratio=2 / np.hypot(40, 60)) == pytest.approx(
        (18**2 - 16**2) / (20**2 - 14**2)
    )
    assert mask_iou(smaller, target) == 18**2 / 20**2


def random_masks(count, seed):
    rng = np.random.default_rng(seed)
    masks = []
    for _ in range(count):
        x, y = rng.integers(0, 40), rng.integers(0, 25)
        masks.append(rectangle(x, y, x + rng.integers(4, 20), y + rng.integers(4, 15)).astype(bool))
    return masks


@pytest.mark.parametrize("seed", range(4))
def test_average_recall_equals_pycocotools(seed):
    from pycocotools import coco, cocoeval
    from pycocotools import mask as coco_mask

    targets, rng = random_masks(12, seed), np.random.default_rng(seed)
    masks = random_masks(30, seed + 100) + [np.roll(t, rng.integers(0, 3), 1) for t in targets]
    scores = rng.random(len(masks))

    def annotations(items, **more):
        for i, mask in enumerate(items):
            rle = coco_mask.encode(np.asfortranarray(mask.astype("uint8")))
            yield {
                "id": i + 1,
                "image_id": 1,
                "category_id": 1,
                "iscrowd": 0,
                "segmentation": rle,
                "area": int(mask.sum()),
                "bbox": coco_mask.toBbox(rle).tolist(),
            } | {k: float(v[i]) for k, v in more.items()}

    truth = coco.COCO()
    truth.dataset = {
        "images": [{"id": 1, "height": 40, "width": 60}],
        "categories": [{"id": 1, "name": "object"}],
        "annotations": list(annotations(targets)),
        "info": {},
    }
    truth.createIndex()
    run = cocoeval.COCOeval(truth, truth.loadRes(list(annotations(masks, score=scores))), "segm")
    run.params.maxDets, run.params.useCats = [1, 10, 1000], 0
    run.evaluate()
    run.accumulate()
    wanted = run.eval["recall"][:, 0, 0, 2].mean()
    assert 0 < wanted < 1
    assert average_recall(masks, scores, targets) == pytest.approx(wanted, abs=1e-12)


class KnownPredictor:
    """Answers a prompt of n points with the target's first 4 n rows; three candidates at first."""

    def set_image(self, image):
        self.size = image.shape[:2]

    def predict(self, points=None, labels=None, boxes=None, masks=None, multimask_output=True):
        full = rectangle(10, 10, 30, 30, self.size).astype(bool)
        if boxes is not None:
            np.testing.assert_array_equal(boxes, [10, 10, 30, 30])
            return full[None], np.ones(1), None
        assert (masks is None) == multimask_output == (len(points) == 1)
        part = full & (np.arange(self.size[0])[:, None] < 10 + 4 * len(points))
        if not multimask_output:
            return part[None], np.ones(1), np.zeros((1, 4, 4))
        return np.stack([part, full, ~full]), np.array([0.9, 0.5, 0.1]), np.zeros((3, 4, 4))


def test_evaluate_counts_clicks_and_averages(tmp_path):
    data = [(np.zeros((40, 60, 3), "uint8"), [rectangle(10, 10, 30, 30), rectangle(0, 0, 0, 0)])]
    result = evaluate(KnownPredictor(), data, clicks=(1, 2, 3, 9))
    (row,) = result.objects  # the empty object is left out
    assert row["iou@1"] == pytest.approx(0.2)
    assert row["iou@2"] == pytest.approx(0.4)
    assert row["iou@9"] == 1.0  # perfect after five clicks, and so it stays
    assert row["oracle_iou@1"] == 1.0  # the second candidate
    assert row["box_iou"] == 1.0
    assert row["noc@85"] == row["noc@90"] == 5
    assert result.summary["miou@1"] == row["iou@1"]
    result.to_csv(tmp_path / "objects.csv")
    with open(tmp_path / "objects.csv", newline="") as file:
        (read,) = csv.DictReader(file)
    assert read == {k: str(v) for k, v in row.items()}


def test_evaluate_reads_targets_by_the_rule_of_training():
    image, target = np.zeros((40, 60, 3), "uint8"), rectangle(10, 10, 30, 30)
    wanted = evaluate(KnownPredictor(), [(image, [target])], clicks=(1, 2)).objects
    for targets in ([target * 255], target == 1, (target * 1.0)[None], target[..., None] * 255):
        assert evaluate(KnownPredictor(), [(image, targets)], clicks=(1, 2)).objects == wanted
    with pytest.raises(ValueError, match="holds no object"):  # all of it is void
        evaluate(KnownPredictor(), [(image, [target * 255])], void=255)


def test_an_object_that_is_never_reached_counts_the_most_clicks():
    target = rectangle(35, 10, 55, 30)  # the predictor knows another object
    data = [(np.zeros((40, 60, 3), "uint8"), [target])]
    result = evaluate(KnownPredictor(), data, clicks=(1,), boxes=False, max_clicks=6)
    assert result.objects[0]["noc@85"] == 6


def test_evaluate_with_a_real_predictor(segmenter):
    data = [(photograph((60, 90)), [rectangle(10, 10, 30, 30, (60, 90))])]
    result = evaluate(SAMPredictor(segmenter), data, clicks=(1, 2), noc=())
    assert isinstance(result, Evaluation)
    assert evaluate(segmenter, data, clicks=(1, 2), noc=()).objects == result.objects
    assert evaluate(segmenter, data, clicks=2, noc=()).summary["miou@2"] == result.summary["miou@2"]
    assert set(result.summary) == {
        "miou@1",
        "miou@2",
        "oracle_miou@1",
        "boundary_miou@1",
        "box_miou",
    }
    assert all(0 <= v <= 1 for v in result.summary.values())


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: evaluate(KnownPredictor(), []), "holds no object"),
        (lambda: evaluate(KnownPredictor(), [], clicks=(0,)), r"clicks=\(0,\)"),
        (lambda: evaluate(KnownPredictor(), [], clicks=0), r"clicks=\(0,\)"),
        (
            lambda: evaluate(KnownPredictor(), [({"images": []}, {"masks": []})]),
            "an image and its objects.*Received: tuple. Of an `ObjectBatches`, pass `source`",
        ),
        (
            lambda: evaluate(KnownPredictor(), [np.zeros((40, 60, 3))]),
            r"Received: ndarray of shape \(40, 60, 3\)",
        ),
        (lambda: evaluate(None, [(0, 0)]), "`segmenter` must be a `SAMImageSegmenter`"),
        (lambda: average_recall([], [], []), "at least one mask"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "change",
    [
        lambda target: target * 255,  # as image libraries read black and white
        lambda target: target == 1,
        lambda target: target.astype("float64"),
        lambda target: target.astype("uint16") * 65535,
        lambda target: np.where(target == 1, 250, 4),  # JPEG's noise
    ],
)
def test_targets_of_any_kind_are_read_as_fit_reads_them(change):
    target, prediction = rectangle(10, 10, 30, 30), rectangle(10, 10, 30, 19).astype(bool)
    other = change(target)
    assert 0.4 < mask_iou(prediction, target) < 0.5
    assert mask_iou(prediction, other) == mask_iou(prediction, target)
    assert boundary_iou(prediction, other) == boundary_iou(prediction, target)
    assert next_click(prediction, other) == next_click(prediction, target) == ((15, 24), 1)


@pytest.mark.filterwarnings("ignore:Targets of 0 and 255")
def test_predictions_of_any_kind_are_masks():
    target, prediction = rectangle(10, 10, 30, 30), rectangle(10, 10, 40, 30)
    clicked = next_click(prediction.astype(bool), target)
    for form in (prediction, prediction * 255, prediction * 2, prediction.astype("float32")):
        assert mask_iou(form, target) == pytest.approx(2 / 3)
        assert next_click(form, target) == clicked
    logits = np.where(prediction, 3.5, -2.0)
    for measure in (mask_iou, boundary_iou, next_click):
        with pytest.raises(ValueError, match=r"`prediction` must be a bool mask.*-2..3.5.*> 0`"):
            measure(logits, target)
        with pytest.raises(ValueError, match=r"one image.*\(3, 40, 60\) and \(40, 60\)"):
            measure(np.stack([prediction] * 3), target)
        with pytest.raises(ValueError, match="Target masks must be bool, or 0, 1 and 255"):
            measure(prediction, target * 3 + rectangle(40, 30, 50, 39) * 2)


def test_that_255_is_the_object_is_said_once():
    target = rectangle(10, 10, 30, 30)
    with pytest.warns(UserWarning, match="255 is the object") as told:
        for _ in range(2):
            mask_iou(target > 0, target * 255)
    assert len(told) == 1
