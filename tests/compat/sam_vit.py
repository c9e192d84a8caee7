"""What the tests of `keras_sam.compat.transformers` share: a small model of transformers, twice."""

import numpy as np
import pytest

from keras_sam.compat import transformers as ours
from tests.checkpoints import SIDE, hugging_face_model
from tests.tiny import photograph

BOUND = 2e-5  # of the largest value
SEED = 30  # of a model whose masks are neither empty nor full
IMAGE = photograph((40, 70), seed=3)


@pytest.fixture(scope="module")
def theirs():
    pytest.importorskip("torch", reason="transformers' SamModel runs on torch")
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    """What `save_pretrained` writes of a small model and its processor."""
    path = tmp_path_factory.mktemp("sam-vit-tiny")
    model = hugging_face_model(SEED)
    # Released weights have unit deviation here. With more, sines of large angles round differently.
    positions = model.shared_image_embedding.positional_embedding
    positions.data /= positions.std()
    model.save_pretrained(path)
    their_image_processor().save_pretrained(path)
    return path


def their_image_processor():
    """The numpy and pillow form of `SamImageProcessor`; the other one needs torchvision."""
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    return SamImageProcessorPil(
        size={"longest_edge": SIDE},
        pad_size={"height": SIDE, "width": SIDE},
        mask_size={"longest_edge": 28},
        mask_pad_size={"height": 28, "width": 28},
    )


def our_image_processor():
    return ours.SamImageProcessor(
        size={"longest_edge": SIDE}, pad_size=SIDE, mask_size=28, mask_pad_size=28
    )


@pytest.fixture(scope="module")
def models(theirs, folder):
    expected = theirs.SamModel.from_pretrained(folder, attn_implementation="eager").eval()
    return ours.SamModel.from_pretrained(str(folder)), expected


@pytest.fixture(scope="module")
def pixel_values():
    import torch

    images = [IMAGE, photograph((64, 50), seed=5)]
    return torch.from_numpy(our_image_processor()(images, return_tensors="np").pixel_values)


def assert_same(actual, expected, bound=BOUND):
    if isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected) > 0
        for a, b in zip(actual, expected, strict=True):
            assert_same(a, b, bound)
        return
    a, b = (x.detach() if hasattr(x, "detach") else x for x in (actual, expected))
    a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
    assert a.shape == b.shape
    assert np.any(b), "the oracle tells nothing"
    assert np.abs(a - b).max() <= bound * np.abs(b).max()
