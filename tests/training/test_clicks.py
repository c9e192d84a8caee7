"""The simulated annotator clicks where it should."""

import keras
import numpy as np
import pytest

from keras_sam.training import clicks

pytestmark = pytest.mark.once

SCALE = np.array([4.0, 4.0], "float32")


def targets(shape=(2, 3, 11, 13), seed=0):
    """Rectangles `(B, P, Lh, Lw)` at random places."""
    rng = np.random.default_rng(seed)
    masks = np.zeros(shape, bool)
    for index in np.ndindex(shape[:2]):
        y, x = rng.integers(0, 6, 2)
        masks[index][y : y + rng.integers(2, 5), x : x + rng.integers(2, 6)] = True
    return masks


def to_pixels(points):
    """Model pixels back to mask pixels `(x, y)`."""
    xy = (keras.ops.convert_to_numpy(points) + 0.5) / SCALE - 0.5
    assert np.allclose(xy, np.round(xy), atol=1e-4)
    return np.round(xy).astype(int)


def test_first_clicks_lie_in_the_target_and_reach_all_of_it():
    masks, seed = targets(), keras.random.SeedGenerator(1)
    seen = np.zeros_like(masks)
    for _ in range(150):
        points, labels = clicks.first_click(masks, SCALE, seed)
        assert (keras.ops.convert_to_numpy(labels) == 1).all()
        for index in np.ndindex(masks.shape[:2]):
            x, y = to_pixels(points)[index][0]
            seen[index][y, x] = True
    assert not (seen & ~masks).any()
    assert seen.sum() > 0.9 * masks.sum()


def test_next_clicks_correct_the_mask():
    masks, seed = targets(), keras.random.SeedGenerator(2)
    rng = np.random.default_rng(3)
    logits = rng.normal(size=masks.shape).astype("float32")
    valid = rng.random(masks.shape) < 0.8
    for _ in range(20):
        points, labels = clicks.next_click(logits, masks, valid, SCALE, seed)
        labels = keras.ops.convert_to_numpy(labels)
        for index in np.ndindex(masks.shape[:2]):
            x, y = to_pixels(points)[index][0]
            assert (logits[index][y, x] > 0) != masks[index][y, x], "a click on a correct pixel"
            assert valid[index][y, x], "a click on a void pixel"
            assert labels[index][0] == masks[index][y, x]


def test_a_perfect_mask_is_confirmed():
    masks = targets()
    logits = np.where(masks, 5.0, -5.0).astype("float32")
    seed = keras.random.SeedGenerator(4)
    points, labels = clicks.next_click(logits, masks, np.ones_like(masks), SCALE, seed)
    assert (keras.ops.convert_to_numpy(labels) == 1).all()
    for index in np.ndindex(masks.shape[:2]):
        x, y = to_pixels(points)[index][0]
        assert masks[index][y, x]


def test_boxes_are_off_by_a_tenth_of_the_side_on_average():
    masks, seed = targets(), keras.random.SeedGenerator(5)
    draws = [
        keras.ops.convert_to_numpy(clicks.noisy_box(masks, SCALE, seed)[0]) for _ in range(200)
    ]
    draws = np.stack(draws)  # (draws, B, P, 2, 2)
    for index in np.ndindex(masks.shape[:2]):
        y, x = np.nonzero(masks[index])
        exact = np.array([[x.min(), y.min()], [x.max() + 1, y.max() + 1]]) * 4.0 - 0.5
        side = exact[1] - exact[0]
        error = draws[(slice(None), *index)] - exact
        np.testing.assert_allclose(error.mean(axis=0), 0, atol=0.04 * side.max())
        np.testing.assert_allclose(error.std(axis=0) / side, 0.1, atol=0.03)
        assert (draws[(slice(None), *index)][:, 1] >= draws[(slice(None), *index)][:, 0]).all()
