"""Models small enough for tests, with odd sizes so that swapped axes cannot pass."""

import contextlib
from unittest import mock

import keras
import numpy as np

import keras_sam
from keras_sam.preprocessing import SAMImageSegmenterPreprocessor


def tiny_backbone(image_shape=(112, 144, 3), dtype=None, seed=14, decoder_layers=2, **encoder):
    """A `SAMBackbone` of 21 k weights: frame 112 x 144, embedding 7 x 9, mask logits 28 x 36.

    Every weight is random, those that start at zero or one too, so that none is without effect,
    and the same on every backend.
    """
    keras.utils.set_random_seed(seed)  # what is drawn later, when training
    settings = {
        "hidden_size": 24,
        "num_layers": 3,
        "intermediate_dim": 40,
        "num_heads": 3,
        "global_attention_layer_indices": [1],
        "window_size": 4,
        "num_output_channels": 16,
    }
    with without_random_values():
        image_encoder = keras_sam.ViTDetBackbone(
            **{**settings, **encoder}, image_shape=image_shape, dtype=dtype
        )
        prompt_encoder = keras_sam.SAMPromptEncoder(
            hidden_size=16,
            image_embedding_size=image_encoder.embedding_size,
            input_image_size=image_shape[:2],
            mask_in_channels=8,
            dtype=dtype,
        )
        mask_decoder = keras_sam.SAMMaskDecoder(
            hidden_size=16,
            num_layers=decoder_layers,
            intermediate_dim=20,
            num_heads=2,
            iou_head_hidden_dim=12,
            dtype=dtype,
        )
        backbone = keras_sam.SAMBackbone(image_encoder, prompt_encoder, mask_decoder, dtype=dtype)
    randomize(backbone, seed)
    return backbone


def tiny_segmenter(preprocessor=True, **settings):
    """A `SAMImageSegmenter` around `tiny_backbone(**settings)`."""
    backbone = tiny_backbone(**settings)
    preprocessor = SAMImageSegmenterPreprocessor.for_backbone(backbone) if preprocessor else None
    return keras_sam.SAMImageSegmenter(backbone, preprocessor)


@contextlib.contextmanager
def without_random_values():
    """Layers start at zero, for models that get their weights afterwards.

    JAX would compile a generator of random values for every shape.
    """
    random = ("RandomUniform", "RandomNormal", "TruncatedNormal")
    with contextlib.ExitStack() as patches:
        for name in random:
            initializer = getattr(keras.initializers, name)
            zeros = keras.initializers.Zeros.__call__
            patches.enter_context(mock.patch.object(initializer, "__call__", zeros))
        yield


def randomize(model, seed):
    """Adds noise to every floating-point weight of a model, in the order of their paths.

    Embeddings and frequencies get a standard deviation of 1, everything else one of 0.2 and
    kernels what they start with besides.
    """
    rng = np.random.default_rng(seed)
    for variable in sorted(model.weights, key=lambda v: v.path):
        if "float" in str(variable.dtype):
            values = keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32"))
            variance = 0.04
            if variable.path.endswith("kernel"):
                variance += 1 / (3 * np.prod(values.shape[:-1]))
            elif variable.path.endswith(("_embed", "_token", "_tokens", "gaussian_matrix")):
                variance = 1.0
            noise = rng.standard_normal(values.shape).astype("float32")
            variable.assign(values + np.sqrt(variance, dtype="float32") * noise)


def photograph(size, seed=0, channels=3):
    """A smooth random uint8 image `(H0, W0, channels)`."""
    rng = np.random.default_rng(seed)
    h, w = size
    y, x = np.mgrid[0:h, 0:w] / max(size)
    waves = [
        np.sin(2 * np.pi * (a * x + b * y) + c) for a, b, c in rng.uniform(-4, 4, (channels, 3))
    ]
    noise = rng.uniform(-20, 20, (h, w, channels))
    return np.clip(127 + 90 * np.stack(waves, axis=-1) + noise, 0, 255).astype("uint8")


def tiny_sam2_backbone(image_shape=(64, 96, 3), dtype=None, seed=15):
    """A `SAMBackbone` of SAM 2's parts: embedding 4 x 6, mask logits 16 x 24, random weights."""
    keras.utils.set_random_seed(seed)
    with without_random_values():
        image_encoder = keras_sam.HieraBackbone(
            hidden_size=8,
            num_blocks=[1, 1, 2, 1],
            num_heads=1,
            global_attention_layer_indices=[3],
            image_shape=image_shape,
            window_sizes=[4, 2, 6, 3],
            position_background_size=(3, 3),
            num_output_channels=16,
            dtype=dtype,
        )
        prompt_encoder = keras_sam.SAMPromptEncoder(
            hidden_size=16,
            image_embedding_size=(image_shape[0] // 16, image_shape[1] // 16),
            input_image_size=image_shape[:2],
            mask_in_channels=8,
            not_a_point_after_boxes=True,
            dtype=dtype,
        )
        mask_decoder = keras_sam.SAM2MaskDecoder(
            hidden_size=16,
            intermediate_dim=20,
            num_heads=2,
            iou_head_hidden_dim=12,
            dtype=dtype,
        )
        backbone = keras_sam.SAMBackbone(image_encoder, prompt_encoder, mask_decoder, dtype=dtype)
    randomize(backbone, seed)
    return backbone


def tiny_sam2_segmenter(preprocessor=True, **settings):
    """A `SAM2ImageSegmenter` around `tiny_sam2_backbone(**settings)`."""
    backbone = tiny_sam2_backbone(**settings)
    cls = keras_sam.SAM2ImageSegmenterPreprocessor
    return keras_sam.SAM2ImageSegmenter(
        backbone, cls.for_backbone(backbone) if preprocessor else None
    )
