"""SAM 2's predictor and generator, end to end on photographs, give what Meta's give."""

import numpy as np
import pytest

import keras_sam
from tests.parity.oracles import assert_same
from tests.parity.sam2_parts import meta_predictor, our_segmenter, with_sizes
from tests.parity.test_meta_predictor import near_the_ends
from tests.tiny import photograph

# Of the pixels of a mask, this part may differ: those whose logit is 0 but for rounding.
MASK_BOUND = 1e-4

SIZES = [
    (333, 500),  # landscape
    (1200, 1800),  # much larger than the frame: antialiased
    (97, 101),  # smaller than the frame: enlarged
    (41, 300),  # proportions that change much
]


def assert_same_answer(actual, expected):
    masks, scores, logits = actual
    wanted_masks, wanted_scores, wanted_logits = expected
    assert_same(logits, wanted_logits)
    assert_same(scores, wanted_scores)
    wanted_masks = wanted_masks > 0
    assert masks.dtype == bool and masks.shape == wanted_masks.shape
    assert 0 < wanted_masks.mean() < 1, "the oracle tells nothing"
    assert np.mean(masks != wanted_masks) <= MASK_BOUND


@pytest.fixture(scope="module")
def predictors():
    return meta_predictor(), keras_sam.SAMPredictor(our_segmenter())


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_photographs_of_odd_sizes(predictors, size):
    metas, ours = predictors
    for predictor in predictors:
        predictor.set_image(photograph(size))
    embedding = metas.get_image_embedding().permute(0, 2, 3, 1)
    assert_same(ours.image_embeddings, embedding)
    for number, name in enumerate(("high_res_features_0", "high_res_features_1")):
        finer = metas._features["high_res_feats"][number].permute(0, 2, 3, 1)
        assert_same(ours.features[name], finer)
    points, labels = near_the_ends(size), np.array([1, 0, 1, 0])
    for multimask_output in (True, False):
        assert_same_answer(
            ours.predict(points=points, labels=labels, multimask_output=multimask_output),
            metas.predict(points, labels, multimask_output=multimask_output),
        )


CLICKS = {"points": [[250, 100], [60, 60]], "labels": [1, 0]}


@pytest.mark.parametrize(
    ("prompt", "with_mask"),
    [
        ({"points": [[250, 100]], "labels": [1]}, False),
        ({"boxes": [30, 40, 470, 300]}, False),
        ({**CLICKS, "boxes": [30, 40, 470, 300]}, False),
        (CLICKS, True),
        ({"boxes": [100, 100, 100, 100]}, True),  # of no size
        ({}, True),
    ],
    ids=["click", "box", "box and clicks", "clicks and mask", "box and mask", "mask"],
)
def test_every_prompt(predictors, prompt, with_mask):
    metas, ours = predictors
    for predictor in predictors:
        predictor.set_image(photograph((333, 500)))
    prompt = {key: np.array(value) for key, value in prompt.items()}
    mask = None
    if with_mask:
        _, scores, logits = metas.predict(np.array([[99, 200]]), np.array([1]))
        mask = logits[np.argmax(scores)]
    for multimask_output in (True, False):
        expected = metas.predict(
            prompt.get("points"),
            prompt.get("labels"),
            box=prompt.get("boxes"),
            mask_input=None if mask is None else mask[None],
            multimask_output=multimask_output,
        )
        actual = ours.predict(**prompt, masks=mask, multimask_output=multimask_output)
        assert_same_answer(actual, expected)


# Masks of random weights all span the image: suppression, which is SAM's, would leave one.
ALL = {"stability_score_thresh": 0.0, "box_nms_thresh": 1.0, "crop_nms_thresh": 1.0}


@pytest.mark.parametrize(
    "settings",
    [
        {"points_per_side": 4, "pred_iou_thresh": 0.0},
        {"points_per_side": 3, "pred_iou_thresh": 0.0, "use_m2m": True},  # masks go back
        {"points_per_side": 2, "pred_iou_thresh": 0.0, "crop_n_layers": 1},  # stretched, too
    ],
    ids=["a grid", "masks to masks", "crops"],
)
def test_the_generator_keeps_the_same_records(settings):
    settings = {**ALL, **settings}
    predictor = meta_predictor()
    from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator

    metas = SAM2AutomaticMaskGenerator(predictor.model, **settings)
    with_sizes(metas.predictor)
    image = photograph((83, 131), 3)
    expected = metas.generate(image)
    actual = keras_sam.SAMAutomaticMaskGenerator(our_segmenter(), **settings).generate(image)
    assert len(expected) > 4, "the oracle tells little"
    assert len(actual) == len(expected)
    for ours, wanted in zip(actual, expected, strict=True):
        assert ours["bbox"] == wanted["bbox"] and ours["crop_box"] == wanted["crop_box"]
        np.testing.assert_allclose(ours["point_coords"], wanted["point_coords"], atol=1e-4)
        assert abs(ours["predicted_iou"] - wanted["predicted_iou"]) <= 1e-4
        assert abs(ours["stability_score"] - wanted["stability_score"]) <= 1e-3
        mask, theirs = ours["segmentation"], wanted["segmentation"]
        assert (mask & theirs).sum() >= 0.999 * (mask | theirs).sum()
