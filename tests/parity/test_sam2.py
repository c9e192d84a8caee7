"""SAM 2's prompts, masks and scores are those of Meta's and transformers' code."""

import keras
import numpy as np
import pytest

from tests.parity import sam2_parts
from tests.parity.oracles import assert_same

GRID = (7, 9)
SIDES = np.array([9 * 16, 7 * 16])  # W, H


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


PROMPTS = {
    "a click": (clicks(1, 1), False),
    "clicks of 3 objects": (clicks(3, 4), False),
    "boxes": (corners(4), False),  # not-a-point follows them
    "boxes and clicks": (joined(corners(2), clicks(2, 3)), False),
    "a click and a mask": (clicks(1, 1), True),
    "boxes and masks": (corners(3), True),
    "a mask": (None, True),  # no token at all
}


def our_masks(image, points, labels, masks, multimask_output, **options):
    """What the layers return for P prompt sets of one image."""
    encoder, decoder = sam2_parts.our_parts(GRID)
    given = {"points": points, "labels": labels, "masks": masks}
    given = {k: x[None] for k, x in given.items() if x is not None}
    if masks is not None:
        given["masks"] = given["masks"][..., None]
    embedded = encoder(**given, **options)
    outputs = decoder(**image, **embedded, multimask_output=multimask_output)
    single = outputs["iou_pred"].shape == (1, outputs["iou_pred"].shape[-1])
    return {k: x if single else x[0] for k, x in outputs.items()}


@pytest.mark.parametrize("multimask_output", [True, False], ids=["candidates", "one mask"])
@pytest.mark.parametrize("kind", PROMPTS)
def test_masks_of_every_prompt(kind, multimask_output):
    prompts, with_masks = PROMPTS[kind]
    points, labels = prompts or (None, None)
    sets = 1 if points is None else len(points)
    rng = np.random.default_rng(8)
    masks = 6 * rng.standard_normal((sets, 28, 36)).astype("float32") if with_masks else None
    image = sam2_parts.features(GRID)
    expected = sam2_parts.metas_masks(
        sam2_parts.meta_parts(GRID), image, points, labels, masks, multimask_output
    )
    outputs = our_masks(image, points, labels, masks, multimask_output)
    for name, wanted in zip(("masks", "iou_pred", "object_score"), expected, strict=True):
        assert_same(outputs[name], wanted)


def test_an_unstable_mask_gives_way_to_the_best_candidate():
    """At a threshold that some of six masks pass, and some do not."""
    points, labels = clicks(6, 2)
    image = sam2_parts.features(GRID)
    encoder, decoder = sam2_parts.our_parts(GRID)
    all_masks = np.asarray(
        keras.ops.convert_to_numpy(our_masks(image, points, labels, None, None)["masks"])
    )
    first = all_masks[:, 0]
    stability = (first > 0.05).sum(axis=(1, 2)) / (first > -0.05).sum(axis=(1, 2))
    threshold = float(np.median(stability))
    oracle = sam2_parts.meta_parts(GRID)
    with pytest.MonkeyPatch.context() as patch:
        for part in (oracle.sam_mask_decoder, decoder):
            patch.setattr(part, "dynamic_multimask_stability_thresh", threshold)
        expected = sam2_parts.metas_masks(oracle, image, points, labels, None, False)
        outputs = our_masks(image, points, labels, None, False)
    for name, wanted in zip(("masks", "iou_pred", "object_score"), expected, strict=True):
        assert_same(outputs[name], wanted)
    kept = np.abs(expected[0].numpy()[:, 0] - first).max(axis=(1, 2)) < 1e-3
    assert kept.tolist() == (stability >= threshold).tolist()
    assert 0 < kept.sum() < 6


def test_mask_0_stays_in_training_and_among_all_masks():
    points, labels = clicks(6, 2)
    image = sam2_parts.features(GRID)
    _, decoder = sam2_parts.our_parts(GRID)
    first = our_masks(image, points, labels, None, None)["masks"][:, :1]
    encoder, _ = sam2_parts.our_parts(GRID)
    embedded = encoder(points=points[None], labels=labels[None])
    training = decoder(**image, **embedded, multimask_output=False, training=True)["masks"][0]
    assert_same(training, keras.ops.convert_to_numpy(first))


def test_padding_changes_nothing():
    points, labels = joined(corners(3), clicks(3, 2))
    image = sam2_parts.features(GRID)
    alone = our_masks(image, points, labels, None, True)
    padded = np.pad(points, [(0, 0), (0, 3), (0, 0)], constant_values=17)
    padding = np.pad(labels, [(0, 0), (0, 3)], constant_values=-10)
    outputs = our_masks(image, padded, padding, None, True)
    for name, wanted in alone.items():
        assert_same(outputs[name], keras.ops.convert_to_numpy(wanted), bound=1e-5)


def test_an_image_that_prompts_share_is_projected_once():
    points, labels = joined(corners(4), clicks(4, 2))
    image = sam2_parts.features(GRID)
    encoder, decoder = sam2_parts.our_parts(GRID)
    embedded = encoder(points=points[None], labels=labels[None])
    expected = decoder(**image, **embedded, multimask_output=True)
    names = ("prompt_dense_embeddings", "prompt_dense_positional_embeddings")
    shared = {name: embedded.pop(name) for name in names}
    projected = decoder.project_image(**image, **shared)
    outputs = decoder(projected_image=projected, **embedded, multimask_output=True)
    for name, wanted in expected.items():
        assert_same(outputs[name], keras.ops.convert_to_numpy(wanted), bound=1e-5)


@pytest.mark.parametrize(
    ("missing", "extra"),
    [
        (["high_res_features_0"], {}),  # of another model, or forgotten
        (["high_res_features_0", "high_res_features_1"], {}),  # SAM's
        ([], {"early_features": np.zeros((1, 7, 9, 32), "float32")}),  # SAM-HQ's
    ],
)
def test_features_of_another_model_are_refused(missing, extra):
    encoder, decoder = sam2_parts.our_parts(GRID)
    image = {k: x for k, x in sam2_parts.features(GRID).items() if k not in missing}
    points, labels = clicks(1, 1)
    embedded = encoder(points=points[None], labels=labels[None])
    with pytest.raises(ValueError, match="needs .*high_res_features_0.* beside `image_embeddings`"):
        decoder(**image, **extra, **embedded)
