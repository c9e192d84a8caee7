"""SAM 2 from a transformers folder gives what transformers' `Sam2Model` gives."""

import numpy as np
import pytest

import keras_sam
from keras_sam.images import PIXEL_MEAN, PIXEL_STD
from tests.parity.oracles import assert_same, frames
from tests.parity.sam2_models import transformers_model

POINTS = np.float32([[[20, 30], [100, 60]], [[150, 10], [44, 121]], [[80, 80], [3, 155]]])
LABELS = np.array([[1, 0], [1, 1], [0, 1]])
BOXES = np.float32([[10, 20, 90, 140], [60, 5, 150, 70], [0, 0, 159, 159]])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """transformers' model, ours from its folder, an image, and its features by transformers."""
    pytest.importorskip("torch", reason="transformers' Sam2Model runs on torch")
    import torch

    folder = tmp_path_factory.mktemp("sam2")
    oracle = transformers_model()
    oracle.save_pretrained(folder)
    ours = keras_sam.ImageSegmenter.from_preset(folder)
    image = frames(ours.image_shape[:2])
    pixels = (image - np.float32(PIXEL_MEAN)) / np.float32(PIXEL_STD)
    features = oracle.get_image_embeddings(torch.from_numpy(pixels.transpose(0, 3, 1, 2)))
    return oracle, ours, image, features


@pytest.mark.parametrize("multimask_output", [True, False], ids=["candidates", "one mask"])
@pytest.mark.parametrize(
    "prompts",
    [
        {"points": POINTS, "labels": LABELS},
        {"boxes": BOXES},  # which transformers follows with not-a-point, too
        {"points": POINTS, "labels": LABELS, "boxes": BOXES},
        {"points": POINTS[:1], "labels": LABELS[:1], "masks": True},
    ],
    ids=["points", "boxes", "points and boxes", "points and a mask"],
)
def test_masks_and_scores(models, prompts, multimask_output):
    import torch

    oracle, ours, image, features = models
    prompts = dict(prompts)
    if "masks" in prompts:
        rng = np.random.default_rng(2)
        prompts["masks"] = 5 * rng.standard_normal((1, *ours.mask_size)).astype("float32")
    given = {
        f"input_{name}": torch.from_numpy(x)[None] for name, x in prompts.items() if name != "masks"
    }
    if "masks" in prompts:
        given["input_masks"] = torch.from_numpy(prompts["masks"])[:, None]
        prompts["masks"] = prompts["masks"][..., None]
    with torch.no_grad():
        expected = oracle(
            image_embeddings=list(features), multimask_output=multimask_output, **given
        )
    outputs = ours.decode(
        ours.encode_frames(image),
        {name: x[None] for name, x in prompts.items()},
        multimask_output=multimask_output,
    )
    assert_same(outputs["masks"], expected.pred_masks, bound=1e-4)
    assert_same(outputs["iou_pred"], expected.iou_scores, bound=1e-4)
    assert_same(outputs["object_score"], expected.object_score_logits[..., 0], bound=1e-4)
