"""What `from_preset` and the constructors of models take beside a preset, and what they refuse."""

import keras
import numpy as np
import pytest

import keras_sam
from keras_sam.converters import part_of
from tests.tiny import tiny_backbone, tiny_segmenter

CLASSES = [keras_sam.SAMImageSegmenter, keras_sam.SAMBackbone, keras_sam.ViTDetBackbone]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preset")
    tiny_segmenter().save_to_preset(folder)
    return folder


def encoder_of(model):
    return getattr(model, "image_encoder", model)


@pytest.mark.parametrize("cls", CLASSES)
def test_input_shape_is_image_shape(cls, folder):
    model = cls.from_preset(folder, input_shape=(96, 64, 3))
    assert tuple(model.image_shape) == (96, 64, 3)
    wanted = cls.from_preset(folder, image_shape=(96, 64, 3))
    for ours, theirs in zip(model.weights, wanted.weights, strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (ours.value, theirs.value)))
    with pytest.raises(TypeError, match="no argument `input_shape`. Did you mean `image_shape`"):
        cls.from_preset(folder, input_shape=(96, 64, 3), image_shape=(96, 64, 3))


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("part", ["image_encoder", None])
def test_settings_of_the_image_encoder(cls, part, folder):
    settings = {"drop_path_rate": 0.4, "attention_dropout_rate": 0.2}
    if part is not None and cls is keras_sam.ViTDetBackbone:
        part = None  # it has no parts
    model = cls.from_preset(folder, **({part: settings} if part else settings))
    encoder = encoder_of(model)
    assert (encoder.drop_path_rate, encoder.attention_dropout_rate) == (0.4, 0.2)
    images = np.random.default_rng(0).uniform(0, 255, (2, *encoder.image_shape)).astype("float32")
    plain = encoder_of(cls.from_preset(folder))
    found = [
        [keras.ops.convert_to_numpy(x(images, training=training)) for training in (False, True)]
        for x in (encoder, plain)
    ]
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-5)  # the weights are the preset's
    assert np.abs(found[0][1] - found[0][0]).max() > 0.01  # dropped in training
    np.testing.assert_allclose(found[1][1], found[1][0], atol=1e-5)


@pytest.mark.parametrize("cls", CLASSES[:2])
def test_settings_of_the_decoder(cls, folder):
    model = cls.from_preset(folder, mask_decoder={"dropout_rate": 0.1, "num_heads": 4})
    assert (model.mask_decoder.dropout_rate, model.mask_decoder.num_heads) == (0.1, 4)
    assert (model.image_encoder.dropout_rate, model.image_encoder.num_heads) == (0.0, 3)
    assert (
        cls.from_preset(folder, transformer_activation="gelu").mask_decoder.transformer is not None
    )
    everywhere = cls.from_preset(folder, dropout_rate=0.2, mask_decoder={"dropout_rate": 0.3})
    assert everywhere.image_encoder.dropout_rate == 0.2
    assert everywhere.mask_decoder.dropout_rate == 0.3


def test_settings_are_saved_with_the_model(folder, tmp_path):
    model = keras_sam.SAMImageSegmenter.from_preset(folder, drop_path_rate=0.4, name="mine")
    model.save_to_preset(tmp_path)
    again = keras_sam.SAMImageSegmenter.from_preset(tmp_path)
    assert again.image_encoder.drop_path_rate == 0.4
    assert keras_sam.SAMImageSegmenter.from_preset(folder).image_encoder.drop_path_rate == 0.0


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("in_channels", "num_channels"),
        ("drop_path", "drop_path_rate"),
        ("load_weight", "load_weights"),
        ("colour", None),
    ],
)
def test_an_unknown_argument_is_named_with_the_nearest_one(cls, name, nearest, folder):
    message = f"{cls.__name__} has no argument `{name}`."
    message += f" Did you mean `{nearest}`" if nearest else "$"
    with pytest.raises(TypeError, match=message):
        cls.from_preset(folder, **{name: 1})


@pytest.mark.parametrize("cls", CLASSES)
def test_the_size_under_another_name_is_not_the_prompt_encoders(cls, folder):
    with pytest.raises(TypeError, match="`image_size`. Here it is `image_shape`."):
        cls.from_preset(folder, image_size=(96, 64))


def test_a_misspelt_argument_of_the_task(folder):
    with pytest.raises(TypeError, match="`mask_treshold`. Did you mean `mask_threshold`"):
        keras_sam.SAMImageSegmenter.from_preset(folder, mask_treshold=0.5)
    with pytest.raises(TypeError, match="SAMBackbone has no argument `mask_threshold`"):
        keras_sam.SAMBackbone.from_preset(folder, mask_threshold=0.5)


def test_an_argument_of_several_parts_must_be_given_to_one(folder):
    wanted = "`num_heads` is an argument of image_encoder and mask_decoder.*`image_encoder={'num_h"
    with pytest.raises(TypeError, match=wanted):
        keras_sam.SAMImageSegmenter.from_preset(folder, num_heads=2)
    with pytest.raises(TypeError, match="mask_decoder has no argument `drop_rate`. Did you mean"):
        keras_sam.SAMImageSegmenter.from_preset(folder, mask_decoder={"drop_rate": 2})
    with pytest.raises(TypeError, match="`mask_decoder` must be a dict of arguments"):
        keras_sam.SAMImageSegmenter.from_preset(folder, mask_decoder=None)


def test_a_setting_that_does_not_fit_the_weights_is_refused(folder):
    with pytest.raises(ValueError, match="Of another shape or type.*qkv/bias"):
        keras_sam.SAMImageSegmenter.from_preset(folder, image_encoder={"hidden_size": 36})


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ((0, 2, 1), "`prompt_encoder` must be a `SAMPromptEncoder`. Received: a SAMMaskDecoder"),
        ((1, 0, 2), "`image_encoder` must be a functional model.*Received: a SAMPromptEncoder"),
        ((3, 1, 2), r"`keras.Model\(sequential.inputs, sequential.*Received: a Sequential"),
    ],
)
def test_parts_in_the_wrong_place(order, message):
    backbone = tiny_backbone()
    layers = [keras.Input(backbone.image_shape), keras.layers.Conv2D(16, 16, 16)]
    parts = (backbone.image_encoder, backbone.prompt_encoder, backbone.mask_decoder)
    parts += (keras.Sequential(layers),)
    with pytest.raises(ValueError, match=message):
        keras_sam.SAMBackbone(*(parts[i] for i in order))


def test_constructors_refuse_what_they_do_not_know():
    backbone = tiny_backbone()
    with pytest.raises(TypeError, match="`mask_treshold`. Did you mean `mask_threshold`"):
        keras_sam.SAMImageSegmenter(backbone, mask_treshold=0.5)
    parts = (backbone.image_encoder, backbone.prompt_encoder, backbone.mask_decoder)
    with pytest.raises(TypeError, match="SAMBackbone has no argument `activation`."):
        keras_sam.SAMBackbone(*parts, activation="relu")
    config = backbone.image_encoder.get_config()
    with pytest.raises(TypeError, match="`input_shape`. Did you mean `image_shape`"):
        keras_sam.ViTDetBackbone(**config, input_shape=(64, 64, 3))
    assert keras_sam.SAMImageSegmenter(backbone, trainable=False, name="mine").name == "mine"


def test_arguments_of_a_subclass(folder):
    @keras.saving.register_keras_serializable(package="test_arguments")
    class Named(keras_sam.SAMImageSegmenter):
        def __init__(self, *args, colour="red", **kwargs):
            super().__init__(*args, **kwargs)
            self.colour = colour

    backbone = keras_sam.SAMBackbone.from_preset(folder)
    assert Named(backbone, colour="blue", mask_threshold=0.5).colour == "blue"
    with pytest.raises(TypeError, match="Named has no argument `color`. Did you mean `colour`"):
        Named(backbone, color="blue")
    assert {part_of(v.path) for v in Named(backbone).weights} == {
        "image_encoder",
        "prompt_encoder",
        "mask_decoder",
    }
