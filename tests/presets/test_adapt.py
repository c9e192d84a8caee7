"""Position tables at other sizes, kernels for other channels."""

import keras
import numpy as np
import pytest

import keras_sam
from keras_sam.presets.adapt import (
    adapt_channels,
    fit_position_tables,
    resample_matrix,
    resize_absolute,
    resize_relative,
)
from tests import checkpoints
from tests.tiny import tiny_backbone

pytestmark = pytest.mark.once


@pytest.mark.parametrize(("size_in", "size_out"), [(7, 7), (7, 13), (64, 32), (13, 5), (1, 4)])
def test_resampling_is_torch_s(size_in, size_out):
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).standard_normal(size_in).astype("f4")
    wanted = torch.nn.functional.interpolate(
        torch.tensor(values)[None, None], size_out, mode="linear", align_corners=False
    )
    found = resample_matrix(size_in, size_out) @ values
    np.testing.assert_allclose(found, wanted[0, 0].numpy(), atol=1e-6)


def test_the_same_size_is_the_very_same_table():
    table = keras_sam.converters.Tensor.of(np.ones((1, 3, 4, 2), "f4"))
    assert resize_absolute(table, (3, 4)) is table
    table = keras_sam.converters.Tensor.of(np.ones((5, 2), "f4"))
    assert resize_relative(table, 5) is table


def test_absolute_positions_are_torch_s_bilinear():
    torch = pytest.importorskip("torch")
    table = np.random.default_rng(1).standard_normal((1, 6, 8, 3)).astype("f4")
    wanted = torch.nn.functional.interpolate(
        torch.tensor(table).permute(0, 3, 1, 2), (9, 4), mode="bilinear", align_corners=False
    )
    found = resize_absolute(keras_sam.converters.Tensor.of(table), (9, 4))
    assert found.shape == (1, 9, 4, 3)
    np.testing.assert_allclose(found.read(), wanted.permute(0, 2, 3, 1).numpy(), atol=1e-6)


def test_only_the_tables_of_global_blocks_follow_the_frame():
    encoder = {
        "image_shape": (80, 112, 3),
        "patch_size": 16,
        "global_attention_layer_indices": [1],
        "window_size": 4,
    }
    arrays = {
        "position_embedding/embeddings": np.ones((1, 7, 9, 5), "f4"),
        "block_0/attention/rel_pos_h": np.ones((7, 2), "f4"),
        "block_1/attention/rel_pos_h": np.ones((13, 2), "f4"),
        "block_1/attention/rel_pos_w": np.ones((17, 2), "f4"),
        "block_1/norm1/gamma": np.ones(5, "f4"),
    }
    found = {name: array.shape for name, array in fit_position_tables(arrays, encoder).items()}
    assert found == {
        "position_embedding/embeddings": (1, 5, 7, 5),
        "block_0/attention/rel_pos_h": (7, 2),
        "block_1/attention/rel_pos_h": (9, 2),
        "block_1/attention/rel_pos_w": (13, 2),
        "block_1/norm1/gamma": (5,),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preset")
    tiny_backbone().save_to_preset(folder)
    return folder


def values(model):
    return {v.path: keras.ops.convert_to_numpy(v.value) for v in model.weights}


def test_at_its_own_size_a_preset_is_bit_identical(folder):
    plain = values(keras_sam.SAMBackbone.from_preset(folder))
    same = values(keras_sam.SAMBackbone.from_preset(folder, image_shape=(112, 144)))
    assert plain.keys() == same.keys()
    for name, value in plain.items():
        np.testing.assert_array_equal(same[name], value)


@pytest.mark.parametrize(
    ("image_shape", "reason"),
    [((64, 64), "smaller and square"), ((208, 112, 3), "larger and upright")],
)
def test_loading_at_another_size(image_shape, reason, folder):
    segmenter = keras_sam.SAMImageSegmenter.from_preset(folder, image_shape=image_shape)
    h, w = image_shape[:2]
    assert segmenter.image_shape == (h, w, 3)
    assert segmenter.embedding_size == (h // 16, w // 16)
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), "uint8")
    outputs = segmenter.predict(
        {"images": [image], "points": [[[20, 30]]], "labels": [[1]]}, verbose=0
    )
    assert outputs["masks"].shape == (1, 4, h // 4, w // 4)
    assert np.isfinite(outputs["masks"]).all()


def test_a_frame_that_patches_do_not_fill_is_refused(folder):
    with pytest.raises(ValueError, match="multiples of `patch_size`"):
        keras_sam.SAMBackbone.from_preset(folder, image_shape=(100, 100))
    with pytest.raises(ValueError, match="`image_shape` must be"):
        keras_sam.SAMBackbone.from_preset(folder, image_shape=(64,))
    with pytest.raises(ValueError, match="must equal the channels"):
        keras_sam.SAMBackbone.from_preset(folder, image_shape=(64, 64, 4), num_channels=1)


def encode(folder, images, **kwargs):
    encoder = keras_sam.ViTDetBackbone.from_preset(folder, **kwargs)
    return encoder.predict(images, verbose=0)


def grey(channels):
    image = np.random.default_rng(2).uniform(0, 255, (1, 112, 144, 1))
    return np.repeat(image, channels, axis=-1)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_grey_image_gives_the_same_on_fewer_channels(channels, folder):
    wanted = encode(folder, grey(3))
    found = encode(folder, grey(channels), num_channels=channels)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def test_further_channels_start_without_effect(folder):
    images = np.random.default_rng(3).uniform(0, 255, (1, 112, 144, 5))
    wanted = encode(folder, images[..., :3])
    found = encode(folder, images, num_channels=5)
    np.testing.assert_allclose(found, wanted, atol=1e-6 * np.abs(wanted).max())


def test_from_one_channel_back_to_three(folder, tmp_path):
    keras_sam.ViTDetBackbone.from_preset(folder, num_channels=1).save_to_preset(tmp_path)
    wanted = encode(tmp_path, grey(1))
    found = encode(tmp_path, grey(3), image_shape=(112, 144, 3))
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def test_with_own_statistics_nothing_is_folded_in():
    kernel = np.random.default_rng(0).standard_normal((2, 2, 3, 4)).astype("f4")
    arrays = {"patch_embedding/kernel": kernel, "patch_embedding/bias": np.ones(4, "f4")}
    encoder = {"image_shape": [8, 8, 3]}
    found = adapt_channels(arrays, encoder, 1, {"pixel_mean": [0.0]})
    np.testing.assert_allclose(found["patch_embedding/kernel"].read()[:, :, 0], kernel.sum(2), 1e-6)
    np.testing.assert_array_equal(found["patch_embedding/bias"].read(), np.ones(4))
    assert encoder["image_shape"] == [8, 8, 1]


def test_other_pixel_statistics(folder):
    images = np.random.default_rng(3).uniform(0, 255, (1, 112, 144, 3))
    mean, std = np.float32([10, 20, 30]), np.float32([40, 50, 60])
    encoder = keras_sam.ViTDetBackbone.from_preset(folder)
    own = (images - mean) / std * np.float32(encoder.pixel_std) + np.float32(encoder.pixel_mean)
    wanted = encoder.predict(own, verbose=0)
    found = encode(folder, images, pixel_mean=mean, pixel_std=std)
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())
    segmenter = keras_sam.SAMImageSegmenter.from_preset(folder, pixel_mean=mean, pixel_std=std)
    padding = segmenter.preprocessor(
        {"images": [images[0, :56].astype("uint8")], "points": [[[1, 1]]], "labels": [[1]]}
    )["images"][0, -1, -1]
    np.testing.assert_allclose(padding, mean, atol=1e-4)


def test_checkpoints_of_other_libraries_at_another_size(tmp_path):
    import torch

    meta = checkpoints.meta_model()
    torch.save(meta.state_dict(), tmp_path / "sam.pth")
    found = keras_sam.presets.read_preset(tmp_path / "sam.pth", image_shape=(40, 72)).arrays
    rel_pos = meta.image_encoder.blocks[1].attn.rel_pos_h
    wanted = torch.nn.functional.interpolate(rel_pos.T[None], 9, mode="linear")[0].T
    np.testing.assert_allclose(
        np.asarray(found["block_1/attention/rel_pos_h"]), wanted.detach().numpy(), atol=1e-6
    )
    assert found["position_embedding/embeddings"].shape == (1, 5, 9, 24)
