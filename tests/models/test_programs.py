"""Compiled programs: they follow the model, leave it as it was, and compile little."""

import gc
import threading
import weakref

import keras
import numpy as np
import pytest

import keras_sam
from keras_sam.backends import private
from keras_sam.models.programs import Program, Programs
from keras_sam.prompts import read_canonical
from tests.closeness import assert_different, assert_same, assert_same_outputs
from tests.tiny import photograph, tiny_segmenter

PHOTO = photograph((53, 80))
CLICK = {"images": [PHOTO], "points": [[[30, 20]]], "labels": [[1]]}


@pytest.fixture
def small():
    """A segmenter of its own, for tests that change it."""
    return tiny_segmenter(image_shape=(32, 48, 3), num_layers=2)


def test_weights_that_change_are_seen(small):
    before = small.predict(CLICK, verbose=0)
    tokens = small.mask_decoder.mask_tokens
    tokens.assign(tokens * 1.5)
    after = small.predict(CLICK, verbose=0)
    assert_different(after["masks"], before["masks"])
    bias = small.image_encoder.get_layer("neck_norm2").beta
    bias.assign(bias + 1.0)
    assert_different(small.predict(CLICK, verbose=0)["masks"], after["masks"])


@pytest.mark.parametrize("prompts", [1, 4])
def test_frequencies_that_change_are_seen(small, prompts):
    """The positions that they encode are kept from one call to the next."""
    embeddings = small.encode([PHOTO])
    points = np.linspace(3.0, 30.0, 2 * prompts).reshape(1, prompts, 1, 2)
    given = {"points": points, "labels": np.ones((1, prompts, 1))}
    before = small.decode(embeddings, given)
    assert_same_outputs(small.decode(embeddings, given), before)
    frequencies = small.prompt_encoder.positional_embedding.gaussian_matrix
    kept = keras.ops.convert_to_numpy(frequencies)
    other = tiny_segmenter(image_shape=(32, 48, 3), num_layers=2)  # as if it had never known others
    for segmenter in (small, other):
        segmenter.prompt_encoder.positional_embedding.gaussian_matrix.assign(kept * 1.5)
    after = small.decode(embeddings, given)
    assert_different(after["masks"], before["masks"])
    assert_same_outputs(after, other.decode(embeddings, given))
    frequencies.assign(kept)
    assert_same_outputs(small.decode(embeddings, given), before)


def test_lora_and_quantization_are_seen(small):
    before = small.predict(CLICK, verbose=0)
    dense = first_dense(small.mask_decoder.iou_prediction_head)
    dense.enable_lora(2)
    assert_same_outputs(small.predict(CLICK, verbose=0), before)  # it starts without effect
    dense.lora_kernel_b.assign(dense.lora_kernel_b + 1.0)
    tuned = small.predict(CLICK, verbose=0)
    assert_different(tuned["iou_pred"], before["iou_pred"])
    assert_same(tuned["masks"], before["masks"])

    first_dense(small.image_encoder.get_layer("block_1").mlp).quantize("int8")
    quantized = small.predict(CLICK, verbose=0)
    assert_different(quantized["masks"], before["masks"], 1e-5)
    assert_same(quantized["masks"], before["masks"], 0.1)


def first_dense(layer):
    return next(part for part in private.sublayers(layer) if isinstance(part, keras.layers.Dense))


def test_a_failing_computation_leaves_the_model_as_it_was(segmenter):
    expected = segmenter.predict(CLICK, verbose=0)
    weights = [keras.ops.convert_to_numpy(w) for w in segmenter.weights]
    with pytest.raises(Exception, match=r"."):  # each backend has an error of its own
        segmenter._programs.encode(np.zeros((1, 112, 144, 2), "float32"))
    embeddings = segmenter.encode([PHOTO])["image_embeddings"]
    prompts = read_canonical(segmenter.prepare(CLICK))
    with pytest.raises(Exception, match=r"."):
        segmenter._programs.decode({"image_embeddings": embeddings[..., :5]}, prompts, 8)
    for weight, before in zip(segmenter.weights, weights):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(weight), before)
    assert_same_outputs(segmenter.predict(CLICK, verbose=0), expected)


def test_predicting_leaves_the_variables_where_they_are(segmenter):
    """No call takes a variable's array away from somebody who reads it meanwhile."""
    segmenter.predict(CLICK, verbose=0)
    values = [weight.value for weight in segmenter.weights]
    segmenter.predict(CLICK, verbose=0)
    assert all(weight.value is value for weight, value in zip(segmenter.weights, values))
    assert np.isfinite(keras.ops.convert_to_numpy(values[0])).all()


def test_reading_the_weights_while_another_thread_predicts(segmenter):
    expected = segmenter.image_encoder.fingerprint()
    stop, seen, errors = threading.Event(), [], []

    def read():
        try:
            while not stop.is_set():
                seen.append(segmenter.image_encoder.fingerprint())
        except Exception as error:  # noqa: BLE001 - shown by the assertion below
            errors.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    for _ in range(10):
        segmenter.predict(CLICK, verbose=0)
        segmenter.encode([PHOTO], return_hidden_states=True)
    stop.set()
    thread.join()
    assert errors == []
    assert set(seen) == {expected}


def test_few_shapes_are_ever_compiled(small, monkeypatch):
    """Up to 9 prompts of up to 4 tokens: ten programs of powers of two, not 27.

    On torch no prompts are padded: any number from two on is one recording.
    """
    shapes = set()
    find = Programs._program

    def program(self, name, make, **options):
        run = find(self, name, make, **options)

        def recorded(inputs):
            shapes.add(("projected_image" in inputs, *inputs["labels"].shape))
            return run(inputs)

        return recorded if "decoder" in name else run

    monkeypatch.setattr(Programs, "_program", program)
    embeddings = small.encode([PHOTO])
    rng = np.random.default_rng(0)
    for prompts in range(1, 10):
        for clicks in (1, 2, 3):
            points = rng.uniform(0, 30, (1, prompts, clicks, 2))
            given = {"points": points, "labels": np.ones((1, prompts, clicks))}
            small.decode(embeddings, given, prompt_chunk=4)
    alone = {(False, 1, p, t) for p in (1, 2) for t in (2, 4)}
    sets = (1, 2, 3, 4) if keras.backend.backend() == "torch" else (1, 2, 4)
    assert shapes == alone | {(True, 1, p, t) for p in sets for t in (2, 4)}


@pytest.mark.skipif(
    keras.backend.backend() not in ("jax", "tensorflow"),
    reason="torch records",
)
def test_traces_are_as_many_as_buckets(small, monkeypatch):
    """1 to 12 clicks, 1 to 64 boxes, images of five sizes: layers run once for each shape."""
    traces = []
    decoder, block = small.mask_decoder, small.image_encoder.get_layer("block_0")
    upscale, run = decoder._upscale, block._run
    monkeypatch.setattr(decoder, "_upscale", lambda *args: traces.append("masks") or upscale(*args))
    monkeypatch.setattr(block, "_run", lambda *args: traces.append("block") or run(*args))
    for size in ((32, 48), (53, 80), (80, 53), (7, 200), (300, 20)):
        embeddings = small.encode([photograph(size)])
    rng = np.random.default_rng(0)
    for clicks in range(1, 13):
        points = rng.uniform(0, 30, (1, 1, clicks, 2))
        small.decode(embeddings, {"points": points, "labels": np.ones((1, 1, clicks))})
    for boxes in range(1, 65):
        corners = np.sort(rng.uniform(0, 30, (1, boxes, 2, 2)), axis=2)
        small.decode(embeddings, {"boxes": corners}, prompt_chunk=4)
    assert traces.count("block") == 1
    # One prompt of 2, 4, 8 or 16 tokens, and two boxes; then 4, 1 or 2 boxes of an image that is
    # projected. A box has as many tokens as a click with its not-a-point.
    assert traces.count("masks") == 4 + 1 + 3


def test_what_prompts_share_is_projected_once(small, monkeypatch):
    """Five prompts equal each alone, and the image is projected for them once, in any chunks."""
    calls = []
    tensors = Program.tensors

    def counted(self, inputs):
        if isinstance(inputs, dict):  # not the positions of the embedding's cells
            calls.append(inputs["image_embeddings"].shape)
        return tensors(self, inputs)

    monkeypatch.setattr(Program, "tensors", counted)
    embeddings = small.encode([PHOTO])
    shape = embeddings["image_embeddings"].shape
    points = np.random.default_rng(0).uniform(0, 30, (1, 5, 2, 2)).astype("float32")
    labels = np.array([[[1, 0], [1, -10], [1, 1], [2, 3], [1, -1]]])
    alone = [
        small.decode(embeddings, {"points": points[:, [i]], "labels": labels[:, [i]]})["masks"]
        for i in range(5)
    ]
    assert calls == []
    for chunk in (1, 4, 8):
        prompts = {"points": points, "labels": labels}
        together = small.decode(embeddings, prompts, prompt_chunk=chunk)["masks"]
        assert_same(together, np.concatenate(alone, axis=1))
    assert calls == [shape] * 3


def test_a_decoder_of_ones_own_needs_no_projections(small, monkeypatch):
    class OwnDecoder(keras_sam.SAMMaskDecoder):
        def call(self, image_embeddings, **others):
            assert "projected_image" not in others
            return super().call(image_embeddings, **others)

    embeddings = small.encode([PHOTO])
    prompts = {"boxes": [[[5, 5, 20, 20], [8, 2, 30, 25], [1, 1, 9, 9]]]}
    expected = small.decode(embeddings, prompts)["masks"]
    monkeypatch.setattr(small.mask_decoder, "__class__", OwnDecoder)
    small._programs = Programs(small.backbone)
    assert_same(small.decode(embeddings, prompts)["masks"], expected)


def test_a_segmenter_that_nobody_holds_is_freed():
    segmenter = tiny_segmenter(image_shape=(32, 48, 3), num_layers=1)
    keras_sam.SAMPredictor(segmenter).set_image(PHOTO)
    gone = weakref.ref(segmenter)
    del segmenter
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("choice", [True, False, "auto"])
def test_masks_that_nobody_asked_for_are_not_made(segmenter, choice):
    embeddings = segmenter.encode([PHOTO])
    prompts = {"points": [[[[30, 20]], [[9, 40]], [[50, 8]]]], "labels": [[[1], [1], [1]]]}
    everything = segmenter.decode(embeddings, prompts, prompt_chunk=2)
    outputs = segmenter.decode(embeddings, prompts, prompt_chunk=2, multimask_output=choice)
    assert_same_outputs(outputs, keras_sam.select_masks(everything, choice))


def test_one_hypernetwork_runs_for_mask_0(segmenter, monkeypatch):
    ran = []
    decoder = segmenter.mask_decoder
    for k, head in enumerate(decoder.output_hypernetworks_mlps):
        monkeypatch.setattr(
            head, "call", lambda x, k=k, call=head.call, **kw: ran.append(k) or call(x, **kw)
        )
    model = Programs(segmenter.backbone)
    features = segmenter.checked_features(segmenter.encode([PHOTO]))
    canonical = read_canonical(segmenter.prepare(CLICK))
    assert model.decode(features, canonical, 8, False)["masks"].shape[2] == 1
    assert set(ran) == {0}
    ran.clear()
    assert model.decode(features, canonical, 8, True)["masks"].shape[2] == 3
    assert set(ran) == {1, 2, 3}


def test_a_choice_of_masks_is_checked_before_they_are_made(segmenter):
    embeddings = segmenter.encode([PHOTO])
    prompts = {"points": [[[30, 20]]], "labels": [[1]]}
    with pytest.raises(
        ValueError, match=r"`multimask_output` must be True, False or \"auto\"\. .*'best'"
    ):
        segmenter.decode(embeddings, prompts, multimask_output="best")
