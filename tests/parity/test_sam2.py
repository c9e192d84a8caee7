"""SAM 2's prompts, masks and scores are those of Meta's code, on a frame that is not square."""

import keras
import numpy as np
import pytest

from tests.parity import sam2_parts
from tests.parity.oracles import assert_same

GRID = (6, 10)
SIDES = np.array([10 * 16, 6 * 16])  # W, H
NAMES = ("masks", "iou_pred", "object_score")


def clicks(prompt_sets, count, seed=5):
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 1, (prompt_sets, count, 2)) * SIDES
    labels = (np.arange(prompt_sets * count).reshape(prompt_sets, count) + 1) % 2
    return points.astype("float32"), labels.astype("int32")


def corners(prompt_sets, seed=6):
    points, _ = clicks(prompt_sets, 2, seed)
    points = np.stack([points.min(axis=1), points.max(axis=1)], axis=1)
    return points, np.tile(np.array([2, 3], "int32"), (prompt_sets, 1))


def joined(*prompts):
    points, labels = zip(*prompts, strict=True)
    return np.concatenate(points, axis=1), np.concatenate(labels, axis=1)


def our_masks(points, labels, masks=None, multimask_output=None):
    """What `decode` returns for P prompt sets of one image, in the model frame."""
    sets = len(labels)
    prompts = {"points": points[None], "labels": labels[None]}
    given = masks is not None
    masks = masks[None, ..., None] if given else np.zeros((1, 0, 24, 40, 1), "float32")
    prompts |= {"masks": masks, "mask_given": np.ones((1, sets if given else 0), bool)}
    encoded = {**sam2_parts.features(GRID), "original_sizes": np.array([[96, 160]])}
    outputs = sam2_parts.our_segmenter(GRID).decode(
        {**encoded, "scaled_sizes": encoded["original_sizes"]},
        prompts,
        multimask_output=multimask_output,
    )
    return {name: outputs[name][0] for name in NAMES}


def metas_masks(points, labels, masks=None, multimask_output=True):
    oracle = sam2_parts.meta_parts(GRID)
    if points.shape[1] == 0:
        points = labels = None
    answer = sam2_parts.metas_masks(
        oracle, sam2_parts.features(GRID), points, labels, masks, multimask_output
    )
    return {name: x.numpy() for name, x in zip(NAMES, answer, strict=True)}


def assert_same_outputs(actual, expected):
    for name in NAMES:
        assert_same(actual[name], expected[name])


@pytest.mark.parametrize("multimask_output", [True, False], ids=["candidates", "one mask"])
@pytest.mark.parametrize(
    ("prompts", "with_masks"),
    [
        (clicks(1, 3), False),
        (joined(corners(4), clicks(4, 1)), False),  # so many share a projected image
        (corners(2), True),  # not-a-point follows boxes
        (clicks(1, 0), True),  # a mask alone: no token at all
    ],
    ids=["clicks", "4 boxes and clicks", "2 boxes and masks", "a mask"],
)
def test_masks_of_every_prompt(prompts, with_masks, multimask_output):
    masks = None
    if with_masks:
        rng = np.random.default_rng(8)
        masks = 6 * rng.standard_normal((len(prompts[0]), 24, 40)).astype("float32")
    assert_same_outputs(
        our_masks(*prompts, masks, multimask_output),
        metas_masks(*prompts, masks, multimask_output),
    )


def test_an_unstable_mask_gives_way_to_the_best_candidate():
    """At a threshold that some of six masks pass, and some do not."""
    prompts = clicks(6, 2)
    first = our_masks(*prompts)["masks"][:, 0]
    stability = (first > 0.05).sum(axis=(1, 2)) / (first > -0.05).sum(axis=(1, 2))
    threshold = float(np.median(stability))
    segmenter = sam2_parts.our_segmenter(GRID, dynamic_multimask_stability_thresh=threshold)
    oracle = sam2_parts.meta_parts(GRID).sam_mask_decoder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sam2_parts, "our_segmenter", lambda grid: segmenter)
        patch.setattr(oracle, "dynamic_multimask_stability_thresh", threshold)
        outputs, expected = our_masks(*prompts, None, False), metas_masks(*prompts, None, False)
    assert_same_outputs(outputs, expected)
    kept = np.abs(outputs["masks"][:, 0] - first).max(axis=(1, 2)) < 1e-3
    assert kept.tolist() == (stability >= threshold).tolist()
    assert 0 < kept.sum() < 6


def test_a_ragged_batch_gives_what_each_prompt_gives_alone():
    alone = [joined(corners(1), clicks(1, 2)), clicks(1, 1), corners(1, seed=9)]
    points = np.full((3, 4, 2), 17, "float32")  # of padding, anything
    labels = np.full((3, 4), -10, "int32")
    for i, (xy, kinds) in enumerate(alone):
        points[i, : xy.shape[1]], labels[i, : xy.shape[1]] = xy[0], kinds[0]
    outputs = our_masks(points, labels, None, True)
    for i, prompts in enumerate(alone):
        expected = metas_masks(*prompts)
        assert_same_outputs({name: x[i : i + 1] for name, x in outputs.items()}, expected)


def called_directly(points, labels, image=None, **options):
    """What the layers return."""
    segmenter = sam2_parts.our_segmenter(GRID)
    embedded = segmenter.prompt_encoder(points=points[None], labels=labels[None])
    image = sam2_parts.features(GRID) if image is None else image
    outputs = segmenter.mask_decoder(**image, **embedded, **options)
    return {name: keras.ops.convert_to_numpy(x[0]) for name, x in outputs.items()}


def test_mask_0_stays_where_it_is_in_training():
    prompts = clicks(1, 2)
    trained = called_directly(*prompts, multimask_output=False, training=True)["masks"]
    assert_same(trained, our_masks(*prompts)["masks"][:, :1])
    assert np.abs(trained - our_masks(*prompts, None, False)["masks"]).max() > 0.1


@pytest.mark.parametrize(
    ("missing", "received"),
    [
        (["high_res_features_0"], "high_res_features_1"),  # forgotten
        (["high_res_features_0", "high_res_features_1"], "neither"),  # SAM's embeddings
    ],
)
def test_features_that_are_missing_are_named(missing, received):
    image = {k: x for k, x in sam2_parts.features(GRID).items() if k not in missing}
    with pytest.raises(ValueError, match=f"`high_res_features_0` and .*Received: {received}"):
        called_directly(*clicks(1, 1), image=image)
