"""`compile`, `fit` and `evaluate` on images, prompts and targets as people have them."""

import operator

import keras
import numpy as np
import pytest
from PIL import Image, ImageFilter

import keras_sam
from keras_sam import notices
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


@pytest.mark.parametrize(
    "loss",
    [
        keras.losses.BinaryCrossentropy(from_logits=True),  # one of Keras's
        keras.losses.dice,  # a function of two arguments
    ],
)
def test_compile_refuses_a_loss_of_two_arguments(loss):
    with pytest.raises(ValueError, match="called inside such a function"):
        tiny_segmenter().compile(loss=loss)


def cross_entropy(outputs, targets, ambiguous):
    targets = keras.ops.cast(targets, "float32")
    loss = keras.losses.binary_crossentropy(targets, outputs["masks"][:, :, 0], from_logits=True)
    return keras.ops.mean(loss, axis=-1)


def test_a_loss_of_ones_own_is_one_number_per_prompt_set():
    x, y = ragged_data()
    segmenter = tiny_segmenter()
    segmenter.compile(loss=cross_entropy)
    found = segmenter.evaluate(x, y, batch_size=2, verbose=0, return_dict=True)["loss"]
    inputs, targets = segmenter.prepare_training(x, y)
    logits = np.asarray(keras.ops.convert_to_numpy(segmenter(inputs)["masks"]))[:, :, 0]
    target = keras.ops.convert_to_numpy(targets["masks"])
    each = np.mean(np.logaddexp(0, logits) - target * logits, axis=(-2, -1))
    real = (target != 255).any(axis=(-2, -1))
    np.testing.assert_allclose(found, each[real].mean(), rtol=1e-4)
    segmenter.compile(loss=lambda *given: keras.ops.mean(cross_entropy(*given)))
    with pytest.raises(ValueError, match=r"for each prompt set, shape \(B, P\)"):
        segmenter.evaluate(x, y, batch_size=2, verbose=0)


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


@pytest.mark.parametrize("none", [None, [], np.zeros((0, 4))], ids=["None", "[]", "(0, 4)"])
def test_an_image_on_which_a_detector_found_nothing_has_no_target(segmenter, none):
    x, y = ragged_data()
    x = {"images": x["images"], "boxes": [[[5, 5, 20, 20]], none]}
    batches = prepared(segmenter, x, {"masks": [y["masks"][0][:1], []]})
    assert next(batches)[0]["labels"].shape == (1, 1, 2)
    inputs, targets = next(batches)
    assert (inputs["labels"] == -10).all() and inputs["labels"].shape == (1, 1, 2)
    assert (targets["masks"] == 255).all() and targets["masks"].shape == (
        1,
        1,
        *segmenter.mask_size,
    )


def test_fit_on_images_without_an_object_changes_nothing():
    segmenter = small_segmenter()
    segmenter.compile(optimizer=keras.optimizers.SGD(1.0))
    before = segmenter.get_weights()
    x = {"images": ragged_data()[0]["images"][:1], "boxes": [np.zeros((0, 4))]}
    history = segmenter.fit(x, {"masks": [np.zeros((0, 60, 90))]}, verbose=0).history
    assert history["loss"] == [0.0]
    for a, b in zip(segmenter.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_training_without_any_prompt_is_refused(segmenter):
    x, y = ragged_data()
    with pytest.raises(ValueError, match="At least one prompt"):
        segmenter.prepare_training({"images": x["images"]}, y)


def one_target():
    """An image of one object, and its target of 0 and 1."""
    x, y = ragged_data()
    return {"images": x["images"][1:], "boxes": [[[8, 28, 32, 52]]]}, y["masks"][1][0]


def soft(target):
    """The target with the values between black and white that smoothing leaves."""
    return np.asarray(Image.fromarray(target * 255).filter(ImageFilter.GaussianBlur(0.5)))


AS_TENSOR = keras.ops.convert_to_tensor
TARGETS = {
    "bool": lambda t: [t == 1],
    "0 and 255": lambda t: [t * 255],  # as image libraries read a mask
    "0 and 255, an axis per object": lambda t: (t * 255)[None, None],
    "a stray 1": lambda t: [np.where(np.arange(4000).reshape(80, 50) == 7, 1, t * 255)],
    "soft edges": lambda t: [soft(t)],
    "floats": lambda t: [t.astype("float32")],
    "floats of 255": lambda t: [t * 255.0],
    "soft floats": lambda t: [soft(t) / 255],
    "a channel": lambda t: t[None, ..., None],
    "a channel of an object": lambda t: [t[None, ..., None]],
    "a channel without the image's axis": lambda t: t[..., None],
    "neither an image's axis nor an object's": lambda t: t,
    "no image's axis": lambda t: t[None],
    "a list of an object": lambda t: [[t]],
    "a tensor of 0 and 255": lambda t: AS_TENSOR(t * 255)[None],
    "tensors of floats": lambda t: [[AS_TENSOR(t.astype("float32"))]],
    "a tensor without axes": lambda t: AS_TENSOR(t),
    "a tensor with a channel": lambda t: [AS_TENSOR(t[..., None])],
}


@pytest.mark.parametrize("form", TARGETS.values(), ids=TARGETS)
def test_targets_as_people_have_them(segmenter, form):
    x, target = one_target()
    _, wanted = segmenter.prepare_training(x, {"masks": [target]})
    _, read = segmenter.prepare_training(x, {"masks": form(target)})
    np.testing.assert_array_equal(read["masks"], wanted["masks"])
    source = DictBatches(Batch.read(x, {"masks": form(target)}), 1)  # as `fit` of a dict
    _, read = segmenter.prepare_training_batch(source[0])
    np.testing.assert_array_equal(read["masks"], wanted["masks"])


def test_void_beside_ones_and_where_it_is_said(segmenter, monkeypatch, recwarn):
    monkeypatch.setattr(notices, "_given", set())
    x, target = one_target()
    void = np.zeros_like(target)
    void[:20] = 255

    def read(*targets, **options):
        boxes = [np.repeat(x["boxes"][0], len(targets), axis=0)]
        y = {"masks": [np.stack(targets)], **options}
        source = DictBatches(Batch.read({**x, "boxes": boxes}, y), 1)
        return segmenter.prepare_training_batch(source[0])[1]["masks"][0]

    beside = read(np.maximum(target, void))[0]
    assert (beside == 1).any() and (beside[:2] == 255).all()
    # A target without a 1, in a stack that says void, and one that is void throughout.
    stack = read(np.maximum(target, void), void, np.full_like(void, 255))
    np.testing.assert_array_equal(stack[0], beside)
    assert not (stack[1] == 1).any() and (stack[1][:2] == 255).all()
    assert (stack[2] == 255).all()
    assert not (read(target * 255, void=255) == 1).any()
    assert [w for w in recwarn if issubclass(w.category, UserWarning)] == []
    for _ in range(2):
        assert (read(target * 255) == 1).any()
    (said,) = [w for w in recwarn if issubclass(w.category, UserWarning)]
    assert "255 is the object" in str(said.message)


def test_fit_learns_the_object_of_a_black_and_white_target():
    segmenter = small_segmenter()
    x, target = one_target()
    segmenter.compile(optimizer=keras.optimizers.AdamW(1e-2))
    wanted = segmenter.evaluate(x, {"masks": [target]}, verbose=0)
    np.testing.assert_allclose(
        segmenter.evaluate(x, {"masks": [target * 255]}, verbose=0), wanted, rtol=1e-6
    )
    history = segmenter.fit(x, {"masks": [target * 255]}, epochs=8, verbose=0).history
    assert history["loss"][-1] < 0.9 * history["loss"][0]


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
