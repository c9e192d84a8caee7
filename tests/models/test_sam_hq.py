"""What SAM-HQ's task has beside SAM's: the token's mask alone, its layers alone, its features."""

import keras
import numpy as np
import pytest

import keras_sam
from keras_sam.preprocessing import SAMImageSegmenterPreprocessor
from keras_sam.prompts import CANONICAL_KEYS
from keras_sam.training import CachedEmbeddings, ObjectBatches, SAMTrainer
from tests.closeness import assert_different, assert_same
from tests.tiny import photograph, randomize, tiny_segmenter, without_random_values
from tests.training.steps import disc

TRAINS = pytest.mark.skipif(keras.backend.backend() == "openvino", reason="OpenVINO only predicts")
PHOTO = photograph((53, 80), 1)
CLICKS = {"points": [[[[30, 20]], [[60, 40]]]], "labels": [[[1], [1]]]}


def hq_segmenter(light=False, dtype=None, seed=4):
    """A `SAMHQImageSegmenter` of random weights, frame 64 x 96; with `light` behind TinyViT."""
    with without_random_values():
        if light:
            encoder = keras_sam.TinyViTBackbone(
                hidden_sizes=(4, 8, 12, 16),
                depths=(1, 1, 1, 1),
                num_heads=(1, 2, 3, 4),
                window_sizes=(3, 3, 4, 3),
                image_shape=(64, 96, 3),
                num_output_channels=16,
                early_features=True,
                dtype=dtype,
            )
        else:
            encoder = keras_sam.ViTDetBackbone(
                hidden_size=12,
                num_layers=2,
                intermediate_dim=20,
                num_heads=3,
                global_attention_layer_indices=[0],
                image_shape=(64, 96, 3),
                window_size=3,
                num_output_channels=16,
                early_features=True,
                dtype=dtype,
            )
        prompt_encoder = keras_sam.SAMPromptEncoder(
            hidden_size=16,
            image_embedding_size=(4, 6),
            input_image_size=(64, 96),
            mask_in_channels=8,
            dtype=dtype,
        )
        decoder = keras_sam.SAMHQMaskDecoder(
            early_dim=12,
            hidden_size=16,
            intermediate_dim=20,
            num_heads=2,
            iou_head_hidden_dim=12,
            dtype=dtype,
        )
        backbone = keras_sam.SAMBackbone(encoder, prompt_encoder, decoder, dtype=dtype)
    randomize(backbone, seed)
    preprocessor = SAMImageSegmenterPreprocessor.for_backbone(backbone)
    return keras_sam.SAMHQImageSegmenter(backbone, preprocessor)


@pytest.fixture(scope="module")
def segmenter():
    return hq_segmenter()


@pytest.fixture(scope="module")
def encoded(segmenter):
    return segmenter.encode([PHOTO])


def test_the_token_s_mask_replaces_each_sum(segmenter, encoded):
    sums = segmenter.decode(encoded, CLICKS)
    segmenter.hq_token_only = True
    alone = segmenter.decode(encoded, CLICKS)
    one = segmenter.decode(encoded, CLICKS, multimask_output=False)
    called = segmenter.predict({"images": [PHOTO], **CLICKS}, verbose=0)
    segmenter.hq_token_only = False
    assert alone["masks"].shape == sums["masks"].shape
    for k in range(4):
        np.testing.assert_array_equal(alone["masks"][:, :, k], alone["masks"][:, :, 0])
    assert_same(one["masks"][:, :, 0], alone["masks"][:, :, 0])
    assert_same(called["masks"], alone["masks"])
    assert_same(alone["iou_pred"], sums["iou_pred"])
    assert_different(alone["masks"], sums["masks"])
    assert_same(segmenter.decode(encoded, CLICKS)["masks"], sums["masks"])


def test_all_ways_to_one_answer(segmenter, encoded):
    decoded = segmenter.decode(encoded, CLICKS)
    prepared = segmenter.prepare({"images": [PHOTO], **CLICKS})
    inputs = {name: prepared[name] for name in ("images", *CANONICAL_KEYS)}
    direct = segmenter.mask_decoder(**segmenter.backbone(inputs))
    assert_same(keras.ops.convert_to_numpy(direct["masks"]), decoded["masks"])
    best = segmenter.decode(encoded, CLICKS, multimask_output=True)
    attended = segmenter.decode(encoded, CLICKS, multimask_output=True, return_attentions=True)
    assert_same(attended["masks"], best["masks"])
    tokens = attended["attentions"][0]["self_attention"].shape[-1]
    assert tokens == 1 + 4 + 1 + 2  # quality, masks, SAM-HQ's, the click and not-a-point
    many = {"points": np.tile(CLICKS["points"], (1, 3, 1, 1)), "labels": np.ones((1, 6, 1), int)}
    together = segmenter.decode(encoded, many, multimask_output=True)  # the image is projected
    assert_same(together["masks"][:, :2], best["masks"])
    nothing = segmenter.decode(encoded, {"boxes": np.zeros((1, 0, 4))}, multimask_output=True)
    assert nothing["masks"].shape == (1, 0, 1, 16, 24)


def test_what_is_kept_of_an_image_follows_image_and_weights(encoded):
    segmenter = hq_segmenter()
    first = segmenter.decode(encoded, CLICKS)["masks"]
    other = {**encoded, "early_features": 2 * encoded["early_features"]}
    assert_different(segmenter.decode(other, CLICKS)["masks"], first)
    assert_same(segmenter.decode(encoded, CLICKS)["masks"], first)
    kernel = segmenter.mask_decoder.early_upscaling.conv2.kernel
    kernel.assign(1.5 * keras.ops.convert_to_numpy(kernel))
    assert_different(segmenter.decode(encoded, CLICKS)["masks"], first)


@pytest.mark.parametrize(
    "light",
    [pytest.param(False, id="ViT"), pytest.param(True, id="TinyViT", marks=pytest.mark.once)],
)
def test_files_keep_everything(tmp_path, light):
    segmenter = hq_segmenter(light)
    segmenter.hq_token_only = True
    expected = segmenter.predict({"images": [PHOTO], **CLICKS}, verbose=0)["masks"]
    segmenter.save_to_preset(tmp_path / "preset")
    segmenter.save(tmp_path / "task.keras")
    for file in ("preset", "task.keras"):
        loaded = keras_sam.ImageSegmenter.from_preset(tmp_path / file)
        assert type(loaded) is keras_sam.SAMHQImageSegmenter
        assert loaded.hq_token_only
        assert_same(loaded.predict({"images": [PHOTO], **CLICKS}, verbose=0)["masks"], expected)
    loaded = keras.saving.load_model(tmp_path / "task.keras")
    assert_same(loaded.predict({"images": [PHOTO], **CLICKS}, verbose=0)["masks"], expected)
    loaded = keras_sam.SAMImageSegmenter.from_preset(tmp_path / "preset", hq_token_only=False)
    assert not loaded.hq_token_only
    wide = loaded.at_image_shape((96, 96))
    assert wide.feature_shapes["early_features"] == (6, 6, 12)


@TRAINS
def test_training_as_its_authors_did_changes_sam_hq_s_layers_alone(tmp_path):
    segmenter = hq_segmenter()
    segmenter.freeze("image_encoder", "prompt_encoder", "sam_decoder")
    added = {variable.path for variable in segmenter.mask_decoder.hq_weights()}
    assert {variable.path for variable in segmenter.trainable_variables} == added
    assert len(added) == 1 + 6 + 6 + 6 + 6
    segmenter.compile(keras.optimizers.Adam(1e-2))
    data = {"images": [PHOTO], "points": [[[30, 20]]], "labels": [[1]]}
    targets = {"masks": disc(PHOTO.shape[:2], 20, 30, 12)[None]}
    with_sums = segmenter.evaluate(data, targets, verbose=0, return_dict=True)["loss"]
    segmenter.hq_token_only = True
    alone = segmenter.evaluate(data, targets, verbose=0, return_dict=True)["loss"]
    assert not np.isclose(alone, with_sums)  # Keras's compiled step is another
    before = {v.path: keras.ops.convert_to_numpy(v) for v in segmenter.backbone.weights}
    losses = segmenter.fit(data, targets, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    for v in segmenter.backbone.weights:
        changed = np.any(before[v.path] != keras.ops.convert_to_numpy(v))
        assert changed == (v.path in added), v.path
    segmenter.save(tmp_path / "model.keras")  # which trains the same, a preset all
    segmenter.save_to_preset(tmp_path / "preset")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert {variable.path for variable in loaded.trainable_variables} == added
    assert len(loaded.optimizer.variables) == len(segmenter.optimizer.variables)
    for file in ("preset", "model.keras"):
        whole = keras_sam.ImageSegmenter.from_preset(tmp_path / file)
        assert len(whole.trainable_variables) > len(whole.mask_decoder.weights)
    segmenter.unfreeze("sam_decoder")
    assert len(segmenter.trainable_variables) == len(segmenter.mask_decoder.weights)
    with pytest.raises(ValueError, match="sam_decoder"):
        segmenter.freeze("decoder")


@pytest.mark.once
@TRAINS
def test_cached_features_and_the_trainer(tmp_path):
    segmenter = hq_segmenter()
    segmenter.enable_lora(rank=2)
    segmenter.freeze("image_encoder", "prompt_encoder")
    source = [(PHOTO, disc(PHOTO.shape[:2], 20, 30, 12)[None])]
    data = CachedEmbeddings(segmenter, source, tmp_path / "cache", verbose=0)
    assert set(data[0][0]) == {"image_embeddings", "early_features"}
    trainer = SAMTrainer(segmenter, num_clicks=1, seed=1)
    trainer.compile(keras.optimizers.SGD(1e-3))
    history = trainer.fit(ObjectBatches(data, 1, seed=3), verbose=0).history
    assert np.isfinite(history["loss"]).all()


def message(error, function, *arguments, **named):
    with pytest.raises(error) as caught:
        function(*arguments, **named)
    return str(caught.value)


@pytest.mark.once
def test_parts_that_do_not_fit_are_refused():
    hq, sam = hq_segmenter(), tiny_segmenter(image_shape=(64, 96, 3))
    parts = (sam.image_encoder, sam.prompt_encoder)
    backbone = keras_sam.SAMBackbone(*parts, hq.mask_decoder)
    said = message(ValueError, keras_sam.SAMHQImageSegmenter, backbone)
    assert "`early_features` must be given to SAM-HQ's decoder" in said
    said = message(
        ValueError,
        keras_sam.SAMBackbone,
        hq.image_encoder,
        hq.prompt_encoder,
        keras_sam.SAMMaskDecoder.from_config(sam.mask_decoder.get_config()),
    )
    assert "an encoder of `early_features`, and a SAMMaskDecoder" in said
    said = message(ValueError, keras_sam.SAMHQImageSegmenter, sam.backbone)
    assert "`backbone.mask_decoder` must be a `SAMHQMaskDecoder`" in said
    said = message(ValueError, _decoder_of_another_width)
    assert "`early_features` must have as many channels as `early_dim`" in said
    said = message(
        ValueError,
        keras_sam.ViTDetBackbone,
        **{**hq.image_encoder.get_config(), "global_attention_layer_indices": []},
    )
    assert "`early_features=True` takes the output of the first global block" in said


def _decoder_of_another_width():
    hq = hq_segmenter()
    config = {**hq.mask_decoder.get_config(), "early_dim": 10}
    decoder = keras_sam.SAMHQMaskDecoder.from_config(config)
    keras_sam.SAMHQImageSegmenter(
        keras_sam.SAMBackbone(hq.image_encoder, hq.prompt_encoder, decoder)
    )


@pytest.mark.once
def test_features_of_the_other_model_are_refused(segmenter, encoded, tmp_path):
    sam = tiny_segmenter(image_shape=(64, 96, 3))
    said = message(ValueError, segmenter.decode, sam.encode([PHOTO]), CLICKS)
    assert "`early_features` must be given beside `image_embeddings`" in said
    said = message(ValueError, sam.decode, encoded, CLICKS)
    assert "also ['early_features'], as of another model" in said
    predictors = [keras_sam.SAMPredictor(s) for s in (segmenter, sam)]
    for i, predictor in enumerate(predictors):
        predictor.set_image(PHOTO)
        predictor.save_embedding(tmp_path / f"{i}.safetensors")
    for i, predictor in enumerate(predictors):
        said = message(ValueError, predictor.load_embedding, tmp_path / f"{1 - i}.safetensors")
        assert "made by another model" in said


@pytest.mark.once
def test_a_file_of_sam_is_refused_and_one_of_sam_hq_is_recognised(segmenter, tmp_path):
    sam = tiny_segmenter(image_shape=(64, 96, 3))
    sam.save_to_preset(tmp_path / "sam")
    segmenter.save_to_preset(tmp_path / "hq")
    said = message(ValueError, keras_sam.SAMHQImageSegmenter.from_preset, tmp_path / "sam")
    assert "must be of class SAMHQImageSegmenter" in said
    assert "`SAMImageSegmenter.from_preset` loads" in said
    loaded = keras_sam.SAMImageSegmenter.from_preset(tmp_path / "hq")
    assert type(loaded) is keras_sam.SAMHQImageSegmenter
    said = message(ValueError, sam.load_checkpoint, tmp_path / "hq" / "model.weights.h5")
    assert "mask_decoder/hq_token" in said and "look like SAM-HQ" in said
    said = message(ValueError, segmenter.load_checkpoint, tmp_path / "sam" / "model.weights.h5")
    assert "mask_decoder/hq_token" in said
