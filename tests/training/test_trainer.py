"""SAMTrainer: interactive rounds inside one step, on images and targets alone."""

import keras
import numpy as np
import pytest

from keras_sam.training import SAMTrainer
from tests.training.steps import encoded, ragged_data, small_segmenter, values


def images_and_targets():
    x, y = ragged_data()
    return {"images": x["images"]}, y


@pytest.fixture(scope="module")
def trained():
    """A trainer of five rounds after a few epochs, its variables before, and what `fit` said."""
    segmenter = small_segmenter()
    trainer = SAMTrainer(segmenter, num_clicks=2, seed=1)
    x, y = images_and_targets()
    trainer.compile(optimizer=keras.optimizers.Adam(5e-3))
    start = values(segmenter)
    history = trainer.fit(x, y, batch_size=2, epochs=10, shuffle=False, verbose=0)
    return trainer, start, history.history


def test_the_loss_falls(trained):
    _, _, history = trained
    assert set(history) == {"loss", "miou", "iou_error"}
    assert np.isfinite(history["loss"]).all()
    assert np.mean(history["loss"][-2:]) < 0.9 * history["loss"][0]


def test_every_trainable_variable_of_the_segmenter_learns(trained):
    # Adam moves a variable only if it has a gradient.
    trainer, start, _ = trained
    after = values(trainer.segmenter)
    assert all(np.isfinite(value).all() for value in after.values())
    still = [path for path, value in after.items() if np.array_equal(value, start[path])]
    # Of a lone click's three candidates the best alone is trained.
    assert {path.split("/")[1] for path in still} < {f"hypernetwork_{k}" for k in (1, 2, 3)}


def test_evaluation_runs_all_rounds(trained):
    trainer, _, _ = trained
    x, y = images_and_targets()
    measured = trainer.evaluate(x, y, batch_size=2, verbose=0, return_dict=True)
    assert np.isfinite(list(measured.values())).all()


@pytest.mark.parametrize(
    "settings, rounds",
    [
        pytest.param({}, 11, marks=pytest.mark.once),  # the paper's
        ({"num_clicks": 2}, 5),
        pytest.param({"num_clicks": 2, "mask_rounds": False}, 3, marks=pytest.mark.once),
        pytest.param({"num_clicks": 0, "mask_rounds": False}, 1, marks=pytest.mark.once),
    ],
)
def test_rounds_are_as_many_as_in_the_paper(settings, rounds):
    segmenter = small_segmenter()
    trainer = SAMTrainer(segmenter, **settings)
    x, y = images_and_targets()
    prepared, _ = trainer.prepare_training(encoded(segmenter, x), y)
    specs = {k: keras.KerasTensor(v.shape, str(v.dtype)) for k, v in prepared.items()}
    outputs = trainer.compute_output_spec(specs, training=True)  # traced, not compiled
    assert trainer.num_rounds == rounds
    assert tuple(outputs["masks"].shape) == (2, 2, rounds, 4, *segmenter.mask_size)
    assert tuple(outputs["iou_pred"].shape) == (2, 2, rounds, 4)
    assert tuple(outputs["ambiguous"].shape) == (2, 2, rounds)


@pytest.mark.once
def test_the_papers_eleven_rounds_learn():
    segmenter = small_segmenter()
    trainer = SAMTrainer(segmenter, seed=1)
    assert trainer.num_rounds == 11
    x, y = images_and_targets()
    x = encoded(segmenter, x)
    trainer.compile(optimizer=keras.optimizers.Adam(5e-3))
    history = trainer.fit(x, y, batch_size=2, epochs=8, shuffle=False, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert np.mean(history["loss"][-2:]) < 0.9 * history["loss"][0]


@pytest.mark.once
def test_only_the_first_click_is_ambiguous():
    segmenter = small_segmenter()
    trainer = SAMTrainer(segmenter, num_clicks=1, mask_rounds=False, box_probability=0.5, seed=4)
    x, y = images_and_targets()
    prepared, _ = trainer.prepare_training(encoded(segmenter, x), y)
    seen = [keras.ops.convert_to_numpy(trainer(prepared)["ambiguous"]) for _ in range(4)]
    first, second = np.stack(seen)[..., 0], np.stack(seen)[..., 1]
    assert first.any() and not first.all()  # a click or a box
    assert not second.any()  # a mask says more than a click


class Recorded:
    """A decoder that answers by what it was asked, so that prompts can be told from masks."""

    def __init__(self, trainer):
        self.calls = []
        self._mask_size = trainer.segmenter.mask_size
        trainer._decode = self

    def __call__(self, embeddings, points, labels, logits, training, mask_given=None):
        batch, prompts = labels.shape[:2]
        self.calls.append((labels, logits, mask_given))
        ids = keras.ops.sum(keras.ops.cast(labels >= 0, "float32"), axis=-1)  # clicks so far
        sign = keras.ops.where(keras.ops.arange(self._mask_size[1]) % 2 == 0, 1.0, -1.0)
        masks = ids[..., None, None, None] * keras.ops.ones((1, 1, 4, *self._mask_size)) * sign
        scores = keras.ops.ones((batch, prompts, 4))
        return {"masks": masks, "iou_pred": scores, "ambiguous": labels[..., 0] < -99}


def test_a_parallel_round_has_the_prompts_that_its_round_would_have_had():
    x, y = images_and_targets()
    rounds_seen = set()
    for seed in range(6):
        trainer = SAMTrainer(
            small_segmenter() if seed == 0 else trainer.segmenter,  # noqa: F821
            num_clicks=2, mask_rounds=False, parallel=True, seed=seed,
        )  # fmt: skip
        prepared, _ = trainer.prepare_training(encoded(trainer.segmenter, x), y)
        recorded = Recorded(trainer)
        outputs = trainer(prepared, training=True)
        assert outputs["masks"].shape[2] == 1
        *rounds, last = [
            [None if v is None else keras.ops.convert_to_numpy(v) for v in call]
            for call in recorded.calls
        ]
        labels, logits, mask_given = last
        assert len(rounds) == trainer.num_rounds == 3
        for b, p in np.ndindex(labels.shape[:2]):
            # The round is the one whose clicks the object has.
            clicks = [(r[0][b, p] >= 0).sum() for r in rounds]
            drawn = clicks.index((labels[b, p] >= 0).sum())
            rounds_seen.add(drawn)
            wanted = rounds[drawn]
            tokens = wanted[0].shape[2]
            np.testing.assert_array_equal(labels[b, p, :tokens], wanted[0][b, p])
            assert (labels[b, p, tokens:] == -10).all()
            assert mask_given[b, p] == (drawn > 0)
            if drawn:
                np.testing.assert_array_equal(logits[b, p], wanted[1][b, p])
    assert rounds_seen == {0, 1, 2}


def test_parallel_training_learns():
    segmenter = small_segmenter()
    trainer = SAMTrainer(segmenter, num_clicks=1, mask_rounds=False, parallel=True, seed=2)
    x, y = images_and_targets()
    x = encoded(segmenter, x)
    trainer.compile(optimizer=keras.optimizers.Adam(5e-3))
    before = trainer.evaluate(x, y, batch_size=2, verbose=0, return_dict=True)
    trainer.fit(x, y, batch_size=2, epochs=15, verbose=0)
    after = trainer.evaluate(x, y, batch_size=2, verbose=0, return_dict=True)
    assert after["loss"] < 0.9 * before["loss"]


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


def test_what_is_no_batch_names_what_makes_batches(segmenter):
    x, y = images_and_targets()
    trainer = SAMTrainer(segmenter)
    with pytest.raises(RuntimeError, match=r"needs a compiled trainer: call `trainer.compile"):
        trainer.fit(x, y)
    trainer.compile()
    source = [*zip(x["images"], y["masks"], strict=True)]
    with pytest.raises(ValueError, match="ndarray of shape.*ObjectBatches.source.` makes batches"):
        trainer.fit(source, verbose=0)


def test_predict_is_the_segmenters(segmenter):
    x, _ = ragged_data()
    actual, expected = (m.predict(x, verbose=0) for m in (SAMTrainer(segmenter), segmenter))
    np.testing.assert_array_equal(actual["masks"], expected["masks"])


def test_prompts_are_refused_because_they_would_be_ignored(segmenter):
    x, y = ragged_data()
    with pytest.raises(ValueError, match="simulates the prompts"):
        SAMTrainer(segmenter).prepare_training(x, y)
