"""SAM 2's task: what it has that SAM's has not, in every way of using it.

Every backend predicts and trains with its parts. Files, LoRA and cached features take a model's
parts as they take SAM's, with which they are tested on every backend; errors and enlarged masks are
numpy.
"""

import keras
import numpy as np
import pytest

import keras_sam
from keras_sam import backends
from keras_sam.training import CachedEmbeddings, ObjectBatches, SAM2Loss, SAMTrainer
from tests.tiny import photograph, tiny_sam2_backbone, tiny_sam2_segmenter, tiny_segmenter

NAMES = ("masks", "iou_pred", "object_score")
needs_training = pytest.mark.skipif(not backends.CAN_TRAIN, reason="this backend only predicts")


@pytest.fixture(scope="module")
def segmenter():
    return tiny_sam2_segmenter()


def ragged_inputs():
    """Two pictures of other proportions than the frame's, with two boxes and one click."""
    return {
        "images": [photograph((53, 131)), photograph((97, 60), seed=1)],
        "boxes": [[[10, 5, 90, 40], [50, 20, 120, 50]], [[5, 6, 50, 90]]],
    }


def assert_same_outputs(actual, expected, tolerance=2e-5):
    for name in NAMES:
        np.testing.assert_allclose(actual[name], expected[name], atol=tolerance, rtol=tolerance)


def test_predict_returns_object_scores(segmenter):
    outputs = segmenter.predict(ragged_inputs(), verbose=0)
    assert outputs["masks"].shape == (2, 2, 4, 16, 24)
    assert outputs["object_score"].shape == outputs["num_prompts"].shape + (2,)
    assert np.isnan(outputs["object_score"]).tolist() == [[False, False], [False, True]]
    assert ((outputs["iou_pred"] > 0) & (outputs["iou_pred"] < 1))[0].all()
    assert outputs["scaled_sizes"].tolist() == [[64, 96]] * 2
    assert outputs["stretched"].all()


def test_encoded_images_give_the_same(segmenter):
    inputs = ragged_inputs()
    encoded = segmenter.encode(inputs["images"], batch_size=2)
    names = {"image_embeddings", "high_res_features_0", "high_res_features_1"}
    assert set(encoded) == {*names, "original_sizes", "scaled_sizes"}
    outputs = segmenter.decode(encoded, {"boxes": inputs["boxes"]})
    assert_same_outputs(outputs, segmenter.predict(inputs, verbose=0))


@pytest.mark.once
def test_masks_of_stretched_images_are_the_predictors(segmenter):
    inputs = ragged_inputs()
    outputs = segmenter.predict(inputs, verbose=0)
    restored = keras_sam.restore_masks(outputs)
    predictor = keras_sam.SAMPredictor(segmenter)
    for image, boxes, masks in zip(inputs["images"], inputs["boxes"], restored, strict=True):
        predictor.set_image(image)
        expected, _, logits = predictor.predict(boxes=boxes, multimask_output=True)
        np.testing.assert_array_equal(masks[:, 1:], expected)
        assert 0 < expected.mean() < 1
        again = keras_sam.restore_masks(
            logits, [image.shape[:2]] * len(logits), segmenter.image_shape[:2], stretch=True
        )
        np.testing.assert_array_equal(again, expected)


@pytest.mark.once
def test_a_model_without_a_preprocessor_takes_its_own_frame(segmenter):
    bare = keras_sam.SAM2ImageSegmenter(segmenter.backbone)
    frame = photograph((64, 96))
    prompts = {"points": [[[20, 30]]], "labels": [[1]]}
    outputs = bare.predict({"images": frame[None], **prompts}, verbose=0)
    expected = segmenter.predict({"images": [frame], **prompts}, verbose=0)
    assert_same_outputs(outputs, expected)
    masks, wanted = keras_sam.restore_masks(outputs), keras_sam.restore_masks(expected)
    np.testing.assert_array_equal(masks, wanted)
    predictor = keras_sam.SAMPredictor(bare)  # whose preprocessor stretches
    predictor.set_image(photograph((53, 131)))
    assert predictor.preprocessor.image_converter.stretch


def test_logits_that_go_back_as_prompts_are_bounded(segmenter):
    logits = np.array([[-90.0, 3.0, 90.0]], "float32")
    for values in (logits, keras.ops.convert_to_tensor(logits)):
        bounded = keras.ops.convert_to_numpy(segmenter.logits_as_prompt(values))
        np.testing.assert_array_equal(bounded, [[-32, 3, 32]])
    np.testing.assert_array_equal(tiny_segmenter().logits_as_prompt(logits), logits)


@pytest.mark.once
def test_an_embedding_file_holds_all_features(segmenter, tmp_path):
    image, box = photograph((53, 131)), [10, 5, 90, 40]
    predictor = keras_sam.SAMPredictor(segmenter)
    predictor.set_image(image)
    expected = predictor.predict(boxes=box)
    predictor.save_embedding(tmp_path / "embedding")
    again = keras_sam.SAMPredictor(segmenter)
    again.load_embedding(tmp_path / "embedding")
    for actual, wanted in zip(again.predict(boxes=box), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, atol=1e-5)
    with pytest.raises(ValueError, match="made by another model"):
        keras_sam.SAMPredictor(tiny_segmenter()).load_embedding(tmp_path / "embedding")


@pytest.mark.once
def test_saving(segmenter, tmp_path):
    inputs = ragged_inputs()
    expected = segmenter.predict(inputs, verbose=0)
    segmenter.save(tmp_path / "model.keras")
    segmenter.save_to_preset(tmp_path / "preset")
    for loaded in (
        keras.saving.load_model(tmp_path / "model.keras"),
        keras_sam.ImageSegmenter.from_preset(tmp_path / "preset"),
    ):
        assert type(loaded) is keras_sam.SAM2ImageSegmenter
        assert type(loaded.preprocessor) is keras_sam.SAM2ImageSegmenterPreprocessor
        assert loaded.mask_decoder.get_config() == segmenter.mask_decoder.get_config()
        assert loaded.prompt_encoder.not_a_point_after_boxes
        assert_same_outputs(loaded.predict(inputs, verbose=0), expected)


@pytest.mark.once
def test_the_generator_starts_with_the_settings_of_sam2(segmenter):
    assert segmenter.generator_settings == {"pred_iou_thresh": 0.8}
    generator = keras_sam.SAMAutomaticMaskGenerator(segmenter)
    assert generator.thresholds.pred_iou_thresh == 0.8
    own = keras_sam.SAM2ImageSegmenter(segmenter.backbone, generator_settings={})
    assert own.generator_settings == {}


# --- training ---


def training_data():
    """A picture with an object and one without it, which is a target, too."""
    images = [photograph((53, 131)), photograph((97, 60), seed=1)]
    target = np.zeros((1, 53, 131), "uint8")
    target[:, 10:40, 20:80] = 1
    return images, [target, np.zeros((1, 97, 60), "uint8")]


def values(model):
    return {v.path: keras.ops.convert_to_numpy(v) for v in model.trainable_variables}


@needs_training
def test_an_empty_target_trains_the_object_score_alone():
    segmenter = tiny_sam2_segmenter()
    segmenter.freeze("image_encoder", "prompt_encoder")
    segmenter.compile(optimizer=keras.optimizers.SGD(0.1))
    assert isinstance(segmenter._fit_state.loss, SAM2Loss)
    before = values(segmenter)
    images, targets = training_data()
    x = {"images": images[1:], "points": [[[30, 40]]], "labels": [[1]]}
    segmenter.fit(x, {"masks": targets[1:]}, verbose=0)
    changed = {p for p, x in values(segmenter).items() if not np.array_equal(x, before[p])}
    assert "mask_decoder/object_score_head/dense_2/kernel" in changed
    assert not [p for p in changed if "hypernetwork" in p or "iou_prediction" in p]


@needs_training
def test_fit_learns_where_an_object_is_and_that_there_is_none():
    segmenter = tiny_sam2_segmenter()
    segmenter.compile(optimizer=keras.optimizers.Adam(3e-3))
    images, targets = training_data()
    x = {"images": images, "points": [[[50, 25]], [[30, 40]]], "labels": [[1], [1]]}
    history = segmenter.fit(x, {"masks": targets}, batch_size=2, epochs=12, verbose=0).history
    assert np.mean(history["loss"][-2:]) < 0.9 * history["loss"][0]
    scores = segmenter.predict(x, verbose=0)["object_score"]
    assert scores[0] > scores[1]


def trainer_of_two_clicks():
    segmenter = tiny_sam2_segmenter()
    segmenter.freeze("image_encoder")
    trainer = SAMTrainer(segmenter, num_clicks=1, seed=1)
    trainer.compile(optimizer=keras.optimizers.Adam(3e-3))
    return trainer


@pytest.mark.once
@needs_training
def test_the_trainer_takes_cached_features(tmp_path):
    trainer = trainer_of_two_clicks()
    images, targets = training_data()
    source = list(zip(images, targets, strict=True))[:1]
    cache = CachedEmbeddings(trainer.segmenter, source, tmp_path, verbose=0)
    history = trainer.fit(ObjectBatches(cache, seed=1), epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()


@needs_training
def test_the_trainer_asks_for_an_empty_target_with_a_click_beside_the_object():
    trainer = trainer_of_two_clicks()
    images, targets = training_data()
    history = trainer.fit({"images": images}, {"masks": targets}, epochs=1, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert trainer._fit_state.loss == SAM2Loss()


@pytest.mark.once
@needs_training
def test_lora():
    segmenter = tiny_sam2_segmenter()
    segmenter.enable_lora(2)
    segmenter.compile(optimizer=keras.optimizers.Adam(3e-3))
    before = values(segmenter)
    images, targets = training_data()
    x = {"images": images[:1], "points": [[[50, 25]]], "labels": [[1]]}
    segmenter.fit(x, {"masks": targets[:1]}, epochs=2, verbose=0)
    changed = {p for p, v in values(segmenter).items() if not np.array_equal(v, before[p])}
    assert any("lora" in p for p in changed)


# --- bad input ---


@pytest.mark.once
def test_features_that_are_missing(segmenter):
    encoded = segmenter.encode([photograph((53, 131))])
    prompts = {"points": [[[20, 30]]], "labels": [[1]]}
    with pytest.raises(ValueError, match="`high_res_features_0` must be given"):
        segmenter.decode(encoded["image_embeddings"], prompts, original_sizes=[(53, 131)])
    del encoded["high_res_features_1"]
    with pytest.raises(ValueError, match="`high_res_features_1` must be given"):
        segmenter.decode(encoded, prompts)


@pytest.mark.once
def test_features_of_another_model(segmenter):
    sams = tiny_segmenter().encode([photograph((53, 131))])
    prompts = {"points": [[[20, 30]]], "labels": [[1]]}
    with pytest.raises(ValueError, match="`(high_res_features_0|image_embeddings)` must"):
        segmenter.decode(sams, prompts)
    encoded = segmenter.encode([photograph((53, 131))])
    with pytest.raises(ValueError, match="high_res_features_1'], as of another model"):
        tiny_segmenter(image_shape=segmenter.image_shape).decode(encoded, prompts)


@pytest.mark.once
def test_parts_of_another_model(segmenter):
    backbone = segmenter.backbone
    with pytest.raises(ValueError, match="an encoder of `high_res_features_0` and"):
        keras_sam.SAMImageSegmenter(
            keras_sam.SAMBackbone(
                backbone.image_encoder,
                backbone.prompt_encoder,
                keras_sam.SAMMaskDecoder(hidden_size=16, num_heads=2),
            )
        )
    with pytest.raises(ValueError, match="must be a `SAM2MaskDecoder`. Received: a SAMMaskDecoder"):
        keras_sam.SAM2ImageSegmenter(tiny_segmenter().backbone)


@pytest.mark.once
def test_a_stretching_converter_has_no_padding():
    for settings in ({"pad_size": 128}, {"do_resize": False}):
        with pytest.raises(ValueError, match="`stretch` needs"):
            keras_sam.SAMImageConverter(size=64, stretch=True, **settings)


@pytest.mark.skipif(backends.NAME != "tensorflow", reason="`tf.data` comes with TensorFlow")
def test_inside_tf_data():
    import tensorflow as tf

    preprocessor = tiny_sam2_segmenter().preprocessor
    image, box = photograph((53, 131)), np.float32([[[10, 5, 90, 40]]])
    data = tf.data.Dataset.from_tensors({"images": image[None], "boxes": box}).map(preprocessor)
    made = next(iter(data))
    expected = preprocessor({"images": [image], "boxes": box})
    for name in ("images", "points", "scaled_sizes"):
        np.testing.assert_allclose(made[name], expected[name], atol=1e-4)


@pytest.mark.once
def test_the_functional_graph():
    backbone = tiny_sam2_backbone()
    inputs = {
        "images": np.zeros((1, *backbone.image_shape), "float32"),
        "points": np.float32([[[20, 30]]]),
        "labels": np.int32([[1]]),
    }
    outputs = backbone.mask_decoder(**backbone(inputs))
    assert outputs["masks"].shape == (1, 4, 16, 24)
    assert outputs["object_score"].shape == (1,)
