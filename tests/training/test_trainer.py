"""SAMTrainer: interactive rounds inside one step, on images and targets alone."""

import keras
import numpy as np
import pytest

from keras_sam.training import SAMTrainer
from tests.tiny import tiny_segmenter
from tests.training.steps import ragged_data


@pytest.fixture(scope="module")
def trained():
    segmenter = tiny_segmenter()
    trainer = SAMTrainer(segmenter, num_clicks=2, seed=1)
    x, y = ragged_data()
    x = {"images": x["images"]}
    trainer.compile(optimizer=keras.optimizers.AdamW(2e-3))
    start = {v.path: keras.ops.convert_to_numpy(v) for v in segmenter.trainable_variables}
    history = trainer.fit(x, y, batch_size=2, epochs=6, verbose=0)
    return trainer, start, history.history, x


def test_the_loss_falls(trained):
    _, _, history, _ = trained
    assert np.isfinite(history["loss"]).all()
    assert min(history["loss"][-2:]) < 0.9 * history["loss"][0]


def test_every_trainable_variable_of_the_segmenter_moves(trained):
    trainer, start, _, _ = trained
    still = [
        v.path
        for v in trainer.segmenter.trainable_variables
        if np.array_equal(keras.ops.convert_to_numpy(v), start[v.path])
    ]
    # A click or a box always comes first, and every later round has a mask: no round of a batch
    # without boxes trains the corners, none with few prompts need use the background click.
    assert set(still) <= {"prompt_encoder/background_point_embed"}


def test_rounds_have_the_prompts_of_the_paper(trained):
    trainer, _, _, x = trained
    prepared, _ = trainer.prepare_training(x, ragged_data()[1])
    outputs = trainer(prepared, training=False)
    shape = (2, 2, trainer.num_rounds)
    assert trainer.num_rounds == 1 + 2 + 2
    assert tuple(outputs["iou_pred"].shape) == (*shape, 4)
    ambiguous = keras.ops.convert_to_numpy(outputs["ambiguous"])
    assert not ambiguous[:, :, 1:].any()  # later rounds have a mask prompt


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_clicks": 0}, "num_clicks=0"),  # the rounds without a click need one with
        ({"num_clicks": -1, "mask_rounds": False}, "num_clicks=-1"),
    ],
)
def test_bad_settings(segmenter, settings, message):
    with pytest.raises(ValueError, match=message):
        SAMTrainer(segmenter, **settings)


def test_prompts_are_refused_because_they_would_be_ignored(segmenter):
    x, y = ragged_data()
    with pytest.raises(ValueError, match="simulates the prompts"):
        SAMTrainer(segmenter).prepare_training(x, y)
