"""An image encoder may give its decoder more than embeddings: features travel by name.

The models here are a SAM whose decoder adds an early feature to the embedding, and gives a third
output; with the feature's values it decodes what SAM decodes.
"""

import keras
import numpy as np
import pytest
from keras import ops

import keras_sam
from keras_sam.preprocessing import SAMImageSegmenterPreprocessor
from keras_sam.training import CachedEmbeddings, ObjectBatches, SAMTrainer
from tests.closeness import assert_different, assert_same
from tests.tiny import photograph, tiny_backbone, tiny_segmenter
from tests.training.steps import disc

SIZES = ((53, 80), (90, 41))
PHOTOS = [photograph(size, seed) for seed, size in enumerate(SIZES)]
PROMPTS = {
    "points": [[[[30, 20]], [[60, 40], [5, 9]]], [[[20, 70]]]],
    "labels": [[[1], [1, 0]], [[1]]],
}


@keras.saving.register_keras_serializable(package="tests")
class EarlyDecoder(keras_sam.SAMMaskDecoder):
    """Adds `early_features` `(B, Eh, Ew, C)` to the embedding, and returns the prompt's number."""

    extra_outputs = ("tokens",)

    def call(
        self,
        image_embeddings=None,
        early_features=None,
        projected_image=None,
        multimask_output=None,
        training=None,
        **prompts,
    ):
        if projected_image is None:
            image_embeddings = image_embeddings + early_features
        outputs = super().call(
            image_embeddings,
            projected_image=projected_image,
            multimask_output=multimask_output,
            training=training,
            **prompts,
        )
        outputs["tokens"] = ops.sum(
            ops.cast(prompts["prompt_sparse_mask"], outputs["masks"].dtype), axis=-1
        )
        return outputs

    def compute_output_spec(self, *args, early_features=None, **kwargs):
        outputs = super().compute_output_spec(*args, **kwargs)
        lead = outputs["iou_pred"].shape[:-1]
        return {**outputs, "tokens": keras.KerasTensor(lead, self.compute_dtype)}

    def project_image(self, image_embeddings, early_features, **prompts):
        return super().project_image(image_embeddings + early_features, **prompts)


def with_early_features(**settings):
    plain = tiny_backbone(**settings)
    encoder = plain.image_encoder
    early = keras.layers.AveragePooling2D(16)(encoder.input / 255.0)
    early = ops.concatenate([early] * 5 + [early[..., :1]], axis=-1)  # (B, Eh, Ew, 16)
    two = keras.Model(
        encoder.input, {"image_embeddings": encoder.output, "early_features": early}, name="encoder"
    )
    two.image_shape, two.pixel_mean, two.pixel_std = (
        encoder.image_shape,
        encoder.pixel_mean,
        encoder.pixel_std,
    )
    decoder = EarlyDecoder.from_config(plain.mask_decoder.get_config())
    backbone = keras_sam.SAMBackbone(two, plain.prompt_encoder, decoder)
    decoder.set_weights(plain.mask_decoder.get_weights())
    preprocessor = SAMImageSegmenterPreprocessor.for_backbone(backbone)
    return keras_sam.SAMImageSegmenter(backbone, preprocessor)


@pytest.fixture(scope="module")
def segmenter():
    return with_early_features()


@pytest.fixture(scope="module")
def encoded(segmenter):
    return segmenter.encode(PHOTOS)


def test_encode_returns_every_feature(segmenter, encoded):
    assert segmenter.feature_shapes == {
        "image_embeddings": (7, 9, 16),
        "early_features": (7, 9, 16),
    }
    sizes = {"original_sizes", "scaled_sizes"}
    assert encoded.keys() == segmenter.feature_shapes.keys() | sizes
    for name, shape in segmenter.feature_shapes.items():
        assert encoded[name].shape == (2, *shape)
        assert encoded[name].dtype == "float32"


def test_decode_takes_them_as_sam_takes_their_sum(encoded, segmenter):
    sam = tiny_segmenter()
    assert_same(sam.encode(PHOTOS)["image_embeddings"], encoded["image_embeddings"])
    plain = {name: x for name, x in encoded.items() if name != "early_features"}
    joined = encoded["image_embeddings"] + encoded["early_features"]
    expected = sam.decode({**plain, "image_embeddings": joined}, PROMPTS)
    outputs = segmenter.decode(encoded, PROMPTS)
    assert_same(outputs["masks"], expected["masks"])
    assert_same(outputs["iou_pred"], expected["iou_pred"])
    without = sam.decode(plain, PROMPTS)
    assert_different(without["masks"][0], expected["masks"][0])


def test_what_prompts_share_is_computed_once_with_the_features(segmenter, encoded):
    prompts = {"points": [[[[x, y]] for x in (10, 30, 50) for y in (10, 40)]] * 2}
    together = segmenter.decode(encoded, prompts)
    for i, point in enumerate(prompts["points"][0]):
        alone = segmenter.decode(encoded, {"points": [[point]] * 2})
        assert_same(together["masks"][:, i], alone["masks"][:, 0])


def test_predict_gives_further_outputs_and_nan_for_padding(segmenter, encoded):
    outputs = segmenter.predict({"images": PHOTOS, **PROMPTS}, verbose=0)
    expected = segmenter.decode(encoded, PROMPTS)
    assert_same(outputs["masks"], expected["masks"])
    np.testing.assert_array_equal(outputs["tokens"][0], [2, 3])  # with not-a-point
    assert np.isnan(outputs["tokens"][1, 1])
    selected = keras_sam.select_masks(outputs, "auto")
    np.testing.assert_array_equal(selected["tokens"], outputs["tokens"])
    none = segmenter.predict({"images": PHOTOS[:1], "boxes": np.zeros((1, 0, 4))}, verbose=0)
    assert none["tokens"].shape == (1, 0)


def test_predictor_keeps_and_saves_them(segmenter, encoded, tmp_path):
    predictor = keras_sam.SAMPredictor(segmenter)
    predictor.set_images(PHOTOS, verbose=0)
    answer = predictor.predict(points=[[20, 70]], image_index=1)
    assert_same(answer[2], segmenter.decode(encoded, PROMPTS)["masks"][1, 0, 1:])
    assert predictor.features.keys() == segmenter.feature_shapes.keys()
    predictor.save_embedding(tmp_path / "two.safetensors")
    fresh = keras_sam.SAMPredictor(segmenter)
    fresh.load_embedding(tmp_path / "two.safetensors")
    assert_same(fresh.predict(points=[[20, 70]], image_index=1)[2], answer[2])
    other = keras_sam.SAMPredictor(tiny_segmenter())
    with pytest.raises(ValueError, match="made by another model"):
        other.load_embedding(tmp_path / "two.safetensors")


@pytest.mark.once
def test_generator_takes_them(segmenter):
    generator = keras_sam.SAMAutomaticMaskGenerator(
        segmenter, points_per_side=3, pred_iou_thresh=-9, stability_score_thresh=0.0
    )
    records = generator.generate(PHOTOS[0])
    predictor = keras_sam.SAMPredictor(segmenter)
    predictor.set_image(PHOTOS[0])
    _, scores, _ = predictor.predict(points=records[0]["point_coords"])
    assert np.isclose(scores, records[0]["predicted_iou"], atol=1e-4).any()
    embedded = keras_sam.SAMAutomaticMaskGenerator(
        predictor, points_per_side=3, pred_iou_thresh=-9, stability_score_thresh=0.0
    ).generate()
    assert [r["bbox"] for r in embedded] == [r["bbox"] for r in records]


@pytest.mark.once
@pytest.mark.parametrize(
    "change, message",
    [
        ({"early_features": None}, "`early_features` must be given beside"),  # left out
        ({"early_features": np.zeros((2, 7, 9, 8))}, "`early_features` must have shape"),  # another
        ({"early_features": np.zeros((1, 7, 9, 16))}, "`early_features` must have shape"),  # one
        ({"image_embeddings": None}, "`image_embeddings` must be given"),  # sizes alone
    ],
)
def test_features_that_do_not_fit_are_refused(segmenter, encoded, change, message):
    with pytest.raises(ValueError, match=message):
        segmenter.decode({**encoded, **change}, PROMPTS)


@pytest.mark.once
def test_an_array_is_not_enough(segmenter, encoded):
    with pytest.raises(ValueError, match="`early_features` must be given beside"):
        segmenter.decode(encoded["image_embeddings"], PROMPTS, encoded["original_sizes"])


# One block and one layer of the decoder: every program of training is compiled anew.
SMALL = {"num_layers": 1, "global_attention_layer_indices": [], "window_size": 3}
SMALL |= {"image_shape": (48, 80, 3), "decoder_layers": 1}


@pytest.mark.skipif(keras.backend.backend() == "openvino", reason="OpenVINO only predicts")
@pytest.mark.parametrize("dtype", ["float16", pytest.param("bfloat16", marks=pytest.mark.once)])
def test_cached_features_train_as_images_do(tmp_path, dtype):
    source = [(image, disc(image.shape[:2], 25, 30, 12)[None]) for image in PHOTOS]
    losses = []
    for is_cached in (False, True):
        segmenter = with_early_features(**SMALL)
        segmenter.freeze("image_encoder")
        segmenter.compile(keras.optimizers.SGD(1e-3))
        data = CachedEmbeddings(segmenter, source, tmp_path / dtype, dtype, 2, verbose=0)
        if is_cached:
            np.testing.assert_allclose(
                data[0][0]["early_features"],
                segmenter.encode(PHOTOS[:1])["early_features"][0],
                1e-2,
            )
        batches = ObjectBatches(data if is_cached else source, 2, "boxes", seed=3, shuffle=False)
        losses.append(segmenter.fit(batches, verbose=0, epochs=2).history["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-2)
    trainer = SAMTrainer(segmenter, num_clicks=1, seed=1)
    trainer.compile(keras.optimizers.SGD(1e-3))
    trainer.fit(ObjectBatches(data, 2, seed=3), verbose=0)


@pytest.mark.once
@pytest.mark.skipif(keras.backend.backend() == "openvino", reason="OpenVINO only predicts")
def test_a_batch_with_an_unknown_key_is_refused(segmenter, encoded):
    segmenter.freeze("image_encoder")
    segmenter.compile(keras.optimizers.SGD(1e-3))
    x = {**encoded, "box": [[[1, 2, 30, 40]]] * 2}
    with pytest.raises(ValueError, match="'box' is 'boxes'"):
        segmenter.fit(x, {"masks": [np.ones((1, *size)) for size in SIZES]}, verbose=0)


@pytest.mark.once
def test_intermediate_results_need_an_encoder_that_gives_them(segmenter):
    with pytest.raises(ValueError, match="`with_outputs`"):
        segmenter.encode(PHOTOS, return_hidden_states=True)
