"""The same weights at another input size."""

import keras
import numpy as np
import pytest

import keras_sam
from tests.tiny import photograph, tiny_segmenter

CLICK = {"images": [photograph((70, 50))], "points": [[[20, 30]]], "labels": [[1]]}


def test_another_size_equals_loading_at_that_size(segmenter, tmp_path):
    segmenter.save_to_preset(tmp_path)
    loaded = keras_sam.SAMImageSegmenter.from_preset(tmp_path, image_shape=(80, 64))
    moved = segmenter.at_image_shape((80, 64))
    assert moved.image_shape == (80, 64, 3)
    assert moved.embedding_size == (5, 4)
    wanted, result = loaded.predict(CLICK, verbose=0), moved.predict(CLICK, verbose=0)
    np.testing.assert_array_equal(result["masks"], wanted["masks"])


def test_its_own_size_changes_nothing_and_shares_nothing(segmenter):
    same = segmenter.at_image_shape(segmenter.image_shape[:2])
    wanted, result = segmenter.predict(CLICK, verbose=0), same.predict(CLICK, verbose=0)
    np.testing.assert_array_equal(result["masks"], wanted["masks"])
    assert not {id(v) for v in same.weights} & {id(v) for v in segmenter.weights}


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "bfloat16"])
def test_dtype_policy_and_threshold_are_kept(dtype):
    segmenter = tiny_segmenter(dtype=dtype)
    segmenter.mask_threshold = 0.25
    moved = segmenter.at_image_shape((64, 64))
    assert moved.mask_threshold == 0.25
    assert moved.mask_decoder.compute_dtype == "bfloat16"
    assert moved.image_encoder.get_layer("block_0").compute_dtype == "bfloat16"
    kernels = [model.mask_decoder.weights[0] for model in (segmenter, moved)]
    assert kernels[0].dtype == kernels[1].dtype == segmenter.mask_decoder.variable_dtype
    first, second = (keras.ops.convert_to_numpy(keras.ops.cast(k, "float32")) for k in kernels)
    np.testing.assert_array_equal(first, second)


def test_a_size_that_patches_do_not_fill(segmenter):
    with pytest.raises(ValueError, match="multiples of `patch_size`"):
        segmenter.at_image_shape((100, 64))
