"""The mask decoder called with symbols for all of its arguments: functional models do that."""

import keras
import numpy as np
import pytest

from tests.closeness import assert_different, assert_same
from tests.layers.parts import GRID, PARTS
from tests.tiny import randomize

to_numpy = keras.ops.convert_to_numpy
B, P, T, C = 2, 3, 4, 8
TOKENS = 1 + 4 + T  # the quality token, the mask tokens, the prompt's


@pytest.fixture
def decoder():
    keras.utils.set_random_seed(5)
    decoder = PARTS["SAMMaskDecoder"][0]()
    # Not by a symbolic call: of a layer that was called with fewer outputs before, Keras 3.15
    # makes no functional model, whatever the layer.
    decoder.build()
    randomize(decoder, 3)
    return decoder


def inputs(lead, shared):
    """All tensor arguments; `lead` are the axes of a prompt's own, `shared` of an image's."""
    rng = np.random.default_rng(1)

    def draw(*shape):
        return rng.standard_normal(shape).astype("float32")

    return {
        "image_embeddings": draw(B, *GRID, C),
        "prompt_dense_positional_embeddings": draw(1, *GRID, C),
        "prompt_sparse_embeddings": draw(*lead, T, C),
        "prompt_dense_embeddings": draw(*shared, *GRID, C),
        "prompt_sparse_mask": rng.random((*lead, T)) < 0.7,
        "attention_similarity": draw(*shared, 1, TOKENS, GRID[0] * GRID[1]),
        "target_embedding": draw(*shared, 1, C),
    }


def project(decoder, given):
    """`project_image` of the image, as arrays."""
    names = ("image_embeddings", "prompt_dense_embeddings", "prompt_dense_positional_embeddings")
    return keras.tree.map_structure(to_numpy, decoder.project_image(*map(given.get, names)))


LEADS = [
    ((B, P), (B, P), False),
    ((B, P), (B, 1), True),
    ((B,), (B,), False),  # the single-object form
]
# Each form with all masks, each choice of masks with one form; one backend has every pair.
ON_EVERY_BACKEND = {(lead, None) for lead in LEADS} | {(LEADS[1], True), (LEADS[2], False)}


@pytest.mark.parametrize(
    ("lead", "shared", "is_projected", "multimask_output"),
    [
        pytest.param(
            *form, choice, marks=[pytest.mark.once] * ((form, choice) not in ON_EVERY_BACKEND)
        )
        for form in LEADS
        for choice in (None, True, False)
    ],
)
def test_symbolic_call_with_every_argument(decoder, lead, shared, is_projected, multimask_output):
    given = inputs(lead, shared)
    if is_projected:
        given["projected_image"] = project(decoder, given)
    choices = {"return_attentions": True, "multimask_output": multimask_output}
    symbols = keras.tree.map_structure(
        lambda x: keras.Input(x.shape[1:], dtype=str(x.dtype)), given
    )
    outputs = decoder(**symbols, **choices)
    model = keras.Model(keras.tree.flatten(symbols), outputs)
    expected = decoder(**given, **choices)
    found = model(keras.tree.flatten(given))
    assert set(found) == {"masks", "iou_pred", "attentions"}
    assert len(found["attentions"]) == 3  # two blocks, and the last look of tokens at the image
    for symbol, ours, eager in zip(
        *map(keras.tree.flatten, (outputs, found, expected)), strict=True
    ):
        assert all(s in (None, n) for s, n in zip(symbol.shape, eager.shape, strict=True))
        assert symbol.dtype == keras.backend.standardize_dtype(eager.dtype)
        assert_same(to_numpy(ours), to_numpy(eager))


@pytest.mark.parametrize(
    "name", ["prompt_sparse_mask", "attention_similarity", "target_embedding", "projected_image"]
)
def test_functional_model_obeys_each_optional_argument(decoder, name):
    given = inputs((B, P), (B, 1))
    given["prompt_sparse_mask"][:] = True
    given["projected_image"] = project(decoder, given)
    symbols = keras.tree.map_structure(
        lambda x: keras.Input(x.shape[1:], dtype=str(x.dtype)), given
    )
    model = keras.Model(keras.tree.flatten(symbols), decoder(**symbols))
    before = to_numpy(model(keras.tree.flatten(given))["masks"])
    changed = keras.tree.map_structure(lambda x: ~x if x.dtype == bool else -2 * x, given[name])
    after = to_numpy(model(keras.tree.flatten({**given, name: changed}))["masks"])
    assert_different(after, before)
