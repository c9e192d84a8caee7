"""The predictor, end to end on photographs of odd sizes, gives what Meta's gives."""

import types

import numpy as np
import pytest

import keras_sam
from tests.meta_oracle import import_segment_anything
from tests.parity.oracles import assert_same, meta_pair
from tests.tiny import photograph

# Of the pixels of a mask, this part may differ: those whose logit is 0 but for rounding.
MASK_BOUND = 1e-4

# Sizes where rounding the short side down, or to even, gives another number than rounding half up,
# at a frame of 1024 or at this model's 160.
SIZES = [
    (333, 500),  # landscape
    (1200, 1800),  # larger than the frame: antialiased
    (500, 333),  # portrait
    (426, 640),  # at 160 exactly on one half: 106.5
    (428, 640),
    (332, 500),
    (1365, 2048),
    (97, 101),  # smaller than the frame: enlarged
    (160, 160),  # the frame itself
]


def make_predictors():
    oracle, ours = meta_pair()
    from segment_anything import SamPredictor

    return SamPredictor(oracle), keras_sam.SAMPredictor(ours)


@pytest.fixture(scope="module")
def predictors():
    return make_predictors()


@pytest.fixture(scope="module")
def on_a_photograph():
    """Both predictors with one landscape image set, and its size."""
    size = (333, 500)
    return (*with_image(make_predictors(), photograph(size)), size)


def with_image(predictors, image):
    for predictor in predictors:
        predictor.set_image(image)
    return predictors


def assert_same_answer(actual, expected):
    masks, scores, logits = actual
    wanted_masks, wanted_scores, wanted_logits = expected
    assert_same(logits, wanted_logits)
    assert_same(scores, wanted_scores)
    assert masks.dtype == bool and masks.shape == wanted_masks.shape
    assert 0 < wanted_masks.mean() < 1, "the oracle tells nothing"
    assert np.mean(masks != wanted_masks) <= MASK_BOUND


def near_the_ends(size):
    """Points at the ends of both sides: where a wrong scale or a crop moves them most."""
    h, w = size
    return np.array([[w - 2, h // 3], [1, h - 2], [w - 1, h - 1], [0, 0]], "float32")


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_photographs_of_odd_sizes(predictors, size):
    metas, ours = with_image(predictors, photograph(size))
    points, labels = near_the_ends(size), np.array([1, 0, 1, 0])
    for multimask_output in (True, False):
        assert_same_answer(
            ours.predict(points=points, labels=labels, multimask_output=multimask_output),
            metas.predict(points, labels, multimask_output=multimask_output),
        )
    embedding = metas.get_image_embedding().permute(0, 2, 3, 1)
    assert_same(ours.image_embeddings, embedding)


@pytest.mark.parametrize("end", range(4))
def test_a_click_at_each_end(on_a_photograph, end):
    metas, ours, size = on_a_photograph
    point = near_the_ends(size)[end : end + 1]
    assert_same_answer(ours.predict(points=point, labels=[1]), metas.predict(point, np.array([1])))


def test_a_click_moves_the_mask(on_a_photograph):
    """Or the tests above could not see a click in the wrong place."""
    metas, _, (_, w) = on_a_photograph
    label = np.array([1])
    there, _, _ = metas.predict(np.array([[w - 2, 100]]), label)
    two_pixels_aside, _, _ = metas.predict(np.array([[w - 4, 100]]), label)
    assert np.mean(there != two_pixels_aside) > 10 * MASK_BOUND


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1)], ids=["wide", "high"])
def test_the_short_side_would_vanish(predictors, size):
    metas, ours = predictors
    image = photograph(size)
    with pytest.raises(ValueError):
        metas.set_image(image)
    with pytest.raises(ValueError, match="too long and thin"):
        ours.set_image(image)


def points_of(prompt):
    return {"point_coords": prompt.get("points"), "point_labels": prompt.get("labels")}


PROMPTS = {
    "click": {"points": [[250, 100]], "labels": [1]},
    "background click": {"points": [[250, 100]], "labels": [0]},
    "clicks": {"points": [[250, 100], [480, 320], [10.5, 3.25]], "labels": [1, 0, 1]},
    "click outside the image": {"points": [[540, -20]], "labels": [1]},
    "box": {"boxes": [30, 40, 470, 300]},
    "box at the far end": {"boxes": [420, 250, 499, 332]},
    "box of no size": {"boxes": [100, 100, 100, 100]},
    "click and box": {"points": [[250, 100]], "labels": [1], "boxes": [30, 40, 470, 300]},
    "clicks and box": {
        "points": [[250, 100], [60, 60]],
        "labels": [1, 0],
        "boxes": [30, 40, 470, 300],
    },
}


@pytest.mark.parametrize("with_mask", [False, True], ids=["alone", "with a mask"])
@pytest.mark.parametrize("name", PROMPTS)
def test_every_prompt(on_a_photograph, name, with_mask):
    metas, ours, _ = on_a_photograph
    prompt = {key: np.array(value) for key, value in PROMPTS[name].items()}
    mask = None
    if with_mask:
        _, scores, logits = metas.predict(np.array([[99, 200]]), np.array([1]))
        mask = logits[np.argmax(scores)]
    for multimask_output in (True, False):
        expected = metas.predict(
            **points_of(prompt),
            box=prompt.get("boxes"),
            mask_input=None if mask is None else mask[None],
            multimask_output=multimask_output,
        )
        actual = ours.predict(**prompt, masks=mask, multimask_output=multimask_output)
        assert_same_answer(actual, expected)


def test_a_mask_alone(on_a_photograph):
    metas, ours, _ = on_a_photograph
    _, _, logits = metas.predict(np.array([[99, 200]]), np.array([1]))
    assert_same_answer(ours.predict(masks=logits[1]), metas.predict(mask_input=logits[1:2]))


def test_logits_of_the_original_size(on_a_photograph):
    metas, ours, size = on_a_photograph
    point, label = np.array([[250, 100]]), np.array([1])
    expected, _, _ = metas.predict(point, label, return_logits=True)
    actual, _, _ = ours.predict(points=point, labels=label, return_logits=True)
    assert actual.shape == (3, *size)
    assert_same(actual, expected)


def test_refinement_click_after_click(on_a_photograph):
    """Each round takes the previous round's logits, on both sides its own."""
    metas, ours, _ = on_a_photograph
    points = np.array([[250, 100], [480, 320], [90, 250], [300, 30]])
    labels = np.array([1, 0, 1, 1])
    expected = metas.predict(points[:1], labels[:1])
    actual = ours.predict(points=points[:1], labels=labels[:1])
    for clicks in (2, 3, 4):
        best = np.argmax(expected[1])
        assert np.argmax(actual[1]) == best
        single = clicks == 4
        expected = metas.predict(
            points[:clicks],
            labels[:clicks],
            mask_input=expected[2][best : best + 1],
            multimask_output=not single,
        )
        actual = ours.predict(
            points=points[:clicks],
            labels=labels[:clicks],
            masks=actual[2][best],
            multimask_output=not single,
        )
    assert_same_answer(actual, expected)


BATCHES = {
    "points": {
        "points": [[[250, 100], [10, 20]], [[499, 332], [250, 166]], [[3, 300], [400, 9]]],
        "labels": [[1, 0], [1, 1], [0, 1]],
    },
    "boxes": {"boxes": [[30, 40, 470, 300], [420, 250, 499, 332], [0, 0, 50, 60]]},
    "points and boxes": {
        "points": [[[250, 100]], [[450, 300]]],
        "labels": [[1], [0]],
        "boxes": [[30, 40, 470, 300], [420, 250, 499, 332]],
    },
}


@pytest.mark.parametrize("with_masks", [False, True], ids=["alone", "with masks"])
@pytest.mark.parametrize("name", BATCHES)
def test_several_objects_at_once(on_a_photograph, name, with_masks):
    metas, ours, size = on_a_photograph
    import torch

    prompts = {key: np.array(value) for key, value in BATCHES[name].items()}
    count = len(next(iter(prompts.values())))
    masks = None
    if with_masks:
        _, _, logits = metas.predict(np.array([[99, 200]]), np.array([1]))
        masks = logits[:count]
    points = labels = boxes = None
    if "points" in prompts:
        scaled = metas.transform.apply_coords(prompts["points"], size)
        points, labels = torch.tensor(scaled).float(), torch.tensor(prompts["labels"])
    if "boxes" in prompts:
        boxes = metas.transform.apply_boxes_torch(torch.tensor(prompts["boxes"]), size).float()
    expected = metas.predict_torch(
        points,
        labels,
        boxes,
        None if masks is None else torch.from_numpy(masks)[:, None],
        multimask_output=True,
    )
    actual = ours.predict(**prompts, masks=masks)
    assert actual[0].shape == (count, 3, *size)
    assert_same_answer(actual, [x.numpy() for x in expected])


def test_bgr_images(predictors):
    metas, ours = predictors
    image = photograph((300, 200), seed=4)
    metas.set_image(image, image_format="BGR")
    ours.set_image(image, channel_order="bgr")
    assert_same(ours.image_embeddings, metas.get_image_embedding().permute(0, 2, 3, 1))


# --- at the released checkpoints' frame of 1024, without a model ---


@pytest.fixture(scope="module")
def metas_transform():
    import_segment_anything()
    from segment_anything.utils.transforms import ResizeLongestSide

    return ResizeLongestSide(1024)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_pixels_and_prompts_at_1024(metas_transform, size):
    plan = keras_sam.ResizePlan(size, 1024)
    image = photograph(size)
    np.testing.assert_array_equal(plan.scale_image(image), metas_transform.apply_image(image))
    points = near_the_ends(size)
    np.testing.assert_array_equal(
        plan.to_model(points), metas_transform.apply_coords(points, size).astype("float32")
    )
    box = np.array([[3.25, 7.5, size[1] - 1, size[0] - 1]])
    np.testing.assert_array_equal(
        plan.boxes_to_model(box), metas_transform.apply_boxes(box, size).astype("float32")
    )


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_masks_of_the_frame_1024(size):
    import_segment_anything()
    import torch
    from segment_anything.modeling import Sam

    plan = keras_sam.ResizePlan(size, 1024)
    generator = np.random.default_rng(6)
    logits = 5 * generator.standard_normal((1, 2, 256, 256)).astype("float32")
    frame = types.SimpleNamespace(image_encoder=types.SimpleNamespace(img_size=1024))
    expected = Sam.postprocess_masks(frame, torch.from_numpy(logits), plan.scaled_size, size)
    actual = plan.masks_to_original(logits)
    assert_same(actual, expected, bound=1e-6)
    assert np.mean((actual > 0) != (expected.numpy() > 0)) <= MASK_BOUND
