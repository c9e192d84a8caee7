"""Tensor forms of prompts: the canonical one passes as it is, unless something is wrong with it."""

import keras
import numpy as np
import pytest

from keras_sam.layers import prompt_tensors
from keras_sam.layers.prompt_tensors import append_not_a_point, canonical_prompts

B, P, T = 2, 3, 4
POINTS = np.random.default_rng(0).uniform(0, 40, (B, P, T, 2)).astype("float32")
LABELS = np.tile(np.array([1, 0, -1, -10], "int32"), (B, P, 1))
GIVEN = np.array([[True, False, True], [False, False, True]])


def masks(prompt_sets):
    return np.ones((B, prompt_sets, 12, 20, 1), "float32")


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"masks": masks(P), "mask_given": GIVEN},
        {"masks": masks(0), "mask_given": GIVEN[:, :0]},  # no image has a mask
    ],
)
def test_canonical_prompts_pass_at_once(others, monkeypatch):
    monkeypatch.setattr(prompt_tensors, "_join_tokens", None)
    prompts, single_object = canonical_prompts(POINTS, LABELS, **others)
    assert single_object is False
    expected = {"points": POINTS, "labels": LABELS}
    if others and others["masks"].shape[1]:
        expected |= others
    for name, x in prompts.items():
        if name in expected:
            np.testing.assert_array_equal(keras.ops.convert_to_numpy(x), expected[name])
        else:
            assert x is None


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"points": POINTS[:, :, :0], "labels": LABELS[..., :0]}, "No prompt was given"),
        ({"points": POINTS, "labels": LABELS, "masks": masks(P - 1), "mask_given": GIVEN}, "agree"),
        (
            {"points": POINTS, "labels": LABELS, "masks": masks(P)[..., 0], "mask_given": GIVEN},
            "`masks` must have shape",
        ),
        ({"points": POINTS, "labels": LABELS[0]}, "`labels` must have shape"),
        ({"labels": LABELS}, "`labels` came without `points`"),
    ],
)
def test_prompts_that_are_almost_canonical_are_refused(prompts, message):
    with pytest.raises(ValueError, match=message):
        canonical_prompts(**prompts)


@pytest.mark.parametrize(
    ("labels", "appended"),
    [
        ([1, 0], -1),
        ([0, -10], -1),
        ([1, -1], -10),  # the user's own not-a-point
        ([1, 2, 3], -10),  # a box
        ([2, 3], -10),
        ([-10, -10], -10),  # no point
    ],
)
def test_not_a_point_is_appended_to_points_without_a_box(labels, appended):
    labels = np.array([[labels]], "int32")
    points = np.ones((*labels.shape, 2), "float32")
    more_points, more_labels = map(keras.ops.convert_to_numpy, append_not_a_point(points, labels))
    assert more_labels.tolist() == [[[*labels[0, 0], appended]]]
    np.testing.assert_array_equal(more_points[:, :, :-1], points)
    assert (more_points[:, :, -1] == 0).all()
