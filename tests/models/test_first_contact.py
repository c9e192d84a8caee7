"""What people call first on a model, and what it says where it cannot do so."""

import inspect
import warnings

import keras
import numpy as np
import pytest

import keras_sam
from keras_sam import backends
from tests.tiny import photograph, tiny_segmenter, without_random_values

CLICK = {"points": np.array([[[3.0, 4.0]]]), "labels": np.array([[1]])}
PHOTO = np.zeros((1, 32, 48, 3), "float32")


@pytest.fixture(scope="module")
def segmenter():
    return tiny_segmenter()


@pytest.mark.parametrize(
    "call",
    [
        lambda segmenter: segmenter({"images": PHOTO, **CLICK}),
        lambda segmenter: segmenter.backbone({"images": PHOTO, **CLICK}),
        lambda segmenter: segmenter.image_encoder(PHOTO),
        lambda segmenter: segmenter.image_encoder(PHOTO[0]),  # without the axis B
    ],
)
def test_a_picture_of_another_size_in_a_direct_call_names_both_sizes(segmenter, call):
    with pytest.raises(ValueError, match=r"\(B, 112, 144, 3\).*Received: shape=\(.*32, 48, 3\)"):
        call(segmenter)


def test_images_alone_are_for_the_image_encoder(segmenter):
    with pytest.raises(ValueError, match="`inputs` must be a dict.*takes images alone is `image_e"):
        segmenter.backbone(np.zeros((1, *segmenter.image_shape), "float32"))


def test_casting_the_weights_names_the_remedy(segmenter):
    for cast in (segmenter.half, segmenter.bfloat16, segmenter.double):
        with pytest.raises(NotImplementedError, match=r'from_preset\(..., dtype="float16"\)'):
            cast()


def test_quantize_says_nothing_about_layers_that_stay_and_is_kept_by_files(tmp_path):
    segmenter = tiny_segmenter()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        segmenter.quantize("int8")
    segmenter.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for model in (segmenter, loaded):
        assert model.mask_decoder.iou_prediction_head.dense_layers[0].quantization_mode == "int8"
    for values, expected in zip(loaded.get_weights(), segmenter.get_weights(), strict=True):
        np.testing.assert_array_equal(values, expected)


def test_encoder_and_backbone_can_be_cloned(segmenter):
    images = np.zeros((1, 112, 144, 3), "float32")
    clone = keras.models.clone_model(segmenter.image_encoder)
    clone.set_weights(segmenter.image_encoder.get_weights())
    wanted = keras.ops.convert_to_numpy(segmenter.image_encoder(images))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(clone(images)), wanted, atol=1e-5)
    assert len(keras.models.clone_model(segmenter.backbone).weights) > len(clone.weights)


def test_a_segmenter_says_how_it_is_copied(segmenter):
    x = {"images": photograph((53, 80)), "points": [30, 20]}
    compiled = keras_sam.SAMImageSegmenter(segmenter.backbone, segmenter.preprocessor)
    if backends.CAN_TRAIN:
        compiled.compile("sgd")
    for model in (segmenter, compiled):
        with pytest.raises(NotImplementedError, match=r"type\(segmenter\).*set_weights"):
            keras.models.clone_model(model)
    with without_random_values():  # which JAX would compile
        copy = type(segmenter).from_config(segmenter.get_config())
    copy.set_weights(segmenter.get_weights())
    ours, copied = segmenter.predict(x, verbose=0), copy.predict(x, verbose=0)
    np.testing.assert_allclose(copied["masks"], ours["masks"], atol=1e-4)


@pytest.mark.parametrize(
    "inputs, message",
    [
        (np.zeros((1, 112, 144, 3)), "`x` must be a dict and must have the key 'images'"),
        ({"image": np.zeros((1, 112, 144, 3))}, "Here 'image' is 'images'"),
    ],
)
def test_a_direct_call_without_images_says_what_is_missing(segmenter, inputs, message):
    with pytest.raises(ValueError, match=message):
        segmenter(inputs)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda s: keras_sam.SAMAutomaticMaskGenerator(s, points_per_sides=4),
            "`SAMAutomaticMaskGenerator` has no argument `points_per_sides`; here .*_per_side`",
        ),
        (lambda s: keras_sam.SAMAutomaticMaskGenerator(model=s), "`model`; here it is `segmenter`"),
        (
            lambda s: keras_sam.SAMAutomaticMaskGenerator(s).generate("a.jpg", verbos=0),
            "`SAMAutomaticMaskGenerator.generate` has no argument `verbos`; here it is `verbose`",
        ),
        (lambda s: keras_sam.SAMPredictor(model=s), "`SAMPredictor` .*; here it is `segmenter`"),
        (lambda s: keras_sam.SAMPredictor(s, preproccessor=None), "here it is `preprocessor`"),
        (
            lambda s: keras_sam.SAMPredictor(s).set_image("a.jpg", image_format="BGR"),
            "`SAMPredictor.set_image` has no argument `image_format`; here it is `channel_order`",
        ),  # Meta's
        (
            lambda s: keras_sam.SAMPredictor(s).set_image("a.jpg", channels_order="bgr"),
            "channel_or",
        ),
        (lambda s: keras_sam.SAMPredictor(s).predict(multimask=True), "is `multimask_output`"),
        (
            lambda s: keras_sam.SAMPredictor(s).predict(colour=1),
            "It takes `points`, `labels`, `box",
        ),
        (lambda s: s.predict({}, batchsize=2), "`SAMImageSegmenter.predict` .* is `batch_size`"),
        (
            lambda s: s.predict(images=["a.jpg"], points=[[1, 2]]),
            "no argument `images`; here it is a key of the dict `x`: `{'images': ...}`",
        ),
        (
            lambda s: s.predict(["a.jpg"], box=[[1, 2, 3, 4]]),
            "key of the dict `x`: `{'boxes': ...}`",
        ),
        (lambda s: s.encode(image="a.jpg"), "`SAMImageSegmenter.encode` .*; here it is `images`"),
        (lambda s: s.decode({}, points=[[1, 2]]), "key of the dict `prompts`: `{'points': ...}`"),
        (lambda s: s.decode({}, {}, multimask=True), "; here it is `multimask_output`"),
        (
            lambda s: keras_sam.restore_masks({}, threshold=1.0),
            "`restore_masks` has no argument `threshold`; here it is `mask_threshold`",
        ),
        (lambda s: keras_sam.restore_masks({}, original_size=[(1, 2)]), "is `original_sizes`"),
        (lambda s: keras_sam.select_masks({}, multimask=True), "; here it is `multimask_output`"),
        (lambda s: keras_sam.mask_to_logits(1, segmenter=s), "; here it is `model_size`"),
    ],
)
def test_unknown_arguments_name_ours(segmenter, call, message):
    with pytest.raises(TypeError, match=message):
        call(segmenter)


def test_functions_that_check_their_names_keep_their_signature():
    parameters = inspect.signature(keras_sam.SAMPredictor.predict).parameters
    assert [*parameters][:5] == ["self", "points", "labels", "boxes", "masks"]
    assert keras_sam.restore_masks.__doc__.startswith("Maps the model's mask logits")


def test_what_best_mask_returns_can_be_refined(segmenter):
    x = {"images": [photograph((53, 80))], "points": [[[[30, 20]], [[60, 40]]]]}
    best = keras_sam.best_mask(keras_sam.select_masks(segmenter.predict(x, verbose=0), True))
    refined = segmenter.predict({**x, "masks": best["masks"]}, verbose=0)
    wanted = segmenter.predict({**x, "masks": best["masks"][:, :, 0, ..., None]}, verbose=0)
    assert refined["masks"].shape == (1, 2, 4, 28, 36)
    np.testing.assert_array_equal(refined["masks"], wanted["masks"])
    predictor = keras_sam.SAMPredictor(segmenter)
    predictor.set_image(x["images"][0])
    prompts = {"points": x["points"][0], "masks": best["masks"][0]}
    np.testing.assert_allclose(
        predictor.predict(**prompts, multimask_output=False)[2],
        refined["masks"][0, :, :1],
        atol=1e-4,
    )


@pytest.mark.parametrize("way", ["predictor", "predict", "decode", "prepare"])
def test_coordinates_of_another_image_are_told_in_every_way(segmenter, way):
    image, boxes = photograph((53, 80)), [[[0.1, 0.2, 0.9, 0.8]]]
    predictor = keras_sam.SAMPredictor(segmenter)
    predictor.set_image(image)
    encoded = segmenter.encode([image])
    ways = {
        "predictor": lambda: predictor.predict(boxes=boxes[0]),
        "predict": lambda: segmenter.predict({"images": [image], "boxes": boxes}, verbose=0),
        "decode": lambda: segmenter.decode(encoded, {"boxes": boxes}),
        "prepare": lambda: segmenter.preprocessor({"images": [image], "boxes": boxes}),
    }
    with pytest.warns(UserWarning, match="`boxes` lie within 0..1 in image 0, 80 pixels wide"):
        ways[way]()


def test_decode_knows_height_and_width(segmenter):
    encoded = segmenter.encode([photograph((53, 80))])
    with pytest.raises(ValueError, match=r"pass `image.size\[::-1\]`"):
        segmenter.decode(encoded, {"points": [[[30, 20]]]}, original_sizes=[(80, 53)])
