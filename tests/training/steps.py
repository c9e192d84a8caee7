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


def small_segmenter(seed=7, dtype=None, **encoder):
    """A segmenter of one block and one decoder layer, frame 48 x 80: quick to compile.

    Its weights are the same on every backend.
    """
    settings = {"num_layers": 1, "global_attention_layer_indices": [], "window_size": 3}
    settings |= {"image_shape": (48, 80, 3), "decoder_layers": 1, **encoder}
    return tiny_segmenter(seed=seed, dtype=dtype, **settings)


def encoded(segmenter, x):
    """The same batch with embeddings for images; the encoder is frozen, as it has to be."""
    segmenter.freeze("image_encoder")
    x = dict(x)
    images = x.pop("images")
    sizes = [image.shape[:2] for image in images]
    return {
        "image_embeddings": segmenter.encode(images)["image_embeddings"],
        "original_sizes": sizes,
        **x,
    }


def values(model):
    """The trainable variables' values by path."""
    return {
        v.path: keras.ops.convert_to_numpy(keras.ops.cast(v, "float32"))
        for v in model.trainable_variables
    }
