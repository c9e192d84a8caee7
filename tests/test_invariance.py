"""What must not matter: batches and their order, padding, chunks, buckets, threads, containers."""

import threading
from unittest import mock

import keras
import numpy as np
import pytest

import keras_sam
from keras_sam.models.programs import Programs
from keras_sam.prompts import canonical, read_canonical
from tests.tiny import photograph

SIZES = [(60, 90), (131, 74), (112, 144)]
# Ragged in every way: points and objects per image, boxes without points, a mask for some.
POINTS = [
    [[[10, 20]], [[80, 50], [3, 4], [40, 40]]],
    [[[70, 130], [1, 2]]],
    [[[100, 100]], [[5, 60], [143, 111]], [[30, 9]]],
]
LABELS = [[[1], [0, 1, 1]], [[1, 0]], [[1], [1, 1], [0]]]


@pytest.fixture(scope="module")
def images():
    return [photograph(size, seed) for seed, size in enumerate(SIZES)]


def assert_equal_outputs(actual, expected, bound=1e-5):
    """Fails where masks or scores differ by more than `bound` of the largest expected value."""
    for name in ("masks", "iou_pred"):
        wanted = np.asarray(expected[name], "float64")
        assert np.asarray(actual[name]).shape == wanted.shape
        np.testing.assert_allclose(
            actual[name], wanted, rtol=0, atol=bound * np.nanmax(np.abs(wanted)), err_msg=name
        )


def assert_different(one, other):
    """Or equality above would prove nothing."""
    assert np.nanmax(np.abs(one["masks"] - other["masks"])) > 1e-3


def one_object(outputs, image, prompt_set):
    return {name: outputs[name][image, prompt_set] for name in ("masks", "iou_pred")}


def alone(segmenter, image, **prompt):
    """The outputs of one prompt for one image, without batch and prompt axis."""
    if "masks" in prompt:  # without its last axis it is not the single-object form
        prompt["masks"] = prompt["masks"][..., 0]
    given = {name: [[value]] for name, value in prompt.items()}
    return one_object(segmenter.predict({"images": [image], **given}, verbose=0), 0, 0)


# --- batches ---


def test_a_ragged_batch_gives_what_each_prompt_gives_alone(segmenter, images):
    together = segmenter.predict(
        {"images": images, "points": POINTS, "labels": LABELS}, batch_size=3, verbose=0
    )
    np.testing.assert_array_equal(together["num_prompts"], [2, 1, 3])
    for i, (points, labels) in enumerate(zip(POINTS, LABELS, strict=True)):
        for p, (xy, label) in enumerate(zip(points, labels, strict=True)):
            expected = alone(segmenter, images[i], points=xy, labels=label)
            assert_equal_outputs(one_object(together, i, p), expected)
        missing = one_object(together, i, slice(len(points), None))
        assert np.isnan(missing["masks"]).all() and np.isnan(missing["iou_pred"]).all()


def test_a_ragged_batch_of_every_kind_of_prompt(segmenter, images):
    """Clicks, boxes and masks, each missing where another is; exact where nothing is."""
    mask = 5 * np.random.default_rng(0).standard_normal((28, 36, 1)).astype("float32")
    sets = [
        [{"points": [[10, 20]], "labels": [1]}, {"boxes": [5, 6, 70, 50]}],
        [{"masks": mask}],
        [
            {"points": [[9, 9], [99, 80]], "labels": [0, 1], "boxes": [1, 2, 140, 110]},
            {"points": [[50, 60]], "labels": [1], "masks": -mask},
        ],
    ]
    batch = {
        name: [[prompt.get(name) for prompt in prompts] for prompts in sets]
        for name in ("points", "labels", "boxes", "masks")
    }
    together = segmenter.predict({"images": images, **batch}, batch_size=3, verbose=0)
    for i, prompts in enumerate(sets):
        for p, prompt in enumerate(prompts):
            expected = alone(segmenter, images[i], **prompt)
            assert_equal_outputs(one_object(together, i, p), expected)


def test_not_a_point_and_padding_side_by_side(segmenter, images):
    """-1 is a token that counts, -10 is none: each row gives its own mask."""
    point, nothing = [40, 30], [0, 0]
    rows = [
        ([point, nothing, nothing], [1, -1, -10], ([point], [1])),  # the -1 that is added anyway
        ([point, nothing, nothing], [1, -10, -10], ([point], [1])),
        ([point, nothing, [9, 9]], [1, -10, 0], ([point, [9, 9]], [1, 0])),  # padding in between
        ([point, nothing, nothing], [1, -1, -1], None),  # another prompt: two such tokens
    ]
    points, labels, expected = zip(*rows, strict=True)
    together = segmenter.predict(
        {"images": images[:1], "points": [list(points)], "labels": [list(labels)]}, verbose=0
    )
    for p, prompt in enumerate(expected):
        if prompt is not None:
            wanted = alone(segmenter, images[0], points=prompt[0], labels=prompt[1])
            assert_equal_outputs(one_object(together, 0, p), wanted)
    assert_different(one_object(together, 0, 3), one_object(together, 0, 0))


def test_what_padding_holds_does_not_matter(segmenter, images):
    def predict(coordinates):
        points = [[[[40, 30], coordinates]]]
        return segmenter.predict(
            {"images": images[:1], "points": points, "labels": [[[1, -10]]]}, verbose=0
        )

    assert_equal_outputs(predict([1e6, -1e6]), predict([0, 0]), bound=0)


@pytest.fixture(scope="module")
def decode_as_it_is(segmenter):
    """Canonical prompts to outputs by the compiled decoder, without padding to canonical."""
    parts = Programs(segmenter.backbone)

    def decode(encoded, prompts):
        features = segmenter.checked_features(encoded)
        prompts = read_canonical(prompts) if isinstance(prompts, dict) else prompts
        with mock.patch.object(canonical, "pad_prompts", lambda prompts, sets: prompts):
            outputs = parts.decode(features, prompts, chunk=64)
        return {name: outputs[name] for name in ("masks", "iou_pred")}

    return decode


@pytest.fixture(scope="module")
def embeddings(segmenter, images):
    return segmenter.encode(images[:1])["image_embeddings"]


@pytest.mark.parametrize("more", [1, 5])
def test_padding_is_exact_in_every_attention(decode_as_it_is, embeddings, more):
    rng = np.random.default_rng(1)
    prompts = {
        "points": rng.uniform(0, 100, (1, 1, 3, 2)).astype("float32"),
        "labels": np.array([[[1, 0, -1]]], "int32"),
        "masks": np.zeros((1, 0, 28, 36, 1), "float32"),
        "mask_given": np.zeros((1, 0), bool),
    }
    elsewhere = rng.uniform(0, 100, (1, 1, more, 2)).astype("float32")

    def with_more(label):
        labels = np.full((1, 1, more), label, "int32")
        return {
            **prompts,
            "points": np.concatenate([prompts["points"], elsewhere], axis=2),
            "labels": np.concatenate([prompts["labels"], labels], axis=2),
        }

    expected = decode_as_it_is(embeddings, prompts)
    assert_equal_outputs(decode_as_it_is(embeddings, with_more(-10)), expected)
    # As foreground points the same tokens change the masks: it is the label that hides them.
    assert_different(decode_as_it_is(embeddings, with_more(1)), expected)


def test_several_boxes_give_what_one_at_a_time_gives(segmenter, images):
    boxes = [[5, 6, 70, 50], [0, 0, 20, 20], [60, 30, 89, 59], [10, 10, 10, 10]]
    together = segmenter.predict({"images": images[:1], "boxes": [boxes]}, verbose=0)
    assert together["masks"].shape[:2] == (1, 4)
    for p, box in enumerate(boxes):
        expected = alone(segmenter, images[0], boxes=box)
        assert_equal_outputs(one_object(together, 0, p), expected)


@pytest.mark.parametrize("batch_size", [2, 3, 64])
def test_the_batch_size_does_not_matter(segmenter, images, batch_size):
    x = {"images": images, "points": POINTS, "labels": LABELS}
    expected = segmenter.predict(x, batch_size=1, verbose=0)
    actual = segmenter.predict(x, batch_size=batch_size, verbose=0)
    assert_equal_outputs(actual, expected)
    np.testing.assert_array_equal(actual["num_prompts"], expected["num_prompts"])
    np.testing.assert_array_equal(actual["lone_click"], expected["lone_click"])


def test_the_order_of_the_images_does_not_matter(segmenter, images):
    x = {"images": images, "points": POINTS, "labels": LABELS}
    backwards = {name: value[::-1] for name, value in x.items()}
    forwards = segmenter.predict(x, batch_size=2, verbose=0)
    actual = segmenter.predict(backwards, batch_size=2, verbose=0)
    assert_equal_outputs({name: value[::-1] for name, value in actual.items()}, forwards)


# --- chunks and buckets ---


@pytest.fixture(scope="module")
def many_prompts(images):
    """13 prompt sets of three tokens: one more than any power of two below, in either axis."""
    rng = np.random.default_rng(5)
    return {
        "images": images[:1],
        "points": rng.uniform(0, 60, (1, 13, 2, 2)),
        "labels": np.tile([1, 0], (1, 13, 1)),
    }


@pytest.mark.parametrize("prompt_chunk", [1, 3, 13, 64])
def test_the_prompt_chunk_does_not_matter(segmenter, many_prompts, prompt_chunk):
    expected = segmenter.predict(many_prompts, verbose=0)
    actual = segmenter.predict(many_prompts, verbose=0, prompt_chunk=prompt_chunk)
    assert_equal_outputs(actual, expected)


@pytest.mark.parametrize("with_masks", [False, True])
def test_prompt_buckets_do_not_change_the_masks(
    segmenter, embeddings, decode_as_it_is, many_prompts, with_masks
):
    """The same prompts as they are, and padded to powers of two: 13 sets to 16, 3 tokens to 4."""
    x = dict(many_prompts)
    if with_masks:
        rng = np.random.default_rng(7)
        x["masks"] = 4 * rng.standard_normal((1, 13, 28, 36, 1)).astype("float32")
    prompts = read_canonical(segmenter.prepare(x))
    padded = canonical.pad_prompts(prompts)
    assert prompts.labels.shape == (1, 13, 3) and padded.labels.shape == (1, 16, 4)
    expected = decode_as_it_is(embeddings, prompts)
    actual = decode_as_it_is(embeddings, padded)
    assert_equal_outputs({name: value[:, :13] for name, value in actual.items()}, expected)


# --- the parts and the whole ---


def test_decode_of_encode_is_predict(segmenter, images):
    x = {"points": POINTS, "labels": LABELS}
    expected = segmenter.predict({"images": images, **x}, batch_size=3, verbose=0)
    encoded = segmenter.encode(images, batch_size=3)
    actual = segmenter.decode(encoded, x)
    assert_equal_outputs(actual, expected, bound=1e-6)


def test_the_predictor_gives_what_predict_gives(segmenter, images):
    predictor = keras_sam.SAMPredictor(segmenter)
    predictor.set_images(images, verbose=0)
    outputs = segmenter.predict({"images": images, "points": POINTS, "labels": LABELS}, verbose=0)
    for i, size in enumerate(SIZES):
        masks, scores, logits = predictor.predict(POINTS[i], LABELS[i], image_index=i)
        count = len(POINTS[i])
        np.testing.assert_allclose(logits, outputs["masks"][i, :count, 1:], atol=1e-5)
        np.testing.assert_allclose(scores, outputs["iou_pred"][i, :count, 1:], atol=1e-5)
        restored = keras_sam.restore_masks(logits[None], [size], (112, 144))[0]
        np.testing.assert_array_equal(masks, restored)


def test_a_preprocessed_batch_gives_what_predict_gives(segmenter, images):
    x = {"images": images, "points": POINTS, "labels": LABELS}
    expected = segmenter.predict(x, verbose=0, batch_size=3)
    actual = segmenter.predict([segmenter.preprocessor(x)], verbose=0)
    assert_equal_outputs(actual, expected, bound=1e-6)


def test_an_all_zero_mask_is_not_no_mask(segmenter, images):
    click = {"images": images[:1], "points": [[[[40, 30]]]], "labels": [[[1]]]}
    zeros = np.zeros((1, 1, 28, 36, 1), "float32")
    without = segmenter.predict(click, verbose=0)
    with_zeros = segmenter.predict({**click, "masks": zeros}, verbose=0)
    assert_different(with_zeros, without)
    # In one batch too, where one object has such a mask and one has none.
    both = segmenter.predict(
        {
            "images": images[:1],
            "points": [[[[40, 30]], [[40, 30]]]],
            "labels": [[[1], [1]]],
            "masks": [[zeros[0, 0], None]],
        },
        verbose=0,
    )
    assert_equal_outputs(one_object(both, 0, 0), one_object(with_zeros, 0, 0))
    assert_equal_outputs(one_object(both, 0, 1), one_object(without, 0, 0))


# --- threads ---


def test_two_threads_with_a_predictor_each(segmenter, images):
    """Interleaved as the scheduler likes, each gets what it gets alone."""

    def work(index, rounds, results):
        predictor = keras_sam.SAMPredictor(segmenter)
        for _ in range(rounds):
            predictor.set_image(images[index])
            for points, labels in zip(POINTS[index], LABELS[index], strict=True):
                results.append(predictor.predict(points, labels, return_logits=True))

    expected = [[], []]
    for i in (0, 1):
        work(i, 1, expected[i])
    actual = [[], []]
    threads = [threading.Thread(target=work, args=(i, 5, actual[i])) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in (0, 1):
        assert len(actual[i]) == 5 * len(expected[i])
        for number, answer in enumerate(actual[i]):
            for got, wanted in zip(answer, expected[i][number % len(expected[i])], strict=True):
                np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_interleaved_images_in_one_segmenter(segmenter, images):
    """Two predictors and `predict` itself take turns; nobody meets the others' image."""
    clicks = [{"points": [[40, 30]], "labels": [1]}, {"points": [[70, 130]], "labels": [1]}]
    fresh = []
    for image, click in zip(images, clicks, strict=False):
        predictor = keras_sam.SAMPredictor(segmenter)
        predictor.set_image(image)
        fresh.append(predictor.predict(**click))
    first, second = keras_sam.SAMPredictor(segmenter), keras_sam.SAMPredictor(segmenter)
    first.set_image(images[0])
    second.set_image(images[1])
    segmenter.predict({"images": images[2:], "boxes": [[[0, 0, 9, 9]]]}, verbose=0)
    for predictor, click, expected in ((first, clicks[0], fresh[0]), (second, clicks[1], fresh[1])):
        answer = predictor.predict(**click)
        assert answer[0].shape == expected[0].shape
        for got, wanted in zip(answer, expected, strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-6)


# --- containers ---


@pytest.fixture(scope="module")
def plain():
    """One click for each of three images of one size, in the single-object form."""
    return {
        "images": np.stack([photograph((60, 90), seed) for seed in (11, 12, 13)]),
        "points": np.float32([[[10, 20]], [[80, 50]], [[40, 5]]]),
        "labels": np.array([[1], [1], [0]], "int32"),
    }


@pytest.fixture(scope="module")
def expected(segmenter, plain):
    return segmenter.predict(plain, verbose=0)


def test_a_subset_of_prompts_equals_the_dict_of_all_five_keys(segmenter, plain, expected):
    full = {
        **plain,
        "boxes": np.zeros((3, 0, 2, 2), "float32"),
        "masks": np.zeros((3, 0, 28, 36, 1), "float32"),
    }
    assert_equal_outputs(segmenter.predict(full, verbose=0), expected, bound=1e-6)


def test_padded_with_a_zero_point_as_the_guide_does(segmenter, plain, expected):
    """A point at the origin with label -1, which users of the older packages append themselves."""
    padded = {
        "images": plain["images"],
        "points": np.pad(plain["points"], [(0, 0), (0, 1), (0, 0)]),
        "labels": np.pad(plain["labels"], [(0, 0), (0, 1)], constant_values=-1),
    }
    assert_equal_outputs(segmenter.predict(padded, verbose=0), expected, bound=1e-6)


def test_lists_equal_arrays(segmenter, plain, expected):
    lists = {name: value.tolist() for name, value in plain.items() if name != "images"}
    x = {"images": list(plain["images"]), **lists}
    assert_equal_outputs(segmenter.predict(x, verbose=0), expected, bound=1e-6)


def test_backend_tensors_equal_arrays(segmenter, plain, expected):
    x = {name: keras.ops.convert_to_tensor(value) for name, value in plain.items()}
    assert_equal_outputs(segmenter.predict(x, verbose=0), expected, bound=1e-6)


def batches_of(plain, size=2):
    for start in range(0, 3, size):
        yield {name: value[start : start + size] for name, value in plain.items()}


class Batches(keras.utils.PyDataset):
    def __init__(self, plain, as_tuple):
        super().__init__()
        self.batches = list(batches_of(plain))
        self.as_tuple = as_tuple

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        batch = self.batches[index]
        return (batch, np.zeros(len(batch["images"]))) if self.as_tuple else batch


@pytest.mark.parametrize("as_tuple", [False, True], ids=["dicts", "tuples with targets"])
def test_py_dataset(segmenter, plain, expected, as_tuple):
    actual = segmenter.predict(Batches(plain, as_tuple), verbose=0)
    assert_equal_outputs(actual, expected)


@pytest.mark.parametrize("as_tuple", [False, True], ids=["dicts", "tuples with targets"])
def test_generator(segmenter, plain, expected, as_tuple):
    batches = ((b, np.zeros(len(b["images"]))) if as_tuple else b for b in batches_of(plain))
    assert_equal_outputs(segmenter.predict(batches, verbose=0), expected)


@pytest.mark.parametrize("as_tuple", [False, True], ids=["dicts", "tuples with targets"])
def test_tf_data(segmenter, plain, expected, as_tuple):
    tf = pytest.importorskip("tensorflow", reason="tf.data is TensorFlow's")
    dataset = tf.data.Dataset.from_tensor_slices(plain)
    if as_tuple:
        dataset = dataset.map(lambda x: (x, tf.zeros(())))
    assert_equal_outputs(segmenter.predict(dataset.batch(2), verbose=0), expected)


def test_tf_data_through_the_preprocessor(segmenter, plain, expected):
    tf = pytest.importorskip("tensorflow", reason="tf.data is TensorFlow's")
    dataset = tf.data.Dataset.from_tensor_slices(plain).batch(2).map(segmenter.preprocessor)
    assert_equal_outputs(segmenter.predict(dataset, verbose=0), expected)


@pytest.mark.parametrize("as_tuple", [False, True], ids=["dicts", "tuples with targets"])
def test_torch_data_loader(segmenter, plain, expected, as_tuple):
    pytest.importorskip("torch", reason="DataLoader is PyTorch's")
    from torch.utils.data import DataLoader

    rows = [{name: value[i] for name, value in plain.items()} for i in range(3)]
    if as_tuple:
        rows = [(row, 0.0) for row in rows]
    assert_equal_outputs(segmenter.predict(DataLoader(rows, batch_size=2), verbose=0), expected)


def test_nothing_of_the_callers_changes(segmenter, images):
    """Not the dict, not the lists in it, not an array, even one that is the model's frame."""
    frame = photograph((112, 144), seed=5).astype("float32")
    mask = np.ones((28, 36, 1), "float32")
    x = {
        "images": [images[0], frame],
        "points": [np.array([[[1.0, 2.0]]]), np.array([[[3.0, 4.0]]])],
        "labels": [[[1]], [[0]]],
        "boxes": [[[1, 2, 30, 40]], None],
        "masks": [None, [mask]],
    }
    arrays = [*x["images"], *x["points"], mask]
    copies = [a.copy() for a in arrays]
    for array in arrays:
        array.setflags(write=False)  # an attempt to write raises
    keys, lists = list(x), {name: list(value) for name, value in x.items()}
    segmenter.predict(x, verbose=0)
    segmenter.predict(x, batch_size=2, verbose=0)
    assert list(x) == keys
    for name, value in x.items():
        assert len(value) == 2
        assert all(a is b for a, b in zip(value, lists[name], strict=True))
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
        array.setflags(write=True)
    assert x["labels"] == [[[1]], [[0]]] and x["boxes"] == [[[1, 2, 30, 40]], None]


def test_a_second_call_gives_the_same(segmenter, plain, expected):
    """Nothing is remembered between calls, whatever was asked in between."""
    segmenter.predict({"images": plain["images"][:1], "boxes": [[[1, 2, 3, 4]]]}, verbose=0)
    actual = segmenter.predict(plain, verbose=0)
    for name in ("masks", "iou_pred"):
        np.testing.assert_array_equal(actual[name], expected[name])
