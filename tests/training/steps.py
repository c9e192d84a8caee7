"""What the tests of training share: a small segmenter, two photographs, and single steps."""

import keras
import numpy as np

from tests.tiny import photograph, tiny_segmenter


def disc(size, x, y, radius):
    rows, columns = np.mgrid[: size[0], : size[1]]
    return ((columns - x) ** 2 + (rows - y) ** 2 < radius**2).astype("uint8")


def ragged_data():
    """Two photographs of different sizes with two and one objects, clicked once each."""
    x = {
        "images": [photograph((60, 90), 1), photograph((80, 50), 2)],
        "points": [[[[30, 30]], [[60, 20]]], [[[20, 40]]]],
        "labels": [[[1], [1]], [[1]]],
    }
    first = np.stack([disc((60, 90), 30, 30, 15), disc((60, 90), 60, 20, 10)])
    return x, {"masks": [first, disc((80, 50), 20, 40, 12)[None]]}


def small_segmenter(seed=7, **settings):
    """A segmenter of two blocks whose frame is 48 x 80: quick to compile and to train."""
    settings = {"num_layers": 2, "window_size": 2, **settings}
    return tiny_segmenter(image_shape=(48, 80, 3), seed=seed, **settings)


def values(model):
    """The trainable variables' values by path."""
    return {
        v.path: keras.ops.convert_to_numpy(keras.ops.cast(v, "float32"))
        for v in model.trainable_variables
    }


def gradients(model, x, y, sample_weight=None, eagerly=True):
    """Gradients by variable path: what one step of plain descent at rate 1 subtracts.

    Eagerly by default, because compiling takes longer than a step or two.
    """
    keras.utils.set_random_seed(0)  # torch's dropout draws from its global generator
    model.compile(optimizer=keras.optimizers.SGD(1.0), run_eagerly=eagerly)
    before = values(model)
    model.train_on_batch(x, y, sample_weight)
    return {path: before[path] - after for path, after in values(model).items()}
