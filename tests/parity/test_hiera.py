"""SAM 2's image encoder gives what Meta's code and transformers' give with the same weights."""

import numpy as np
import pytest

import keras_sam
from keras_sam import converters
from tests.parity.oracles import assert_same, frames
from tests.parity.sam2_models import (
    ENCODER,
    meta_arrays,
    meta_model,
    our_encoder,
    state_of,
    transformers_model,
)

MEAN, STD = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
NAMES = ("high_res_features_0", "high_res_features_1", "image_embeddings")


def pixel_values(images):
    import torch

    return torch.from_numpy(((images - MEAN) / STD).transpose(0, 3, 1, 2).copy())


def assert_same_features(ours, theirs):
    assert ours.keys() == set(NAMES)
    for name, expected in zip(NAMES, theirs, strict=True):
        assert_same(ours[name], expected.permute(0, 2, 3, 1))


def metas_features(model, images):
    """What its predictor keeps of images, for frames of any shape."""
    import torch

    with torch.no_grad():
        found = [*model.forward_image(pixel_values(images))["backbone_fpn"]]
        found[2] = found[2] + model.no_mem_embed.reshape(1, -1, 1, 1)
    return found


@pytest.mark.parametrize(
    "size",
    [
        (160, 160),  # windows of 6 have to be filled up in stages of 10 cells
        (96, 224),  # not square: 6 x 14 cells, so that one side fits
        (32, 64),  # windows are larger than the map
    ],
)
def test_the_feature_maps_are_metas(size):
    images = frames(size, count=2)
    ours = our_encoder(meta_arrays(), (*size, 3)).predict(images, verbose=0)
    assert_same_features(ours, metas_features(meta_model(), images))


@pytest.mark.parametrize("windows", [[8, 4, 10, 5]])  # fit the map: windows stay windows
def test_windows_that_fit(windows):
    from tests.parity.oracles import randomize
    from tests.sam2_oracle import sam2_like

    sizes = {**ENCODER, "window_sizes": windows, "position_background_size": (2, 3)}
    model = randomize(sam2_like(sizes), 4)
    images = frames((160, 160))
    arrays = converters.rename(state_of(model)).arrays
    encoder = keras_sam.HieraBackbone(**sizes)
    from keras_sam import backends
    from keras_sam.presets.assign import assign

    others = (r"(prompt_encoder|mask_decoder)/.*",)
    assign(encoder.weights, arrays, backends.assign_value, others)
    assert_same_features(encoder.predict(images, verbose=0), metas_features(model, images))


def test_the_feature_maps_are_those_of_transformers():
    model = transformers_model()
    images = frames((160, 160))
    arrays = converters.rename(state_of(model)).arrays
    ours = our_encoder(arrays).predict(images, verbose=0)
    assert_same_features(ours, model.get_image_embeddings(pixel_values(images)))
