"""Joining batches and picking masks, on small arrays."""

import numpy as np
import pytest

import keras_sam
from keras_sam.encode_decode import join_batches
from tests.closeness import assert_same_outputs

pytestmark = pytest.mark.once

K = 4


def batch(images, prompt_sets, num_prompts=None, single=False, start=0.0):
    """Outputs whose masks and scores count up from `start`, so that a mix-up shows."""
    masks = np.arange(images * prompt_sets * K * 6, dtype="float32") + start
    scores = np.arange(images * prompt_sets * K, dtype="float32") + start
    return {
        "masks": masks.reshape(images, prompt_sets, K, 2, 3),
        "iou_pred": scores.reshape(images, prompt_sets, K),
        "lone_click": np.ones((images, prompt_sets), bool),
        "num_prompts": np.array(num_prompts or [prompt_sets] * images, "int64"),
        "single_object": single,
    }


# --- joining ---


def test_batches_are_joined_in_their_order():
    joined = join_batches([batch(2, 1), batch(1, 1, start=100)])
    assert set(joined) == {"masks", "iou_pred", "lone_click", "num_prompts"}
    assert joined["iou_pred"][:, 0, 0].tolist() == [0, 4, 100]
    assert joined["masks"][:, 0, 0, 0, 0].tolist() == [0, 24, 100]
    assert joined["num_prompts"].tolist() == [1, 1, 1]
    assert joined["num_prompts"].dtype == np.int32


def test_fewer_prompts_are_filled_up_with_nan():
    joined = join_batches([batch(1, 1), batch(1, 3, start=100), batch(1, 2, start=50)])
    assert joined["masks"].shape == (3, 3, K, 2, 3)
    assert joined["num_prompts"].tolist() == [1, 3, 2]
    real = np.arange(3) < np.array([[1], [3], [2]])
    for name in ("masks", "iou_pred"):
        values = joined[name].reshape(3, 3, -1)
        assert np.isfinite(values[real]).all()
        assert np.isnan(values[~real]).all()
    np.testing.assert_array_equal(joined["lone_click"], real)
    assert joined["iou_pred"][1].ravel().tolist() == list(range(100, 112))


def test_prompts_that_only_fill_up_their_batch_become_nan():
    joined = join_batches([batch(2, 2, num_prompts=[2, 0])])
    assert np.isfinite(joined["iou_pred"][0]).all()
    assert np.isnan(joined["iou_pred"][1]).all()
    assert np.isnan(joined["masks"][1]).all()


def test_read_only_arrays_are_copied_before_they_are_filled():
    outputs = batch(1, 2, num_prompts=[1])
    for name in ("masks", "iou_pred"):
        outputs[name].setflags(write=False)
    joined = join_batches([outputs])
    assert np.isnan(joined["masks"][0, 1]).all()
    assert np.isfinite(outputs["masks"]).all()


@pytest.mark.parametrize(
    "singles, lead",
    [
        ([True], ()),  # one object each: no axis
        ([True, True], ()),
        ([np.array([True])], ()),  # said per image
        ([True, False], (1,)),  # another batch has the axis: all have it
        ([False, False], (1,)),
    ],
)
def test_the_axis_of_objects_is_dropped_only_if_nobody_asked_for_it(singles, lead):
    joined = join_batches([batch(1, 1, single=single) for single in singles])
    assert joined["masks"].shape == (len(singles), *lead, K, 2, 3)
    assert joined["lone_click"].shape == (len(singles), *lead)
    assert ("num_prompts" in joined) == bool(lead)


# --- what is ambiguous ---


# --- picking ---


def outputs_of(scores, lone, lead=()):
    scores = np.broadcast_to(np.float32(scores), (*lead, K))
    masks = np.broadcast_to(np.arange(K, dtype="float32")[:, None, None], (*lead, K, 2, 3))
    return {
        "masks": masks,
        "iou_pred": scores,
        "lone_click": np.broadcast_to(lone, lead),
        "num_prompts": np.array([1]),
    }


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
@pytest.mark.parametrize(
    "multimask_output, lone, masks",
    [
        (True, False, [1, 2, 3]),  # the candidates, whatever the prompt
        (True, True, [1, 2, 3]),
        (np.True_, True, [1, 2, 3]),  # numpy's own True
        (False, True, [0]),  # mask 0, whatever the prompt
        (np.False_, True, [0]),
        ("auto", False, [0]),  # unambiguous: mask 0, though others score higher
        ("auto", True, [2]),  # a lone click: the best of 1 to 3, though mask 0 scores higher
    ],
)
def test_which_masks_are_picked(lead, multimask_output, lone, masks):
    outputs = outputs_of([0.9, 0.3, 0.8, 0.5], lone, lead)
    picked = keras_sam.select_masks(outputs, multimask_output)
    assert picked["masks"].shape == (*lead, len(masks), 2, 3)
    assert picked["iou_pred"].shape == (*lead, len(masks))
    assert (picked["masks"] == np.float32(masks)[:, None, None]).all()
    expected = np.float32([0.9, 0.3, 0.8, 0.5])[masks]
    assert (picked["iou_pred"] == expected).all()
    assert picked["lone_click"] is outputs["lone_click"]
    assert picked["num_prompts"] is outputs["num_prompts"]


def test_auto_is_the_default_and_picks_for_each_prompt():
    outputs = outputs_of([0.9, 0.3, 0.8, 0.5], [[True, False]], (1, 2))
    picked = keras_sam.select_masks(outputs)
    assert picked["masks"][0, :, 0, 0, 0].tolist() == [2, 0]
    assert picked["iou_pred"].tolist() == [[[np.float32(0.8)], [np.float32(0.9)]]]


def test_prompts_that_do_not_exist_stay_nan():
    outputs = outputs_of([0.1, np.nan, 0.3, np.nan], True, (1,))
    assert keras_sam.select_masks(outputs)["masks"][0, 0, 0, 0] == 2  # NaN is never the best
    missing = outputs_of([np.nan] * K, False, (1,))
    assert np.isnan(keras_sam.select_masks(missing)["iou_pred"]).all()
    assert np.isnan(keras_sam.best_mask(missing)["iou_pred"]).all()


def test_the_best_mask():
    scores = np.float32([[0.1, 0.9, 0.3, 0.4], [0.5, np.nan, 0.2, 0.1]])
    outputs = {**outputs_of([0] * K, False, (2,)), "iou_pred": scores}
    best = keras_sam.best_mask(outputs)
    assert best["masks"].shape == (2, 1, 2, 3)
    assert best["masks"][:, 0, 0, 0].tolist() == [1, 0]
    assert best["iou_pred"].tolist() == [[np.float32(0.9)], [0.5]]
    candidates = keras_sam.best_mask(keras_sam.select_masks(outputs, True))
    assert candidates["masks"][:, 0, 0, 0].tolist() == [1, 2]  # mask 0 is no candidate


def test_one_mask_is_the_answer_of_a_model_without_candidates():
    outputs = outputs_of([0.5] * K, True, (1,))
    outputs = {**outputs, "masks": outputs["masks"][:, :1], "iou_pred": outputs["iou_pred"][:, :1]}
    for multimask_output in ("auto", False):
        picked = keras_sam.select_masks(outputs, multimask_output)
        assert picked["masks"].shape == (1, 1, 2, 3)
    with pytest.raises(ValueError, match="needs more masks than mask 0"):
        keras_sam.select_masks(outputs, True)


@pytest.mark.parametrize("wrong", ["yes", None, 2, "AUTO"])
def test_other_choices_are_refused(wrong):
    with pytest.raises(ValueError, match='`multimask_output` must be True, False or "auto"'):
        keras_sam.select_masks(outputs_of([0.5] * K, True), wrong)


@pytest.mark.parametrize("choose", [keras_sam.best_mask, keras_sam.select_masks])
@pytest.mark.parametrize(
    "outputs, received",
    [
        (np.zeros((1, 4, 5, 6)), r"ndarray of shape \(1, 4, 5, 6\)"),  # masks without scores
        ({"masks": np.zeros((1, 4, 5, 6))}, r"\['masks'\]"),  # likewise
        ([{}], "list"),  # several outputs
    ],
)
def test_masks_are_chosen_by_their_scores(choose, outputs, received):
    with pytest.raises(ValueError, match=f"`outputs` must be a dict.*Received: {received}"):
        choose(outputs)


def test_auto_needs_to_know_what_is_ambiguous():
    outputs = outputs_of([0.5] * K, True)
    del outputs["lone_click"]
    with pytest.raises(ValueError, match="needs `lone_click`.*Received: the keys"):
        keras_sam.select_masks(outputs)
    assert keras_sam.select_masks(outputs, False)["masks"].shape == (1, 2, 3)


def test_tensors_of_every_backend_are_picked_from():
    torch = pytest.importorskip("torch")
    outputs = outputs_of([0.9, 0.3, 0.8, 0.5], np.True_, ())
    tensors = {
        "masks": torch.tensor(outputs["masks"].copy(), requires_grad=True),
        "iou_pred": torch.tensor(outputs["iou_pred"].copy(), requires_grad=True),
        "lone_click": torch.tensor(True),
        "num_prompts": outputs["num_prompts"],
    }
    for choice in (True, False, "auto"):
        picked = keras_sam.select_masks(tensors, choice)
        expected = keras_sam.select_masks(outputs, choice)
        for name in ("masks", "iou_pred"):
            np.testing.assert_array_equal(picked[name], expected[name])
    best, expected = keras_sam.best_mask(tensors), keras_sam.best_mask(outputs)
    np.testing.assert_array_equal(best["masks"], expected["masks"])


def test_the_callers_outputs_stay_as_they_are():
    outputs = batch(2, 2)
    before = {name: np.array(value) for name, value in outputs.items()}
    for choice in (True, False, "auto"):
        keras_sam.select_masks(outputs, choice)
    keras_sam.best_mask(outputs)
    assert_same_outputs({k: np.array(v) for k, v in outputs.items()}, before)
