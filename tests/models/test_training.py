"""`compile`, `fit` and `evaluate` on images, prompts and targets as people have them."""

import operator

import keras
import numpy as np
import pytest

import keras_sam
from keras_sam.geometry import ResizePlan
from keras_sam.preprocessing.batches import Batch, DictBatches, TrainingBatches
from keras_sam.preprocessing.targets import target_to_frame
from tests.tiny import tiny_segmenter
from tests.training.steps import ragged_data, small_segmenter


@pytest.fixture(scope="module")
def trained():
    """A segmenter after a few epochs, its data, and what `fit` reported."""
    segmenter = small_segmenter()
    x, y = ragged_data()
    segmenter.compile(optimizer=keras.optimizers.AdamW(1e-2))
    before = segmenter.evaluate(x, y, batch_size=2, verbose=0, return_dict=True)
    history = segmenter.fit(x, y, batch_size=2, epochs=12, verbose=0)
    return segmenter, (x, y), before, history.history


def test_fit_lowers_the_loss_and_reports_metrics(trained):
    _, _, before, history = trained
    assert set(history) == {"loss", "miou", "iou_error"}
    assert history["loss"][-1] < 0.8 * before["loss"]
    assert np.isfinite([v for values in history.values() for v in values]).all()


def test_evaluate_of_a_reloaded_segmenter_is_the_same(trained, tmp_path):
    segmenter, (x, y), _, _ = trained
    segmenter.save(tmp_path / "trained.keras")
    reloaded = keras.models.load_model(tmp_path / "trained.keras")
    wanted = segmenter.evaluate(x, y, batch_size=2, verbose=0, return_dict=True)
    result = reloaded.evaluate(x, y, batch_size=2, verbose=0, return_dict=True)
    for name, value in wanted.items():
        np.testing.assert_allclose(result[name], value, rtol=1e-5, atol=1e-6)


def test_training_before_compile_says_what_to_call():
    segmenter = tiny_segmenter()
    with pytest.raises(RuntimeError, match=r"segmenter\.compile"):
        segmenter.fit(*ragged_data())


def test_compile_refuses_a_loss_by_name():
    with pytest.raises(ValueError, match="`loss`.*'mse'"):
        tiny_segmenter().compile(loss="mse")


def test_prompt_sets_that_fill_up_a_batch_have_no_target(segmenter):
    inputs, targets = segmenter.prepare_training(*ragged_data())
    assert targets["masks"].shape == (2, 2, *segmenter.mask_size)
    assert (targets["masks"][1, 1] == 255).all()
    assert (inputs["labels"][1, 1] == -10).all()


def prepared(segmenter, x, y, weights=None, batch_size=1, shuffle=False):
    """What `fit` trains on, one batch after the other."""
    source = DictBatches(Batch.read(x, y, weights), batch_size, shuffle)
    return map(segmenter.prepare_training_batch, map(source.__getitem__, range(2)))


def test_weights_of_prompt_sets_that_are_padding(segmenter):
    (x, y), labels = ragged_data(), np.full((2, 4, 1), -10)
    labels[0, :2], labels[1, 0] = 1, 1
    x = {"images": x["images"], "points": np.full((2, 4, 1, 2), 20.0), "labels": labels}
    weights = np.arange(8.0).reshape(2, 4)
    for i, (inputs, targets, weight) in enumerate(prepared(segmenter, x, y, weights)):
        assert inputs["labels"].shape[1] == targets["masks"].shape[1] == 4
        np.testing.assert_array_equal(weight, weights[i : i + 1])


def test_a_batch_to_train_on_needs_a_prompt(segmenter):
    x, y = ragged_data()
    x = {"images": x["images"], "boxes": [[[5, 5, 20, 20]], None]}
    batches = prepared(segmenter, x, {"masks": [y["masks"][0][:1], []]})
    assert next(batches)[0]["labels"].shape == (1, 1, 2)
    with pytest.raises(ValueError, match="At least one prompt.*any image of a batch"):
        next(batches)


def same_inputs(actual, expected):
    assert set(actual) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def test_one_picture_without_a_list_is_trained_on(segmenter):
    x, y = ragged_data()
    image, mask = x["images"][0], y["masks"][0][0]
    inputs, targets, weights = segmenter.prepare_training(
        {"images": image, "points": [30, 30]}, {"masks": mask}, 0.5
    )
    x = {"images": [image], "points": [[[30, 30]]], "labels": [[1]]}
    expected = segmenter.prepare_training(x, {"masks": [mask]}, [0.5])
    same_inputs(inputs, expected[0])
    same_inputs(targets, expected[1])
    np.testing.assert_array_equal(weights, expected[2])


def test_what_encode_returns_is_trained_on():
    segmenter = small_segmenter()
    segmenter.freeze("image_encoder")
    x, y = ragged_data()
    inputs, targets = segmenter.prepare_training(x, y)
    del inputs["images"]
    x = {**segmenter.encode(x.pop("images")), **x}
    embedded, same_targets = segmenter.prepare_training(x, y)
    np.testing.assert_array_equal(embedded.pop("image_embeddings"), x["image_embeddings"])
    same_inputs(embedded, inputs)
    same_inputs(same_targets, targets)
    whole = DictBatches(Batch.read(x, y, allow_embeddings=True), 2)
    batch = segmenter.prepare_training_batch(whole[0])
    same_inputs(batch[0], {**inputs, "image_embeddings": x["image_embeddings"]})
    trainer = keras_sam.training.SAMTrainer(segmenter)
    names = ("image_embeddings", "original_sizes", "scaled_sizes")
    inputs, targets = trainer.prepare_training({name: x[name] for name in names}, y)
    np.testing.assert_array_equal(targets["masks"], same_targets["masks"])


@pytest.mark.parametrize("in_embeddings", [False, True])
def test_a_key_of_another_system_is_named(in_embeddings):
    segmenter = small_segmenter()
    segmenter.freeze("image_encoder")
    segmenter.compile()
    x, y = ragged_data()
    images = x.pop("images")
    x |= segmenter.encode(images) if in_embeddings else {"images": images}
    for wrong in ({**x, "box": [[1, 2, 3, 4]]}, {**x, "input_boxes": [[[1, 2, 3, 4]]] * 2}):
        with pytest.raises(ValueError, match="Received also.* is 'boxes'"):
            segmenter.fit(wrong, y, verbose=0)
        with pytest.raises(ValueError, match="Received also.* is 'boxes'"):
            TrainingBatches(segmenter.prepare_training_batch, [(wrong, y)])[0]


def test_a_dict_to_train_on_needs_an_image(segmenter):
    x = {"image_embeddings": np.zeros((0, 7, 9, 16)), "original_sizes": np.zeros((0, 2), int)}
    with pytest.raises(ValueError, match="`image_embeddings` must hold at least one"):
        TrainingBatches(segmenter.prepare_training_batch, x, {"masks": []})


def test_images_and_targets_that_are_read_one_by_one(segmenter):
    class OneByOne:
        def __init__(self, items):
            self.items = items

        def __len__(self):
            return len(self.items)

        def __getitem__(self, index):
            return self.items[operator.index(index)]

    x, y = ragged_data()
    lazy = {**x, "images": OneByOne(x["images"])}, {"masks": OneByOne(y["masks"])}
    for shuffle in (False, True):
        keras.utils.set_random_seed(1)
        wanted = next(prepared(segmenter, x, y, None, 1, shuffle))
        keras.utils.set_random_seed(1)
        made = next(prepared(segmenter, *lazy, None, 1, shuffle))
        keras.tree.map_structure(np.testing.assert_array_equal, made, wanted)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda y: [y[0][:, :-1], y[1]], r"image 0 must have shape \(2, 60, 90\)"),
        (lambda y: [y[0][:1], y[1]], "one target per prompt set"),
        (lambda y: [y[0] * 3, y[1]], "0, 1 and 255"),
        (lambda y: [y[0] * 8.0 - 4, y[1]], "float64.*logits"),
        (lambda y: y[:1], "targets of 1 images for 2"),
    ],
    ids=["another size", "too few objects", "other values", "logits", "an image without targets"],
)
def test_bad_targets(segmenter, change, message):
    x, y = ragged_data()
    with pytest.raises(ValueError, match=message):
        segmenter.prepare_training(x, {"masks": change(y["masks"])})


def test_target_to_frame_keeps_void_and_marks_padding():
    target = np.zeros((40, 80), "uint8")
    target[:, :40] = 1
    target[:20] = 255
    frame = target_to_frame(target, ResizePlan((40, 80), 64), (16, 16))
    assert (frame[:4] == 255).all()  # void in the target
    assert (frame[8:] == 255).all()  # padding
    np.testing.assert_array_equal(frame[5:8, :7], 1)
    np.testing.assert_array_equal(frame[5:8, 9:], 0)
