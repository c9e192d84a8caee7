"""The loss against independent formulas in numpy."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_sam.losses import (
    SAM2Loss,
    SAMLoss,
    candidate_masks,
    choose_mask,
    dice_loss,
    focal_loss,
    lone_click,
    mask_iou,
    selected_iou,
    take_mask,
)
from keras_sam.outputs import select_masks


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, "float64")))


def example(seed=0, shape=(2, 3, 4, 7, 9)):
    """Logits `(B, P, K, L, L)`, targets `(B, P, L, L)` with some void, IoU predictions."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, shape).astype("float32")
    targets = rng.integers(0, 2, (*shape[:2], *shape[3:])).astype("uint8")
    targets[rng.random(targets.shape) < 0.2] = 255
    return logits, targets, rng.random(shape[:3]).astype("float32")


def numpy_terms(logits, target):
    """Focal, dice and IoU of one mask, pixel by pixel."""
    counts = target != 255
    x, t = logits[counts].astype("float64"), (target[counts] == 1).astype("float64")
    p = sigmoid(x)
    true_class = np.where(t == 1, p, 1 - p)
    alpha = np.where(t == 1, 0.25, 0.75)
    focal = np.mean(-alpha * (1 - true_class) ** 2 * np.log(true_class))
    dice = 1 - (2 * np.sum(p * t) + 1) / (np.sum(p) + np.sum(t) + 1)
    hit, any_ = np.sum((x > 0) & (t == 1)), np.sum((x > 0) | (t == 1))
    return focal, dice, hit / any_


def to_numpy(x):
    return keras.ops.convert_to_numpy(x)


def test_each_term_equals_the_formula_and_leaves_out_void():
    logits, targets, _ = example()
    valid = (targets != 255).astype("float32")[:, :, None]
    binary = (targets == 1).astype("float32")[:, :, None]
    focal = to_numpy(focal_loss(logits, binary, valid))
    dice = to_numpy(dice_loss(logits, binary, valid))
    iou = to_numpy(mask_iou(logits, binary, valid))
    for b, p, k in np.ndindex(logits.shape[:3]):
        wanted = numpy_terms(logits[b, p, k], targets[b, p])
        np.testing.assert_allclose((focal[b, p, k], dice[b, p, k], iou[b, p, k]), wanted, rtol=2e-5)


def test_confident_logits_stay_finite():
    logits = np.array([[[-1e4, 1e4], [1e4, -1e4]]], "float32")
    ones = np.ones_like(logits)
    assert np.isfinite(to_numpy(focal_loss(logits, ones, ones))).all()


@pytest.mark.parametrize(
    "ambiguous, candidates",
    [(True, (1, 2, 3)), (False, (0,))],
    ids=["a lone click trains the best of masks 1 to 3", "anything more trains mask 0"],
)
def test_which_mask_is_trained(ambiguous, candidates):
    logits, targets, predicted = example(1)
    loss = to_numpy(
        SAMLoss()({"masks": logits, "iou_pred": predicted}, targets, np.full((2, 3), ambiguous))
    )
    for b, p in np.ndindex(2, 3):
        terms = [numpy_terms(logits[b, p, k], targets[b, p]) for k in candidates]
        fit = min(20 * focal + dice for focal, dice, _ in terms)
        error = np.mean([(predicted[b, p, k] - t[2]) ** 2 for k, t in zip(candidates, terms)])
        np.testing.assert_allclose(loss[b, p], fit + error, rtol=2e-5)


def test_a_target_that_is_void_altogether_costs_nothing():
    logits, targets, predicted = example(2)
    targets[0, 1] = 255
    loss = to_numpy(
        SAMLoss()({"masks": logits, "iou_pred": predicted}, targets, np.zeros((2, 3), bool))
    )
    assert loss[0, 1] == 0
    assert (np.delete(loss.ravel(), 1) > 0).all()


def test_a_model_with_one_mask_always_trains_it():
    candidates = to_numpy(candidate_masks(np.array([[True, False]]), 1))
    np.testing.assert_array_equal(candidates, [[[1], [1]]])


@pytest.mark.parametrize("num_masks", [1, 4])
def test_the_chosen_mask_is_the_one_that_select_masks_picks(num_masks):
    logits, targets, scores = example(3, (2, 3, num_masks, 7, 9))
    scores[0] = np.nan  # of a prompt that has no score
    scores[1, :, -2:-1] = np.nan
    scores[1, 0, :1] = 2.0  # mask 0 has the best score, and is no candidate of a lone click
    lone = np.array([[True, False, True], [True, True, False]])
    answer = select_masks({"masks": logits, "iou_pred": scores, "lone_click": lone}, "auto")
    chosen = choose_mask(scores, lone)
    np.testing.assert_array_equal(to_numpy(ops.sum(ops.cast(chosen, "int32"), -1)), 1)
    np.testing.assert_array_equal(to_numpy(take_mask(logits, chosen)), answer["masks"][:, :, 0])
    np.testing.assert_array_equal(to_numpy(take_mask(scores, chosen)), answer["iou_pred"][..., 0])
    iou, error, counts = selected_iou({"masks": logits, "iou_pred": scores}, targets, lone)
    for b, p in np.ndindex(2, 3):
        wanted = numpy_terms(answer["masks"][b, p, 0], targets[b, p])[2]
        np.testing.assert_allclose(to_numpy(iou)[b, p], wanted, rtol=1e-6)
        predicted = answer["iou_pred"][b, p, 0]
        np.testing.assert_allclose(to_numpy(error)[b, p], abs(predicted - wanted), rtol=1e-5)
    np.testing.assert_array_equal(to_numpy(counts), 1)


@pytest.mark.parametrize(
    "labels, mask, lone",
    [
        ([1, -1, -10], False, True),  # one click and the token that goes with it
        ([0, -1, -10], False, True),  # a background click is as open as any
        ([1, 1, -1], False, False),  # two clicks
        ([1, 2, 3], False, False),  # a click in a box
        ([2, 3, -10], False, False),  # a box counts as two points
        ([1, -1, -10], True, False),  # a mask says more than the click
        ([-10, -10, -10], False, False),  # nothing
    ],
)
def test_lone_click(labels, mask, lone):
    labels = np.array([[labels]])
    assert bool(to_numpy(lone_click(labels, np.array([[mask]])))[0, 0]) is lone


def test_sam2_trains_the_object_score_and_no_mask_of_an_empty_target():
    logits, targets, predicted = example(3)
    targets[0, 0] = np.where(targets[0, 0] == 255, 255, 0)  # no object, though some pixels are void
    targets[1, 2] = 255  # nothing known
    score = np.random.default_rng(3).normal(size=(2, 3)).astype("float32")
    outputs = {"masks": logits, "iou_pred": predicted, "object_score": score}
    loss = to_numpy(SAM2Loss(object_score_weight=0.5)(outputs, targets, np.ones((2, 3), bool)))
    for b, p in np.ndindex(2, 3):
        if (b, p) == (1, 2):
            assert loss[b, p] == 0
            continue
        present = (b, p) != (0, 0)
        wanted = -0.5 * np.log(sigmoid(score[b, p] if present else -score[b, p]))
        if present:
            terms = [numpy_terms(logits[b, p, k], targets[b, p]) for k in (1, 2, 3)]
            wanted += min(20 * focal + dice for focal, dice, _ in terms)
            errors = [abs(predicted[b, p, k] - t[2]) for k, t in zip((1, 2, 3), terms)]
            wanted += np.mean(errors)
        np.testing.assert_allclose(loss[b, p], wanted, rtol=2e-5)


def test_a_mask_without_an_object_counts_as_empty():
    logits, targets, predicted = example(4)
    targets[:] = 0
    outputs = {"masks": np.abs(logits), "iou_pred": predicted}
    score = np.array([[1, -1, 0], [-1, 1, 1]], "float32")
    lone = np.zeros((2, 3), bool)
    iou, _, _ = map(to_numpy, selected_iou({**outputs, "object_score": score}, targets, lone))
    np.testing.assert_array_equal(iou, score <= 0)
    iou, _, _ = map(to_numpy, selected_iou(outputs, targets, lone))
    assert (iou == 0).all()
