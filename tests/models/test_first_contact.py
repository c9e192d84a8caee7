"""What people call first on a model, and what it says where it cannot do so."""

import warnings

import keras
import numpy as np
import pytest

from tests.tiny import tiny_segmenter

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
    photo = np.zeros((1, *segmenter.image_shape), "float32")
    for model in (segmenter, segmenter.backbone):
        with pytest.raises(ValueError, match="`inputs` must be a dict.*takes images alone is `im"):
            model(photo)


def test_casting_the_weights_names_the_remedy(segmenter):
    for cast in (segmenter.half, segmenter.bfloat16, segmenter.double):
        with pytest.raises(NotImplementedError, match=r'from_preset\(..., dtype="float16"\)'):
            cast()


def test_quantize_says_nothing_about_layers_that_stay_as_they_are():
    segmenter = tiny_segmenter()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        segmenter.quantize("int8")
    assert segmenter.mask_decoder.iou_prediction_head.dense_layers[0].quantization_mode == "int8"


def test_encoder_and_backbone_can_be_cloned(segmenter):
    images = np.zeros((1, 112, 144, 3), "float32")
    clone = keras.models.clone_model(segmenter.image_encoder)
    clone.set_weights(segmenter.image_encoder.get_weights())
    wanted = keras.ops.convert_to_numpy(segmenter.image_encoder(images))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(clone(images)), wanted, atol=1e-5)
    assert len(keras.models.clone_model(segmenter.backbone).weights) > len(clone.weights)
