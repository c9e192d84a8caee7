"""One image learnt by heart: the same curve on every backend, and every weight takes part."""

import keras
import numpy as np
import pytest

from tests.tiny import photograph
from tests.training.steps import disc, small_segmenter, values

# Losses of the first steps from the same weights, with prompts fixed and nothing random; they
# were made with PyTorch 2.13 on a CPU. Backends order their sums in other ways, which Adam
# amplifies step by step: a thousandth after six steps is what is promised.
CURVE = [3.89747, 2.72061, 2.35750, 2.04918, 1.84419, 1.76659]
TOLERANCE = 1e-3
IOU = 0.95


def one_image():
    """A photograph with a bright disc on it, by a click, a box, two clicks, and clicks and mask."""
    size = (48, 80)
    target = disc(size, 30, 22, 14)
    image = photograph(size, 3)
    image[target == 1] = 255 - image[target == 1] // 4
    x = {
        "images": [image],
        "points": [[[[30, 22]], None, [[24, 20], [66, 30]], [[36, 24], [10, 40]]]],
        "labels": [[[1], None, [1, 0], [1, 0]]],
        "boxes": [[None, [16, 8, 44, 36], None, None]],
        "masks": [[None, None, None, np.zeros((12, 20, 1), "float32")]],
    }
    return x, {"masks": [np.stack([target] * 4)]}


@pytest.fixture(scope="module")
def run():
    """A segmenter after its training, the losses, and its weights before and after a step."""
    segmenter = small_segmenter()
    segmenter.compile(optimizer=keras.optimizers.Adam(0.02))
    x, y = segmenter.prepare_training(*one_image())
    x, y = (keras.tree.map_structure(keras.ops.convert_to_tensor, part) for part in (x, y))
    super_step = keras.Model.train_on_batch  # the batch is prepared once
    before, losses, after, miou = values(segmenter), [], None, 0.0
    for step in range(400):
        segmenter.reset_metrics()
        logs = super_step(segmenter, x, y, return_dict=True)
        losses.append(float(logs["loss"]))
        miou = float(logs["miou"])
        if step == 0:
            after = values(segmenter)
        if miou > IOU:
            break
    return losses, before, after, miou


def test_one_image_is_learnt_by_heart(run):
    losses, _, _, miou = run
    assert miou > IOU, losses[-1]


def test_the_loss_curve_is_that_of_every_backend(run):
    np.testing.assert_allclose(run[0][: len(CURVE)], CURVE, rtol=TOLERANCE)


def test_every_weight_gets_a_finite_gradient(run):
    """Adam's first step moves a weight by the learning rate, however small its gradient."""
    _, before, after, _ = run
    moved = {path: np.abs(after[path] - value).max() for path, value in before.items()}
    assert np.isfinite(list(moved.values())).all()
    still = {path for path, step in moved.items() if step < 1e-3}
    # A constant that is added to all keys changes no attention; the mask prompt is zero; and of
    # the lone click's three candidates the best alone is trained.
    without = ("key_proj/bias", "mask_downscaler/conv1/kernel")
    still = {path for path in still if not path.endswith(without)}
    heads = {path.split("/")[1] for path in still}
    assert len(heads) == 2 and heads < {f"hypernetwork_{k}" for k in (1, 2, 3)}, still
