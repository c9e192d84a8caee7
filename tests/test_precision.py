"""bfloat16 and float16: they run end to end, stay finite, and stay near float32."""

import keras
import numpy as np
import pytest

import keras_sam
from tests.closeness import relative_difference
from tests.tiny import photograph, tiny_backbone, tiny_segmenter, without_random_values

# The root of the mean squared difference from float32, as a part of that of the float32 values:
# 16 roundings to the formats' 8 and 11 bits, after some forty in a row, of which each is half a
# step at most. Seen: 0.021 and 0.0045. `test_half_precision` in tests/parity compares with Meta's
# code.
BOUNDS = {"bfloat16": 16 * 2**-8, "float16": 16 * 2**-11}
POLICIES = ("bfloat16", "mixed_bfloat16", "float16", "mixed_float16")
# Each format, and each place of the weights; `test_the_loss_is_metas` has all four everywhere.
ON_EVERY_BACKEND = ("bfloat16", "mixed_float16")

IMAGES = [photograph((60, 90), 1), photograph((131, 74), 2)]
PROMPTS = {
    "points": [[[[10, 20]], [[80, 50], [3, 4]]], [[[70, 130]], [[1, 2]]]],
    "labels": [[[1], [0, 1]], [[1], [0]]],
    "boxes": [[None, [5, 6, 70, 50]], [[0, 0, 73, 130], None]],
}


def skip_where_missing(dtype):
    if "float16" in dtype and "bfloat16" not in dtype and keras.backend.backend() == "jax":
        import jax

        if jax.default_backend() == "cpu":
            pytest.skip("XLA multiplies no float16 matrices on a CPU")


def with_the_weights_of(source, target):
    values = {v.path: keras.ops.convert_to_numpy(v) for v in source.weights}
    assert sorted(values) == sorted(v.path for v in target.weights)
    for variable in target.weights:
        variable.assign(values[variable.path])
    return target


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(policy, marks=[pytest.mark.once] * (policy not in ON_EVERY_BACKEND))
        for policy in POLICIES
    ],
)
def precise_and_not(request, segmenter):
    """A segmenter in float32, and one with its weights in another policy."""
    skip_where_missing(request.param)
    with without_random_values():
        other = tiny_segmenter(dtype=request.param)
    return segmenter, with_the_weights_of(segmenter, other), request.param


def bound_of(dtype):
    return BOUNDS[dtype.removeprefix("mixed_")]


def test_masks_and_scores_stay_near_float32(precise_and_not):
    precise, other, dtype = precise_and_not
    x = {"images": IMAGES, **PROMPTS}
    expected, actual = (s.predict(x, verbose=0, batch_size=2) for s in (precise, other))
    for name in ("masks", "iou_pred"):
        assert actual[name].dtype == np.float32  # numpy has no bfloat16
        difference = relative_difference(actual[name], expected[name])
        assert 0 < difference <= bound_of(dtype), f"{name}: {difference:.4f}"


def test_embeddings_stay_near_float32(precise_and_not):
    precise, other, dtype = precise_and_not
    expected, actual = (
        s.encode(IMAGES, batch_size=2)["image_embeddings"] for s in (precise, other)
    )
    assert actual.dtype == np.float32
    assert 0 < relative_difference(actual, expected) <= bound_of(dtype)


def test_the_policy_reaches_every_layer(precise_and_not):
    """None computes in float32 by mistake, and a mixed policy keeps float32 variables."""
    _, other, dtype = precise_and_not
    compute = dtype.removeprefix("mixed_")
    variable = "float32" if dtype.startswith("mixed_") else dtype
    layers = [
        layer
        for part in (other.image_encoder, other.prompt_encoder, other.mask_decoder)
        for layer in part._flatten_layers()
        if layer.weights
    ]
    assert len(layers) > 50
    assert {layer.compute_dtype for layer in layers} == {compute}
    for weight in other.weights:
        if "gaussian_matrix" not in weight.path:  # of coordinates, always float32
            assert weight.dtype == variable, weight.path


def test_the_predictor(precise_and_not):
    precise, other, dtype = precise_and_not
    answers = []
    for segmenter in (precise, other):
        predictor = keras_sam.SAMPredictor(segmenter)
        predictor.set_image(IMAGES[0])
        answers.append(predictor.predict([[10, 20]], [1], return_logits=True))
    for expected, actual in zip(*answers, strict=True):
        assert actual.dtype == np.float32
        assert relative_difference(actual, expected) <= bound_of(dtype)


# --- coordinates ---


def coarse_click(dtype):
    """bfloat16 has steps of 4 at 1000, float16 of 0.5: what coordinates must not be rounded to."""
    return 4.0 if "bfloat16" in dtype else 0.5


@pytest.mark.parametrize("dtype", POLICIES)
def test_coordinates_stay_float32(dtype):
    """Clicks near x = 1000 whose coordinates the policy's format could not tell apart."""
    skip_where_missing(dtype)
    settings = {"hidden_size": 32, "image_embedding_size": (64, 64), "name": "prompt_encoder"}
    with without_random_values():
        encoder = keras_sam.SAMPromptEncoder(**settings, dtype=dtype)
        precise = keras_sam.SAMPromptEncoder(**settings)
        encoder.build(), precise.build()
    rng = np.random.default_rng(0)
    for ours, theirs in zip(encoder.weights, precise.weights, strict=True):
        assert ours.path == theirs.path
        values = rng.standard_normal(ours.shape).astype("float32")
        if "gaussian_matrix" not in ours.path:
            values = np.round(values)  # which any format holds
        ours.assign(values), theirs.assign(values)
    x = 1000 + coarse_click(dtype) / 4 * np.arange(4)
    points = np.stack([x, np.full(4, 517.0)], axis=-1)[None].astype("float32")
    labels = np.ones((1, 4), "int32")
    sparse, expected = (
        keras.ops.convert_to_numpy(
            keras.ops.cast(e(points=points, labels=labels)["prompt_sparse_embeddings"], "float32")
        )
        for e in (encoder, precise)
    )
    # Exact up to one rounding of the result.
    step = 2.0**-8 if "bfloat16" in dtype else 2.0**-11
    np.testing.assert_allclose(sparse, expected, rtol=step, atol=step)
    moved = np.abs(np.diff(sparse[0], axis=0)).max(axis=-1)
    assert (moved > 0).all(), "a click moved and its embedding did not"


@pytest.mark.parametrize("how", ["dtype", "global policy"])
def test_a_click_that_moves_by_a_pixel_moves_the_mask(how):
    """Through the whole model at a frame of 1024, by `predict`, by `decode` and called directly."""
    settings = {"image_shape": (1024, 1024, 3), "patch_size": 64, "num_layers": 1}
    before = keras.config.dtype_policy()
    try:
        if how == "global policy":
            keras.config.set_dtype_policy("bfloat16")
        with without_random_values():
            backbone = tiny_backbone(**settings, dtype="bfloat16" if how == "dtype" else None)
    finally:
        keras.config.set_dtype_policy(before)
    assert backbone.mask_decoder.compute_dtype == "bfloat16"
    segmenter = keras_sam.SAMImageSegmenter(backbone)
    images = photograph((1024, 1024))[None].astype("float32")
    embeddings = segmenter.encode(images)

    def predict(x):
        prompts = {"points": np.float32([[[x, 517]]]), "labels": np.array([[1]])}
        called = segmenter({"images": images, **prompts})["masks"]
        return (
            segmenter.predict({"images": images, **prompts}, verbose=0)["masks"],
            segmenter.decode(embeddings, prompts)["masks"],
            keras.ops.convert_to_numpy(keras.ops.cast(called, "float32")),
        )

    for at_1000, at_1001 in zip(predict(1000), predict(1001), strict=True):
        assert np.isfinite(at_1000).all() and np.isfinite(at_1001).all()
        assert np.abs(at_1000 - at_1001).max() > 0


# --- deep models ---


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_encoder_as_deep_as_vit_h_stays_finite(dtype):
    """ViT-H's 32 blocks, 16 heads and global blocks, a sixteenth of its width.

    With weights that let the residual stream grow to thousands, as it does in the released
    checkpoints, and attention logits to hundreds.
    """
    skip_where_missing(dtype)
    settings = {
        "hidden_size": 80,
        "num_layers": 32,
        "intermediate_dim": 320,
        "num_heads": 16,
        "global_attention_layer_indices": [7, 15, 23, 31],
        "image_shape": (64, 80, 3),
        "window_size": 3,
        "num_output_channels": 16,
    }
    image = photograph((64, 80))[None].astype("float32")
    with without_random_values():
        precise = keras_sam.ViTDetBackbone(**settings)
        encoder = keras_sam.ViTDetBackbone(**settings, dtype=dtype)
    rng = np.random.default_rng(1)
    for ours, theirs in zip(encoder.weights, precise.weights, strict=True):
        values = rng.standard_normal(ours.shape)
        if len(ours.shape) > 1 and "rel_pos" not in ours.path:
            values *= 6 / np.sqrt(np.prod(ours.shape[:-1]))
        ours.assign(values), theirs.assign(values)
    states = precise.with_outputs(hidden_states=True).predict_on_batch(image)
    largest = max(np.abs(state).max() for state in states["hidden_states"])
    assert 1000 < largest < 30_000, largest
    embeddings = encoder.predict_on_batch(image)
    embeddings = np.asarray(keras.ops.convert_to_numpy(embeddings), "float32")
    assert np.isfinite(embeddings).all()
    assert np.std(embeddings) > 0.1
