"""What interrupts `fit` or `evaluate` leaves a model whole, with the weights of a finished step."""

import keras
import numpy as np
import pytest

from tests.training.steps import encoded, ragged_data, small_segmenter, values


class Interrupt(keras.callbacks.Callback):
    """Raises KeyboardInterrupt where it is told to, at the second time that it gets there."""

    def __init__(self, place):
        super().__init__()
        self.seen = 0
        setattr(self, place, self.interrupt)

    def interrupt(self, *args, **kwargs):
        self.seen += 1
        if self.seen == 2:
            raise KeyboardInterrupt


class Data(keras.utils.PyDataset):
    """Batches of which some raise an error when they are read."""

    def __init__(self, batch, bad, error):
        super().__init__()
        self.batch, self.bad, self.error = batch, bad, error

    @property
    def num_batches(self):
        return 3

    def __getitem__(self, index):
        if index == self.bad:
            raise self.error
        return self.batch


@pytest.fixture(scope="module")
def trained():
    """A compiled segmenter that has made its first steps, so that nothing is left to compile."""
    segmenter = small_segmenter()
    x, y = ragged_data()
    x = encoded(segmenter, x)
    segmenter.compile(optimizer=keras.optimizers.Adam(1e-3))
    segmenter.fit(x, y, batch_size=2, validation_data=(x, y), verbose=0)
    return segmenter, x, y


def assert_whole(segmenter, x, y, before, steps):
    """That the model has other finite weights after steps, or the same, and can be used again."""
    after = values(segmenter)
    assert all(np.isfinite(value).all() for value in after.values())
    changed = any(not np.array_equal(before[path], value) for path, value in after.items())
    assert changed == (steps > 0)
    state = [*segmenter.weights, *segmenter.optimizer.variables, *segmenter.metrics_variables]
    assert all(np.isfinite(keras.ops.convert_to_numpy(v)).all() for v in state)
    segmenter.fit(x, y, batch_size=2, verbose=0)


@pytest.mark.parametrize(
    ("place", "steps"),
    [
        ("on_epoch_begin", 1),
        ("on_train_batch_begin", 1),
        ("on_train_batch_end", 2),
        ("on_test_batch_begin", 2),
        ("on_test_batch_end", 2),
        ("on_epoch_end", 2),
    ],
)
def test_an_interrupt_in_a_callback(trained, place, steps):
    segmenter, x, y = trained
    before, counted = values(segmenter), int(segmenter.optimizer.iterations)
    with pytest.raises(KeyboardInterrupt):
        segmenter.fit(
            x,
            y,
            batch_size=2,
            epochs=3,
            validation_data=(x, y),
            callbacks=[Interrupt(place)],
            verbose=0,
        )
    assert int(segmenter.optimizer.iterations) == counted + steps
    assert_whole(segmenter, x, y, before, steps)


@pytest.mark.parametrize("bad", [0, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt, FileNotFoundError])
def test_a_batch_that_cannot_be_read(trained, bad, error):
    segmenter, x, y = trained
    before = values(segmenter)
    with pytest.raises(error):
        segmenter.fit(Data((x, y), bad, error), verbose=0)
    assert_whole(segmenter, x, y, before, steps=bad)


def test_a_batch_that_evaluate_cannot_read(trained):
    segmenter, x, y = trained
    before = values(segmenter)
    with pytest.raises(OSError):
        segmenter.evaluate(Data((x, y), 1, OSError), verbose=0)
    assert_whole(segmenter, x, y, before, steps=0)


def test_a_first_image_that_is_missing_leaves_the_model_as_it_was():
    segmenter = small_segmenter()
    x, y = ragged_data()
    segmenter.compile(optimizer=keras.optimizers.Adam(1e-3))
    before = values(segmenter)
    with pytest.raises(FileNotFoundError, match=r"missing\.jpg"):
        segmenter.fit({**x, "images": ["missing.jpg", "missing.jpg"]}, y, verbose=0)
    for path, value in values(segmenter).items():
        np.testing.assert_array_equal(value, before[path])
