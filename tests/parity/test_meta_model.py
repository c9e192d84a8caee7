"""Every part of the model gives what Meta's code gives with the same weights."""

import functools

import numpy as np
import pytest

from tests.parity.oracles import assert_same, frames, meta_pair

SQUARE, WIDE = (10, 10), (9, 13)  # patches; Meta's modules compute on other grids too


@functools.cache
def encode(grid):
    """Meta's model, ours, two images, and their embeddings by Meta's encoder, `(B, C, Eh, Ew)`."""
    oracle, ours = meta_pair(grid)
    import torch

    images = frames(ours.image_shape[:2], count=2)
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        features = oracle.image_encoder((pixels - oracle.pixel_mean) / oracle.pixel_std)
    return oracle, ours, images, features


@pytest.fixture(scope="module", params=[SQUARE, WIDE], ids=["160x160", "144x208"])
def encoded(request):
    return encode(request.param)


@pytest.fixture(scope="module")
def square():
    return encode(SQUARE)


def test_image_encoder(encoded):
    _, ours, images, features = encoded
    assert_same(
        ours.encode_frames(images, batch_size=2)["image_embeddings"], features.permute(0, 2, 3, 1)
    )


def test_image_encoder_called_directly(square):
    _, ours, images, features = square
    assert_same(ours.image_encoder(images), features.permute(0, 2, 3, 1))


def test_every_block_of_the_image_encoder(square):
    oracle, ours, images, _ = square
    import torch

    states = []
    hooks = [
        block.register_forward_hook(lambda _, inputs, output: states.append((inputs[0], output)))
        for block in oracle.image_encoder.blocks
    ]
    with torch.no_grad():
        pixels = torch.from_numpy(images[:1]).permute(0, 3, 1, 2)
        oracle.image_encoder((pixels - oracle.pixel_mean) / oracle.pixel_std)
    for hook in hooks:
        hook.remove()
    inspected = ours.encode_frames(images[:1], return_hidden_states=True)
    expected = [states[0][0], *(output for _, output in states)]
    for actual, wanted in zip(inspected["hidden_states"], expected, strict=True):
        assert_same(actual, wanted)


def random_prompts(ours, prompt_sets, points, boxes, masks, seed=5):
    """Canonical kinds of prompts for one image, as numpy arrays with a prompt axis."""
    rng = np.random.default_rng(seed)
    height, width = ours.image_shape[:2]
    prompts = {}
    if points:
        xy = rng.uniform(-3, 1.05, (prompt_sets, points, 2)) * [width, height]  # some outside
        xy[:, 0] = rng.uniform(0, 1, (prompt_sets, 2)) * [width, height]
        prompts["points"] = xy.astype("float32")
        prompts["labels"] = (np.arange(prompt_sets * points).reshape(prompt_sets, points) + 1) % 2
    if boxes:
        corners = rng.uniform(0, 1, (prompt_sets, 2, 2)) * [width, height]
        corners = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=-1)
        prompts["boxes"] = corners.astype("float32")  # (P, 4)
    if masks:
        prompts["masks"] = 6 * rng.standard_normal((prompt_sets, *ours.mask_size)).astype("float32")
    return prompts


def metas_embeddings(oracle, prompts):
    """Sparse and dense embeddings by Meta's prompt encoder."""
    import torch

    given = {name: torch.from_numpy(np.asarray(value)) for name, value in prompts.items()}
    points = (given["points"], given["labels"]) if "points" in given else None
    masks = given["masks"][:, None] if "masks" in given else None
    with torch.no_grad():
        return oracle.prompt_encoder(points=points, boxes=given.get("boxes"), masks=masks)


def metas_masks(oracle, features, prompts, multimask_output):
    import torch

    sparse, dense = metas_embeddings(oracle, prompts)
    with torch.no_grad():
        return oracle.mask_decoder(
            image_embeddings=features,
            image_pe=oracle.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask_output,
        )


def as_ours(prompts):
    """The same prompts for the first image, in the forms that `decode` takes."""
    named = {name: value[None] for name, value in prompts.items()}
    if "masks" in named:
        named["masks"] = named["masks"][..., None]
    return named


KINDS = pytest.mark.parametrize(
    ("prompt_sets", "points", "boxes", "masks"),
    [
        (1, 1, False, False),  # one click
        (1, 3, False, False),  # clicks on the object and on the background
        (1, 0, True, False),  # a box alone: no not-a-point token
        (1, 2, True, False),  # clicks and a box
        (1, 0, False, True),  # a mask alone: no sparse token at all
        (1, 1, False, True),  # refinement of a click
        (1, 0, True, True),  # refinement of a box
        (1, 2, True, True),  # everything at once
        (3, 2, False, False),  # several objects by clicks
        (3, 0, True, False),  # several objects by boxes
        (2, 1, True, True),  # several objects by everything
        (5, 0, False, True),  # several masks; five sets, so that the chunk is padded
    ],
)


@KINDS
def test_masks_and_iou(square, prompt_sets, points, boxes, masks):
    assert_same_masks(square, prompt_sets, points, boxes, masks)


@pytest.mark.parametrize("masks", [False, True])
def test_masks_and_iou_of_a_wide_frame(masks):
    assert_same_masks(encode(WIDE), 2, 2, True, masks)


def assert_same_masks(encoded, prompt_sets, points, boxes, masks):
    oracle, ours, _, features = encoded
    prompts = random_prompts(ours, prompt_sets, points, boxes, masks)
    embeddings = features[:1].permute(0, 2, 3, 1).numpy()
    outputs = ours.decode(embeddings, as_ours(prompts), original_sizes=[ours.image_shape[:2]])
    if prompt_sets == 1 and masks and not points and not boxes:  # the single-object form
        outputs = {name: value[:, None] for name, value in outputs.items()}
    for multimask_output, kept in ((False, slice(0, 1)), (True, slice(1, None))):
        logits, scores = metas_masks(oracle, features[:1], prompts, multimask_output)
        assert_same(outputs["masks"][0, :, kept], logits)
        assert_same(outputs["iou_pred"][0, :, kept], scores)


@KINDS
def test_prompt_embeddings(square, prompt_sets, points, boxes, masks):
    oracle, ours, _, _ = square
    prompts = random_prompts(ours, prompt_sets, points, boxes, masks)
    sparse, dense = metas_embeddings(oracle, prompts)
    given = as_ours(prompts)
    if points and not boxes:
        given["points"] = np.pad(given["points"], [(0, 0), (0, 0), (0, 1), (0, 0)])
        given["labels"] = np.pad(given["labels"], [(0, 0), (0, 0), (0, 1)], constant_values=-1)
    embeddings = ours.prompt_encoder(**given)
    ours_sparse = embeddings["prompt_sparse_embeddings"]
    ours_dense = embeddings["prompt_dense_embeddings"]
    if prompt_sets == 1 and masks and not points and not boxes:
        ours_sparse, ours_dense = ours_sparse[None], ours_dense[None]  # the single-object form
    if points or boxes:
        assert_same(ours_sparse[0], sparse)
    else:
        assert ours_sparse.shape[2] == sparse.shape[1] == 0
    if not masks:  # ours is shared by all prompts of an image
        dense = dense[:1]
    assert_same(ours_dense[0], dense.permute(0, 2, 3, 1))


def test_positional_embedding_of_the_image(encoded):
    oracle, ours, _, _ = encoded
    expected = oracle.prompt_encoder.get_dense_pe().permute(0, 2, 3, 1)
    prompts = as_ours(random_prompts(ours, 1, 1, False, False))
    embeddings = ours.prompt_encoder(**prompts)
    assert_same(embeddings["prompt_dense_positional_embeddings"], expected)


def test_a_not_a_point_label_of_the_users_is_not_doubled(square):
    _, ours, _, features = square
    prompts = random_prompts(ours, 1, 2, False, False)
    embeddings = features[:1].permute(0, 2, 3, 1).numpy()
    expected = ours.decode(embeddings, as_ours(prompts), original_sizes=[ours.image_shape[:2]])
    prompts["points"] = np.pad(prompts["points"], [(0, 0), (0, 1), (0, 0)])
    prompts["labels"] = np.pad(prompts["labels"], [(0, 0), (0, 1)], constant_values=-1)
    outputs = ours.decode(embeddings, as_ours(prompts), original_sizes=[ours.image_shape[:2]])
    np.testing.assert_array_equal(outputs["masks"], expected["masks"])


def test_the_model_called_on_tensors(square):
    """Images and prompts in one call, two images at once, each with prompts of its own."""
    oracle, ours, images, features = square
    each = [random_prompts(ours, 2, 2, True, True, seed) for seed in (8, 9)]
    together = {name: np.concatenate([as_ours(p)[name] for p in each]) for name in each[0]}
    outputs = ours({"images": images, **together})
    for i, prompts in enumerate(each):
        logits, scores = metas_masks(oracle, features[i : i + 1], prompts, multimask_output=True)
        assert_same(outputs["masks"][i, :, 1:], logits)
        assert_same(outputs["iou_pred"][i, :, 1:], scores)
