"""Every part of the model gives what transformers' `SamModel` gives with the same weights."""

import numpy as np
import pytest

from tests.parity.oracles import (
    CHANNELS,
    DECODER_HEADS,
    HEADS,
    LAYERS,
    assert_same,
    frames,
    transformers_pair,
)

TOKENS = 100  # patches of the image


@pytest.fixture(scope="module")
def pair():
    return transformers_pair()


@pytest.fixture(scope="module")
def images(pair):
    return frames((160, 160), count=2)


@pytest.fixture(scope="module")
def embeddings(pair, images):
    """Our encoder's, which `test_image_encoder` holds to theirs."""
    return pair[1].encode_frames(images, batch_size=2)["image_embeddings"]


def pixel_values(images):
    """Pixels as transformers' image processor normalises them."""
    import torch

    mean, std = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
    return torch.from_numpy(((images - mean) / std).transpose(0, 3, 1, 2).copy())


def decode(ours, embeddings, prompts, **options):
    """Decodes prompts in the model frame."""
    frame = [ours.image_shape[:2]] * len(embeddings)
    return ours.decode(embeddings, prompts, original_sizes=frame, **options)


def call(model, multimask_output=True, **inputs):
    import torch

    given = {name: torch.from_numpy(np.asarray(value)) for name, value in inputs.items()}
    with torch.no_grad():
        return model(**given, multimask_output=multimask_output)


def test_image_encoder_and_every_hidden_state(pair, images):
    import torch

    model, ours = pair
    with torch.no_grad():
        theirs = model.vision_encoder(pixel_values(images), output_hidden_states=True)
    inspected = ours.encode_frames(images, batch_size=2, return_hidden_states=True)
    assert_same(inspected["image_embeddings"], theirs.last_hidden_state.permute(0, 2, 3, 1))
    assert len(inspected["hidden_states"]) == len(theirs.hidden_states) == LAYERS + 1
    for actual, expected in zip(inspected["hidden_states"], theirs.hidden_states, strict=True):
        assert_same(actual, expected)


def test_image_encoder(embeddings, pair, images):
    import torch

    with torch.no_grad():
        theirs = pair[0].get_image_embeddings(pixel_values(images))
    assert_same(embeddings, theirs.permute(0, 2, 3, 1))


def test_attention_maps_of_the_image_encoder(pair, images):
    import torch

    model, ours = pair
    with torch.no_grad():
        theirs = model.vision_encoder(pixel_values(images[:1]), output_attentions=True)
    inspected = ours.encode_frames(images[:1], return_attentions=True)
    assert len(inspected["attentions"]) == len(theirs.attentions) == LAYERS
    for actual, expected in zip(inspected["attentions"], theirs.attentions, strict=True):
        tokens = expected.shape[-1]
        assert_same(actual, expected.reshape(-1, HEADS, tokens, tokens))


PROMPTS = {
    "click": {"input_points": [[[[80, 30]]]], "input_labels": [[[1]]]},
    "clicks": {"input_points": [[[[80, 30], [159, 2], [-4, 70]]]], "input_labels": [[[1, 0, 1]]]},
    "box": {"input_boxes": [[[10, 20, 150, 90]]]},
    "click and box": {
        "input_points": [[[[80, 30]]]],
        "input_labels": [[[0]]],
        "input_boxes": [[[10, 20, 150, 90]]],
    },
    "three objects by clicks": {
        "input_points": [[[[80, 30], [3, 4]], [[99, 150], [60, 60]], [[1, 1], [5, 158]]]],
        "input_labels": [[[1, 1], [1, 0], [0, 1]]],
    },
    "two objects by boxes": {"input_boxes": [[[10, 20, 150, 90], [100, 100, 159, 159]]]},
}


def theirs_and_ours(name):
    """One of the prompts above for one image, under transformers' names and under ours."""
    theirs = {
        key: np.array(value, "int64" if key == "input_labels" else "float32")
        for key, value in PROMPTS[name].items()
    }
    return theirs, {key.removeprefix("input_"): value for key, value in theirs.items()}


@pytest.mark.parametrize("name", PROMPTS)
def test_masks_and_scores(pair, images, embeddings, name):
    model, ours = pair
    theirs, prompts = theirs_and_ours(name)
    outputs = decode(ours, embeddings[:1], prompts)
    for multimask_output, kept in ((False, slice(0, 1)), (True, slice(1, None))):
        expected = call(model, multimask_output, pixel_values=pixel_values(images[:1]), **theirs)
        assert_same(outputs["masks"][:, :, kept], expected.pred_masks)
        assert_same(outputs["iou_pred"][:, :, kept], expected.iou_scores)


def test_a_mask_and_a_click(pair, images, embeddings):
    model, ours = pair
    theirs, prompts = theirs_and_ours("click")
    mask = 4 * np.random.default_rng(3).standard_normal((40, 40)).astype("float32")
    expected = call(
        model,
        pixel_values=pixel_values(images[:1]),
        **theirs,
        input_masks=mask[None, None],
    )
    outputs = decode(ours, embeddings[:1], {**prompts, "masks": mask[None, None, ..., None]})
    assert_same(outputs["masks"][:, :, 1:], expected.pred_masks)
    assert_same(outputs["iou_pred"][:, :, 1:], expected.iou_scores)


def test_two_images_at_once(pair, images):
    model, ours = pair
    points = np.float32([[[[80, 30], [3, 4]]], [[[99, 150], [60, 60]]]])
    labels = np.array([[[1, 0]], [[1, 1]]])
    expected = call(
        model,
        pixel_values=pixel_values(images),
        input_points=points,
        input_labels=labels,
    )
    prompts = {"points": points, "labels": labels}
    outputs = ours.decode(ours.encode_frames(images), prompts)
    assert_same(outputs["masks"][:, :, 1:], expected.pred_masks)


# --- PerSAM's hooks ---

NUM_TOKENS = 1 + 4 + 3  # IoU, masks, two clicks and the not-a-point token


def hooks(similarity, target):
    rng = np.random.default_rng(8)
    given = {}
    if similarity:
        shape = (1, DECODER_HEADS, NUM_TOKENS, TOKENS)
        given["attention_similarity"] = 3 * rng.standard_normal(shape).astype("float32")
    if target:
        shape = (1, 1, NUM_TOKENS, CHANNELS)
        given["target_embedding"] = rng.standard_normal(shape).astype("float32")
    return given


@pytest.mark.parametrize(
    ("similarity", "target"),
    [
        (True, False),  # target-guided attention
        (False, True),  # target-semantic prompting, added in place to the positions too
        (True, True),
    ],
)
def test_attention_similarity_and_target_embedding(pair, images, embeddings, similarity, target):
    model, ours = pair
    prompts = {
        "points": np.float32([[[[80, 30], [159, 2]]]]),
        "labels": np.array([[[1, 0]]]),
    }
    theirs = {f"input_{name}": value for name, value in prompts.items()}
    given = hooks(similarity, target)
    expected = call(model, pixel_values=pixel_values(images[:1]), **theirs, **given)
    without = call(model, pixel_values=pixel_values(images[:1]), **theirs)
    assert (expected.pred_masks - without.pred_masks).abs().max() > 0.1, "the hook does nothing"
    if similarity:  # theirs has the image and prompt axes in one
        given["attention_similarity"] = given["attention_similarity"][:, None]
    outputs = decode(ours, embeddings[:1], prompts, **given)
    assert_same(outputs["masks"][:, :, 1:], expected.pred_masks)
    assert_same(outputs["iou_pred"][:, :, 1:], expected.iou_scores)


def test_the_decoders_attention_maps(pair, images, embeddings):
    """transformers returns none of the decoder's, so they are taken where they are made."""
    model, ours = pair
    theirs, prompts = theirs_and_ours("three objects by clicks")
    maps = {}
    transformer = model.mask_decoder.transformer
    named = {
        (i, kind): getattr(layer, attribute)
        for i, layer in enumerate(transformer.layers)
        for kind, attribute in (
            ("self_attention", "self_attn"),
            ("token_to_image", "cross_attn_token_to_image"),
            ("image_to_token", "cross_attn_image_to_token"),
        )
    }
    named[len(transformer.layers), "token_to_image"] = transformer.final_attn_token_to_image
    handles = [
        attention.register_forward_hook(lambda _, __, out, key=key: maps.__setitem__(key, out[1]))
        for key, attention in named.items()
    ]
    call(model, pixel_values=pixel_values(images[:1]), **theirs)
    for handle in handles:
        handle.remove()
    outputs = decode(ours, embeddings[:1], prompts, return_attentions=True)
    ours_by_key = {
        (i, kind): value
        for i, layer in enumerate(outputs["attentions"])
        for kind, value in layer.items()
    }
    assert sorted(ours_by_key) == sorted(maps)
    for key, expected in maps.items():  # (B * P, D, Tq, Tk)
        actual = np.broadcast_to(ours_by_key[key], (1, *expected.shape))
        assert_same(actual[0], expected)
