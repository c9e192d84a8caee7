"""Frozen parts, LoRA and recomputed blocks: what is trained, and that results stay the same."""

import keras
import numpy as np
import pytest

import keras_sam
from tests.training.steps import ragged_data, small_segmenter, values


def weights_of(segmenter):
    return [keras.ops.convert_to_numpy(w) for w in segmenter.get_weights()]


def masks_of(segmenter):
    inputs, _ = segmenter.prepare_training(*ragged_data())
    return keras.ops.convert_to_numpy(segmenter(inputs, training=False)["masks"])


def test_frozen_parts_are_not_trained():
    segmenter = small_segmenter()
    everything = {v.path for v in segmenter.trainable_variables}
    segmenter.freeze("image_encoder")
    segmenter.freeze("prompt_encoder")
    left = {v.path for v in segmenter.trainable_variables}
    assert left == {path for path in everything if path.startswith("mask_decoder")}
    segmenter.unfreeze("image_encoder", "prompt_encoder")
    assert {v.path for v in segmenter.trainable_variables} == everything


@pytest.mark.parametrize("method", ["freeze", "unfreeze"])
@pytest.mark.parametrize("parts", [(), ("encoder",), ("image_encoder", "neck")])
def test_parts_go_by_their_names(segmenter, method, parts):
    with pytest.raises(ValueError, match="Parts must be any of .*mask_decoder"):
        getattr(segmenter, method)(*parts)


def test_what_changes_the_variables_asks_for_a_new_compile():
    segmenter = small_segmenter()
    segmenter.compile()
    segmenter.freeze("image_encoder")
    with pytest.raises(RuntimeError, match=r"segmenter\.compile"):
        segmenter.fit(*ragged_data())


@pytest.fixture(scope="module")
def lora():
    """A segmenter after two steps with LoRA, its weights before, and its masks."""
    segmenter = small_segmenter()
    segmenter.enable_lora(2, alpha=3.0)
    before = {v.path: keras.ops.convert_to_numpy(v) for v in segmenter.weights}
    segmenter.compile(optimizer=keras.optimizers.Adam(0.02))
    for _ in range(2):
        segmenter.train_on_batch(*ragged_data())
    return segmenter, before, masks_of(segmenter)


def test_lora_trains_its_matrices_and_nothing_else_of_the_encoder(lora):
    segmenter, before, _ = lora
    moved = {
        v.path
        for v in segmenter.weights
        if not np.array_equal(keras.ops.convert_to_numpy(v), before[v.path])
    }
    encoder = {path for path in moved if path.startswith(("block", "neck", "patch", "position"))}
    assert encoder == {
        f"block_0/attention/{layer}/lora_kernel_{ab}"
        for layer in ("qkv", "projection")
        for ab in "ab"
    }
    assert any(path.startswith("mask_decoder") for path in moved)


def test_lora_starts_without_effect():
    segmenter = small_segmenter()
    wanted = masks_of(segmenter)
    segmenter.enable_lora(3, targets="dense_1")
    np.testing.assert_allclose(masks_of(segmenter), wanted, atol=1e-5)


def save_to_preset(segmenter, folder):
    segmenter.save_to_preset(folder / "preset")
    return keras_sam.SAMImageSegmenter.from_preset(folder / "preset")


def save_to_file(segmenter, folder):
    segmenter.save(folder / "model.keras")
    return keras.models.load_model(folder / "model.keras", compile=False)


def save_weights(segmenter, folder):
    segmenter.save_weights(folder / "model.weights.h5")
    plain = small_segmenter(seed=8)
    plain.load_weights(folder / "model.weights.h5")
    return plain


@pytest.mark.parametrize("save", [save_to_preset, save_to_file, save_weights])
def test_what_lora_learnt_is_merged_in_every_file(lora, tmp_path, save):
    segmenter, _, wanted = lora
    plain = save(segmenter, tmp_path)
    assert not [w.path for w in plain.weights if "lora" in w.path]
    np.testing.assert_allclose(masks_of(plain), wanted, atol=1e-4)


def test_lora_goes_on_from_saved_weights_as_if_nothing_had_happened(lora, tmp_path):
    segmenter, _, wanted = lora
    segmenter.save_weights(tmp_path / "model.weights.h5")
    again = small_segmenter(seed=8)
    again.enable_lora(2, alpha=3.0)
    again.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(masks_of(again), wanted, atol=1e-4)
    for a, b in zip(weights_of(again), weights_of(segmenter), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_lora_on_weights_of_a_model_without_it_can_learn(tmp_path):
    plain = small_segmenter()
    plain.save_weights(tmp_path / "plain.weights.h5")
    segmenter = small_segmenter(seed=8)
    segmenter.enable_lora(2)
    segmenter.load_weights(tmp_path / "plain.weights.h5")
    np.testing.assert_allclose(masks_of(segmenter), masks_of(plain), atol=1e-5)
    first, second = (
        [v for v in segmenter.trainable_variables if v.name == f"lora_kernel_{ab}"] for ab in "ab"
    )
    # With one of them at zero the other one has a gradient; with both, neither has.
    assert all(np.abs(keras.ops.convert_to_numpy(v)).min() > 0 for v in first)
    assert all(np.abs(keras.ops.convert_to_numpy(v)).max() == 0 for v in second)


def test_unfreezing_an_encoder_with_lora_trains_lora():
    segmenter = small_segmenter()
    segmenter.enable_lora(2)
    wanted = {v.path for v in segmenter.trainable_variables}
    segmenter.freeze("image_encoder")
    assert not segmenter.image_encoder.trainable_variables
    segmenter.unfreeze("image_encoder")
    assert {v.path for v in segmenter.trainable_variables} == wanted


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"rank": 0}, "rank=0"),
        ({"rank": 2, "targets": ("query",)}, r"'projection', 'qkv'\].*'query'"),
        ({"rank": 2, "targets": ()}, r"Received: \[\]"),
    ],
    ids=["no rank", "no such layer", "no layer"],
)
def test_bad_lora(segmenter, arguments, message):
    with pytest.raises(ValueError, match=message):
        segmenter.enable_lora(**arguments)


def test_lora_is_enabled_once(lora):
    with pytest.raises(ValueError, match="enabled already"):
        lora[0].enable_lora(2)


def test_every_block_of_the_encoder_is_recomputed():
    segmenter = small_segmenter(num_layers=2)
    blocks = [segmenter.image_encoder.get_layer(f"block_{i}") for i in range(2)]
    segmenter.checkpoint_gradients()
    assert [block.rematerialize for block in blocks] == [True, True]
    segmenter.checkpoint_gradients(False)
    assert [block.rematerialize for block in blocks] == [False, False]


RATES = {"drop_path_rate": 0.5, "dropout_rate": 0.2, "attention_dropout_rate": 0.2}


@pytest.mark.parametrize("rates", [{}, RATES], ids=["nothing random", "dropout and drop-path"])
def test_a_recomputed_block_has_the_same_gradients(rates):
    x = np.random.default_rng(0).normal(size=(4, 5, 7, 6)).astype("float32")
    results = []
    for enabled in (False, True):
        keras.utils.set_random_seed(3)
        block = keras_sam.WindowedTransformerEncoder(8, 2, window_size=3, **rates)
        inputs = keras.Input(x.shape[1:])
        model = keras.Model(inputs, block(inputs))
        block.rematerialize = enabled
        model.compile(optimizer=keras.optimizers.SGD(1.0), loss="mse")
        keras.utils.set_random_seed(4)  # torch's dropout draws from its global generator
        before = values(model)
        losses = [model.train_on_batch(x, np.ones_like(x)) for _ in range(2)]
        after = values(model).values()
        moved = [b - a for b, a in zip(before.values(), after, strict=True)]
        states = [keras.ops.convert_to_numpy(v) for v in model.non_trainable_variables]
        results.append((losses, moved, states))
    (losses, moved, states), (losses_then, moved_then, states_then) = results
    # The second step has the generators where they would be without.
    np.testing.assert_allclose(losses_then, losses, rtol=1e-5)
    for a, b in zip(moved, moved_then, strict=True):
        assert np.abs(a).max() > 0
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-6)
    for a, b in zip(states, states_then, strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_encoder_without_blocks_cannot_be_recomputed(segmenter, monkeypatch):
    monkeypatch.setattr(type(segmenter), "image_encoder", keras.Sequential())
    with pytest.raises(ValueError, match="`HieraBackbone`. Received: a Sequential"):
        segmenter.checkpoint_gradients()
