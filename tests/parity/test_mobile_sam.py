"""MobileSAM's own code and ours with the same random weights, batch norm's averages included."""

import functools

import keras
import numpy as np
import pytest

import keras_sam
from keras_sam import backends, converters
from keras_sam.converters import mobile_sam
from keras_sam.preprocessing import SAMImageSegmenterPreprocessor
from keras_sam.presets.assign import assign
from tests.generator_oracle import assert_same_records
from tests.mobile_sam_oracle import (
    import_mobile_sam,
    mobile_like,
    randomize_statistics,
    tensors_of,
)
from tests.parity.oracles import assert_same, frames, randomize
from tests.tiny import photograph, without_random_values

SQUARE, WIDE = (112, 112), (112, 144)  # windows are padded in every stage
MASK_BOUND = 1e-4  # of a mask's pixels, those whose logit is 0 but for rounding


@without_random_values()
def our_model(size, **encoder):
    """A `SAMImageSegmenter` with a small TinyViT; its weights are still to be loaded."""
    image_encoder = keras_sam.TinyViTBackbone(
        hidden_sizes=(8, 12, 20, 24),
        depths=(1, 2, 2, 1),
        num_heads=(1, 3, 4, 2),
        window_sizes=(5, 5, 4, 3),
        image_shape=(*size, 3),
        num_output_channels=32,
        **encoder,
    )
    prompt_encoder = keras_sam.SAMPromptEncoder(
        hidden_size=32, image_embedding_size=image_encoder.embedding_size, input_image_size=size
    )
    mask_decoder = keras_sam.SAMMaskDecoder(
        hidden_size=32, intermediate_dim=40, num_heads=4, iou_head_hidden_dim=20
    )
    backbone = keras_sam.SAMBackbone(image_encoder, prompt_encoder, mask_decoder)
    preprocessor = SAMImageSegmenterPreprocessor.for_backbone(backbone)
    return keras_sam.SAMImageSegmenter(backbone, preprocessor)


@functools.cache
def pair(size):
    """MobileSAM's model and ours with its weights."""
    import_mobile_sam()
    import torch

    torch.manual_seed(3)
    ours = our_model(size)
    parts = (ours.image_encoder, ours.prompt_encoder, ours.mask_decoder)
    oracle = randomize(mobile_like(*(part.get_config() for part in parts)), seed=3)
    randomize_statistics(oracle, seed=4)
    with torch.no_grad():  # the mask generator heeds thresholds above 0 only
        oracle.mask_decoder.iou_prediction_head.layers[-1].bias += 2
    arrays = converters.rename(tensors_of(oracle)).arrays
    assign(ours.weights, arrays, backends.assign_value)
    return oracle, ours


@functools.cache
def encoded(size):
    """Two images, and by name what MobileSAM's encoder makes of them, `(B, h, w, channels)`."""
    oracle, ours = pair(size)
    import torch

    images, found = frames(size, count=2), []
    second = oracle.image_encoder.layers[1]
    hook = second.register_forward_hook(lambda _, inputs, output: found.append(output))
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        features = oracle.image_encoder((pixels - oracle.pixel_mean) / oracle.pixel_std)
    hook.remove()
    embeddings = features.permute(0, 2, 3, 1)
    early = found[0].reshape(*embeddings.shape[:3], -1)
    return images, {"image_embeddings": embeddings, "early_features": early}


@pytest.mark.parametrize("size", [SQUARE, WIDE], ids=["112x112", "112x144"])
def test_image_encoder(size):
    _, ours = pair(size)
    images, expected = encoded(size)
    actual = ours.encode_frames(images, batch_size=2)
    assert_same(actual["image_embeddings"], expected["image_embeddings"])


def test_image_encoder_called_directly():
    _, ours = pair(WIDE)
    images, expected = encoded(WIDE)
    assert_same(ours.image_encoder(images), expected["image_embeddings"])


def test_early_features_are_what_the_second_stage_gives():
    _, ours = pair(WIDE)
    images, expected = encoded(WIDE)
    settings = {**ours.image_encoder.get_config(), "early_features": True}
    with without_random_values():
        encoder = keras_sam.TinyViTBackbone.from_config(settings)
    encoder.set_weights(ours.image_encoder.get_weights())
    actual = encoder.predict_on_batch(images)
    assert actual.keys() == expected.keys()
    for name, values in actual.items():
        assert_same(values, expected[name])


PROMPTS = {
    "click": {"points": [[250, 100]], "labels": [1]},
    "clicks at the ends": {"points": [[498, 100], [1, 331], [499, 332]], "labels": [1, 0, 1]},
    "box": {"boxes": [30, 40, 470, 300]},
    "click and box": {"points": [[60, 60]], "labels": [0], "boxes": [30, 40, 470, 300]},
}


@functools.cache
def predictors(size):
    """Both predictors with a photograph of that size."""
    oracle, ours = pair(SQUARE)
    mobile = import_mobile_sam().SamPredictor(oracle)
    predictor = keras_sam.SAMPredictor(ours)
    for either in (mobile, predictor):
        either.set_image(photograph(size))
    return mobile, predictor


def assert_same_answers(size, prompt, mask_input=None):
    mobile, ours = predictors(size)
    prompt = {name: np.array(values) for name, values in prompt.items()}
    for multimask_output in (True, False):
        masks, scores, logits = ours.predict(
            **prompt, masks=mask_input, multimask_output=multimask_output
        )
        expected = mobile.predict(
            point_coords=prompt.get("points"),
            point_labels=prompt.get("labels"),
            box=prompt.get("boxes"),
            mask_input=None if mask_input is None else mask_input[None],
            multimask_output=multimask_output,
        )
        assert_same(
            scores, expected[1], bound=1e-4
        )  # a score may be far below what it is summed of
        assert_same(logits, expected[2])
        assert 0 < expected[0].mean() < 1, "the oracle tells nothing"
        assert np.mean(masks != expected[0]) <= MASK_BOUND


@pytest.mark.parametrize("name", PROMPTS)
def test_every_prompt_on_a_photograph(name):
    assert_same_answers((333, 500), PROMPTS[name])


def test_a_mask_as_prompt():
    _, _, logits = predictors((333, 500))[0].predict(np.array([[99, 200]]), np.array([1]))
    assert_same_answers((333, 500), PROMPTS["click"], logits[0])


@pytest.mark.parametrize(
    "size",
    [
        (500, 333),  # portrait
        (97, 101),  # smaller than the frame
        (299, 427),  # at 112 the short side is 78.4
    ],
)
def test_photographs_of_odd_sizes(size):
    h, w = size
    assert_same_answers(size, {"points": [[w - 2, h // 3], [1, h - 2]], "labels": [1, 0]})


def test_records_of_the_mask_generator():
    oracle, ours = pair(SQUARE)
    # Random weights make nearly the same mask of every click: nothing is suppressed here, and the
    # predicted IoU decides where it tells most apart.
    settings = {
        "points_per_side": 5,
        "pred_iou_thresh": 0.0,
        "stability_score_thresh": 0.0,
        "stability_score_offset": 0.1,
        "box_nms_thresh": 1.0,
    }
    image = photograph((83, 101), seed=2)
    generator = import_mobile_sam().SamAutomaticMaskGenerator(oracle, **settings)
    scores = np.sort([record["predicted_iou"] for record in generator.generate(image)])
    middle = slice(len(scores) // 4, 3 * len(scores) // 4)
    gap = np.argmax(np.diff(scores[middle])) + middle.start
    settings["pred_iou_thresh"] = generator.pred_iou_thresh = float(scores[gap : gap + 2].mean())
    assert np.diff(scores).min() > 2e-5, "scores so alike that rounding decides the order"
    expected = generator.generate(image)
    assert 10 < len(expected) < len(scores), "too few records to tell anything"
    actual = keras_sam.SAMAutomaticMaskGenerator(ours, **settings).generate(image)
    assert_same_records(actual, expected)


def test_a_file_in_mobile_sams_names_loads_into_its_code():
    oracle, ours = pair(WIDE)
    import torch

    arrays = {v.path: keras.ops.convert_to_numpy(v) for v in ours.weights}
    written = converters.to_meta(arrays, mobile_sam.FAMILY)
    state = {name: torch.from_numpy(np.array(t)) for name, t in written.items()}
    parts = (ours.image_encoder, ours.prompt_encoder, ours.mask_decoder)
    fresh = mobile_like(*(part.get_config() for part in parts))
    fresh.load_state_dict(state)
    classifier = ("image_encoder.head.", "image_encoder.norm_head.")
    for name, values in tensors_of(oracle).items():
        if not name.startswith(classifier) and not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(tensors_of(fresh)[name], values)


def test_a_file_gives_the_settings_that_shapes_tell():
    oracle, ours = pair(WIDE)
    family, parts, arrays = converters.convert(
        tensors_of(oracle), {"image_encoder": {"image_shape": [112, 144]}}
    )
    assert family.name == "MobileSAM"
    for name, part in parts.items():
        wanted = getattr(ours, name).get_config()
        found = part["config"]
        same = {k: list(wanted[k]) if np.ndim(wanted[k]) else wanted[k] for k in found}
        if name == "image_encoder":  # of the first stage, which has no attention, they tell nothing
            same |= {k: [found[k][0], *same[k][1:]] for k in ("num_heads", "window_sizes")}
        if name == "mask_decoder":
            same["num_heads"] = 8  # which no shape tells
        assert found == same
    assert arrays.keys() == {v.path for v in ours.weights}


def test_parameter_counts_of_the_released_model():
    mobile = import_mobile_sam()
    oracle = mobile.sam_model_registry["vit_t"]().image_encoder
    with without_random_values():
        ours = keras_sam.TinyViTBackbone()
    counted = {
        name: values.numel()
        for name, values in oracle.state_dict().items()
        if not name.startswith(("head.", "norm_head.")) and "num_batches_tracked" not in name
    }
    assert ours.count_params() == sum(counted.values())
    averages = sum(n for name, n in counted.items() if "running" in name)
    assert sum(np.prod(v.shape) for v in ours.non_trainable_weights) == averages
    tensors = {f"image_encoder.{k}": v.numpy() for k, v in oracle.state_dict().items()}
    _, parts, _ = converters.convert(tensors)
    found = parts["image_encoder"]["config"]
    wanted = ours.get_config()
    assert found == {k: list(wanted[k]) if np.ndim(wanted[k]) else wanted[k] for k in found}
