"""A SAM with TinyViT: trained, frozen, saved and loaded."""

import keras
import numpy as np
import pytest

import keras_sam
from keras_sam import presets
from keras_sam.backends.generic import by_strips
from keras_sam.training import LayerwiseDecay
from tests.closeness import relative_difference
from tests.tiny import photograph, randomize, without_random_values
from tests.training.steps import ragged_data

PHOTO = photograph((53, 80))
CLICK = {"images": [PHOTO], "points": [[[30, 20]]], "labels": [[1]]}


def tiny_mobile(dtype=None, image_shape=(48, 80, 3), **encoder):
    """A segmenter of 10 k weights around TinyViT, the same on every backend."""
    with without_random_values():
        image_encoder = keras_sam.TinyViTBackbone(
            hidden_sizes=(4, 6, 8, 12),
            depths=(1, 1, 1, 1),
            num_heads=(1, 2, 2, 3),
            window_sizes=(3, 3, 4, 3),
            image_shape=image_shape,
            num_output_channels=16,
            dtype=dtype,
            **encoder,
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
            num_layers=1,
            intermediate_dim=20,
            num_heads=2,
            iou_head_hidden_dim=12,
            dtype=dtype,
        )
        backbone = keras_sam.SAMBackbone(image_encoder, prompt_encoder, mask_decoder, dtype=dtype)
    randomize(backbone, 3)
    for variable in backbone.weights:
        if variable.path.endswith("moving_variance"):
            variable.assign(keras.ops.abs(variable) + 0.5)
    preprocessor = keras_sam.SAMImageSegmenterPreprocessor.for_backbone(backbone)
    return keras_sam.SAMImageSegmenter(backbone, preprocessor)


@pytest.fixture(scope="module")
def mobile():
    return tiny_mobile()


@pytest.fixture(scope="module")
def masks(mobile):
    return mobile.predict(CLICK, verbose=0)["masks"]


def averages(model):
    return [
        keras.ops.convert_to_numpy(v)
        for v in model.weights
        if v.path.endswith(("moving_mean", "moving_variance"))
    ]


def test_prediction_is_batch_norm_by_its_averages(mobile):
    """What is folded is what Keras's layers give one after the other."""
    x = np.random.default_rng(0).normal(size=(2, 7, 9, 5)).astype("float32")
    for layer in (
        keras_sam.layers.ConvNorm(6, activation="gelu"),  # a product
        keras_sam.layers.ConvNorm(6, 3, 2, activation="relu"),
        keras_sam.layers.ConvNorm(5, 3, depthwise=True, activation="gelu"),
        keras_sam.layers.ConvNorm(5, 3, 2, depthwise=True),
    ):
        layer.build(x.shape)
        randomize(layer, 1)
        layer.norm.moving_variance.assign(keras.ops.abs(layer.norm.moving_variance) + 0.5)
        width = layer.kernel_size // 2
        layer.conv.padding = "valid"
        padded = np.pad(x, [(0, 0), (width, width), (width, width), (0, 0)])
        expected = layer.norm(layer.conv(padded), training=False)
        if layer.activation is not None:
            expected = layer.activation(expected)
        expected = keras.ops.convert_to_numpy(expected)
        found = keras.ops.convert_to_numpy(layer(x, training=False))
        assert found.shape == expected.shape
        assert relative_difference(found, expected) < 1e-5


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_strips_of_a_bottleneck_are_the_whole(strides, rows):
    x = np.random.default_rng(0).normal(size=(2, 7, 9, 5)).astype("float32")
    block = keras_sam.layers.InvertedBottleneck(8, 5, strides, shortcut=strides == 1)
    block.build(x.shape)
    randomize(block, 1)
    for part in (block.conv1, block.conv2, block.conv3):
        part.norm.moving_variance.assign(keras.ops.abs(part.norm.moving_variance) + 0.5)
    heights = []

    def some_rows(strip, edges):
        heights.append(strip.shape[1])
        return block._rows(strip, edges)

    expected = keras.ops.convert_to_numpy(block(x, training=False))
    found = by_strips(some_rows, keras.ops.convert_to_tensor(x), strides, rows)
    assert len(heights) == -(-expected.shape[1] // rows) and max(heights) < 7
    assert relative_difference(keras.ops.convert_to_numpy(found), expected) < 1e-6


def test_training_lowers_the_loss_and_moves_the_averages():
    segmenter = tiny_mobile(drop_path_rate=0.1)
    before = averages(segmenter)
    segmenter.compile(optimizer=keras.optimizers.Adam(2e-3))
    history = segmenter.fit(*ragged_data(), epochs=6, batch_size=2, verbose=0)
    assert history.history["loss"][-1] < 0.95 * history.history["loss"][0]
    assert all(np.abs(a - b).max() > 0 for a, b in zip(averages(segmenter), before, strict=True))


def test_a_frozen_encoder_keeps_its_averages():
    segmenter = tiny_mobile()
    segmenter.freeze("image_encoder")
    before = averages(segmenter)
    segmenter.compile(optimizer=keras.optimizers.Adam(2e-3))
    segmenter.fit(*ragged_data(), epochs=1, batch_size=2, verbose=0)
    for a, b in zip(averages(segmenter), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_lora_trains_dense_layers_alone():
    segmenter = tiny_mobile()
    segmenter.enable_lora(2, targets=("qkv", "dense_0"))
    trained = [v.path for v in segmenter.image_encoder.trainable_variables]
    assert trained and all("lora_kernel" in path for path in trained)
    assert len(trained) == 2 * 2 * 3  # matrices, targets, blocks


def test_a_keras_file_and_a_preset_give_the_same_masks(mobile, masks, tmp_path):
    mobile.save(tmp_path / "model.keras")
    mobile.save_to_preset(tmp_path / "preset")
    presets.convert_checkpoint(tmp_path / "preset", tmp_path / "mobile.safetensors", "meta")
    for loaded in (
        keras.saving.load_model(tmp_path / "model.keras"),
        keras_sam.ImageSegmenter.from_preset(tmp_path / "model.keras"),
        keras_sam.ImageSegmenter.from_preset(tmp_path / "preset"),
        keras_sam.ImageSegmenter.from_preset(tmp_path / "mobile.safetensors"),
    ):
        assert isinstance(loaded.image_encoder, keras_sam.TinyViTBackbone)
        np.testing.assert_allclose(loaded.predict(CLICK, verbose=0)["masks"], masks, atol=1e-5)


def test_an_encoder_of_another_class_is_refused(mobile, tmp_path):
    mobile.save_to_preset(tmp_path / "preset")
    with pytest.raises(ValueError, match="is a TinyViTBackbone, not a ViTDetBackbone"):
        keras_sam.ViTDetBackbone.from_preset(tmp_path / "preset")


def test_another_frame_and_other_channels(mobile, tmp_path):
    mobile.save_to_preset(tmp_path / "preset")
    other = keras_sam.ImageSegmenter.from_preset(
        tmp_path / "preset", image_shape=(64, 48), num_channels=1
    )
    assert other.image_shape == (64, 48, 1)
    grey = {**CLICK, "images": [PHOTO[..., :1]]}
    assert other.predict(grey, verbose=0)["masks"].shape[-2:] == (16, 12)
    same = mobile.at_image_shape((48, 80))
    np.testing.assert_array_equal(
        same.predict(CLICK, verbose=0)["masks"], mobile.predict(CLICK, verbose=0)["masks"]
    )


def test_a_grey_picture_on_one_channel_is_that_on_three(mobile, tmp_path):
    """But for the borders of the frame, which the first convolution reaches over."""
    mobile.image_encoder.save_to_preset(tmp_path / "preset")
    grey = keras_sam.TinyViTBackbone.from_preset(tmp_path / "preset", num_channels=1)
    image = photograph((48, 80), channels=1)[None].astype("float32")
    norms = [
        keras.Model(e.input, e.get_layer("patch_embedding_conv1").output)
        for e in (mobile.image_encoder, grey)
    ]
    three, one = (
        keras.ops.convert_to_numpy(model(x, training=False))[:, 1:, 1:]
        for model, x in zip(norms, (np.repeat(image, 3, -1), image), strict=True)
    )
    assert relative_difference(one, three) < 1e-5


def test_layerwise_decay_counts_blocks_through_the_stages(mobile):
    variables = mobile.image_encoder.trainable_variables
    powers = LayerwiseDecay(keras.optimizers.SGD(), decay=0.5).multipliers(variables)
    found = {v.path.split("/")[0]: round(-np.log2(m)) for v, m in zip(variables, powers)}
    assert found == {
        "patch_embedding_conv1": 5,
        "patch_embedding_conv2": 5,
        "stage_0_block_0": 4,
        "stage_0_merge": 4,
        "stage_1_block_0": 3,
        "stage_1_merge": 3,
        "stage_2_block_0": 2,
        "stage_2_merge": 2,
        "stage_3_block_0": 1,
        **dict.fromkeys(("neck_conv1", "neck_norm1", "neck_conv2", "neck_norm2"), 0),
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_shape": (48, 72, 3)}, "multiples of 16"),  # half a cell
        ({"image_shape": (48, None, 3)}, "multiples of 16"),  # no size
        ({"depths": (1, 1)}, "one entry per stage"),  # of two of four stages
        ({"merge_strides": (2, 2, 1, 1)}, "one fewer"),  # nothing to merge after the last stage
        ({"num_heads": (1, 1, 3, 1), "hidden_sizes": (4, 4, 8, 4)}, "must divide"),
        ({"pixel_mean": (1.0, 2.0)}, "one value per image channel"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        keras_sam.TinyViTBackbone(**settings)
