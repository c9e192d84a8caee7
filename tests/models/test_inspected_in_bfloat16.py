"""What encode and decode return on request is the same computation in half precision too."""

import numpy as np

from tests.tiny import photograph, tiny_segmenter


def test_inspection_does_not_change_results_in_bfloat16():
    segmenter = tiny_segmenter(dtype="bfloat16")
    images = [photograph((60, 90))]
    encoded = segmenter.encode(images)
    plain = encoded["image_embeddings"]
    inspected = segmenter.encode(images, return_hidden_states=True)["image_embeddings"]
    np.testing.assert_allclose(inspected, plain, atol=0.05 * np.abs(plain).max())
    # 133.25 is no bfloat16: a click there would move if coordinates were cast.
    prompts = {"points": [[[80.3, 40.7]]], "labels": [[1]]}
    wanted = segmenter.decode(encoded, prompts)
    result = segmenter.decode(encoded, prompts, return_attentions=True)
    np.testing.assert_allclose(
        result["masks"], wanted["masks"], atol=0.02 * np.abs(wanted["masks"]).max()
    )
