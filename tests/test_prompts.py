"""Prompts of every accepted form, their canonical arrays, and every refusal."""

import copy
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from keras_sam.geometry import ResizePlan
from keras_sam.prompts import KEYS, Prompts, mask_to_logits, read
from keras_sam.prompts.canonical import chunks, pad_prompts, split_into_buckets
from keras_sam.prompts.spellings import our_name, unknown_names

MASK = (16, 24)  # Lh, Lw of a 64 x 96 frame, not square so that swapped axes cannot pass


def complete(prompts, plans, mask_size):
    """Prompts as people pass them, read and taken to the model frame, by name."""
    completed = read(prompts, len(plans)).to_model(plans, mask_size)
    others = {"num_prompts": completed.num_prompts, "single_object": completed.single_object}
    return {**completed.arrays(), **others}


def plans_for(*sizes, model=(64, 96)):
    return [ResizePlan(size, model) for size in sizes]


# One image of the model's own size: coordinates stay as they are.
ONE = plans_for((64, 96))
TWO = plans_for((64, 96), (32, 96))


def real_tokens(completed, image, prompt_set):
    """The tokens of one prompt set without padding, as a list of (x, y, label)."""
    labels = completed["labels"][image, prompt_set]
    points = completed["points"][image, prompt_set]
    return [
        (*map(float, xy), int(label))
        for xy, label in zip(points, labels, strict=True)
        if label != -10
    ]


# --- tokens ---


@pytest.mark.parametrize(
    "prompts, tokens",
    [
        (
            {"points": [[[5, 6]]], "labels": [[1]]},
            [(5, 6, 1), (0, 0, -1)],
        ),  # a lone click gets the not-a-point token
        (
            {"points": [[[5, 6], [7, 8]]], "labels": [[1, 0]]},
            [(5, 6, 1), (7, 8, 0), (0, 0, -1)],
        ),  # several points: one token, at the end
        (
            {"points": [[[5, 6], [0, 0]]], "labels": [[1, -1]]},
            [(5, 6, 1), (0, 0, -1)],
        ),  # the user's own -1 is not doubled
        (
            {"points": [[[5, 6]]], "labels": [[1]], "boxes": [[[1, 2, 3, 4]]]},
            [(5, 6, 1), (1, 2, 2), (3, 4, 3)],
        ),  # points, then corners; a box means no not-a-point token
        (
            {"points": [[[5, 6], [0, 0]]], "labels": [[1, -1]], "boxes": [[[1, 2, 3, 4]]]},
            [(5, 6, 1), (0, 0, -1), (1, 2, 2), (3, 4, 3)],
        ),  # the user's own -1 stays beside a box
        (
            {"boxes": [[[1, 2, 3, 4]]]},
            [(1, 2, 2), (3, 4, 3)],
        ),  # a box alone has no not-a-point token
        (
            {"boxes": [[[[1, 2, 3, 4], [5, 6, 7, 8]]]]},
            [(1, 2, 2), (3, 4, 3), (5, 6, 2), (7, 8, 3)],
        ),  # two boxes of one object are more corners
        (
            {"points": [[[1, 2], [3, 4], [5, 6]]], "labels": [[2, 3, 1]]},
            [(1, 2, 2), (3, 4, 3), (5, 6, 1)],
        ),  # corners written as points are a box too
        (
            {"points": [[[5, 6], [9, 9], [7, 8]]], "labels": [[1, -10, 0]]},
            [(5, 6, 1), (7, 8, 0), (0, 0, -1)],
        ),  # the user's padding is no token, wherever it stands
        (
            {"points": [[[5, 6]]], "labels": [[-1]]},
            [(5, 6, -1)],
        ),  # nothing but a not-a-point of the user's
        (
            {"masks": np.zeros((1, 1, *MASK, 1), "float32")},
            [],
        ),  # a mask alone has no sparse tokens, not even the not-a-point
        (
            {
                "points": [[[5, 6]]],
                "labels": [[1]],
                "masks": np.zeros((1, 1, *MASK, 1), "float32"),
            },
            [(5, 6, 1), (0, 0, -1)],
        ),  # a mask is no reason against it
    ],
)
def test_tokens_of_one_prompt_set(prompts, tokens):
    assert real_tokens(complete(prompts, ONE, MASK), 0, 0) == tokens


def test_tokens_are_as_many_as_the_longest_set_needs():
    completed = complete(
        {"points": [[[1, 1], [2, 2]], [[3, 3]]], "labels": [[1, 1], [0]]}, TWO, MASK
    )
    assert completed["labels"].tolist() == [[[1, 1, -1]], [[0, -1, -10]]]
    assert completed["points"][1, 0, 2].tolist() == [0, 0]
    only_mask = complete({"masks": np.zeros((2, 1, *MASK, 1))}, TWO, MASK)
    assert only_mask["points"].shape == (2, 1, 0, 2)
    assert only_mask["labels"].shape == (2, 1, 0)


def test_types_and_shapes_are_the_canonical_ones():
    completed = complete({"points": np.ones((2, 3, 4, 2)), "labels": np.ones((2, 3, 4))}, TWO, MASK)
    described = {
        name: (value.shape, value.dtype.name)
        for name, value in completed.items()
        if name != "single_object"
    }
    assert described == {
        "points": ((2, 3, 5, 2), "float32"),
        "labels": ((2, 3, 5), "int32"),
        "masks": ((2, 0, *MASK, 1), "float32"),
        "mask_given": ((2, 0), "bool"),
        "num_prompts": ((2,), "int32"),
    }
    assert completed["single_object"] is False


def test_coordinates_go_through_the_plan_of_their_own_image():
    plans = plans_for((640, 960), (32, 96), (100, 30))
    xy = [[[96, 64]], [[96, 64]], [[30, 100]]]
    completed = complete({"points": xy, "labels": [[1]] * 3}, plans, MASK)
    np.testing.assert_allclose(completed["points"][0, 0, 0], [9.6, 6.4], rtol=1e-6)  # a tenth
    np.testing.assert_array_equal(completed["points"][1, 0, 0], [96, 64])  # outside: y > height
    np.testing.assert_array_equal(completed["points"][2, 0, 0], [19, 64])  # 19.2 rounded
    np.testing.assert_array_equal(completed["points"][:, 0, 1], 0)  # not-a-point: model's (0, 0)
    boxes = complete({"boxes": [[[0, 0, *p[0]]] for p in xy]}, plans, MASK)["points"]
    np.testing.assert_array_equal(boxes[:, 0, 1], completed["points"][:, 0, 0])


def test_points_outside_the_image_are_kept():
    completed = complete({"points": [[[-7, 1000.5]]], "labels": [[0]]}, ONE, MASK)
    assert completed["points"][0, 0, 0].tolist() == [-7, 1000.5]


# --- forms ---


@pytest.mark.parametrize(
    "prompts, single",
    [
        ({"points": np.ones((2, 3, 2)), "labels": np.ones((2, 3))}, True),  # (B, N, 2)
        ({"points": np.ones((2, 1, 3, 2)), "labels": np.ones((2, 1, 3))}, False),  # (B, P, N, 2)
        ({"boxes": np.ones((2, 1, 2, 2))}, True),  # KerasHub's
        ({"boxes": np.ones((2, 3, 2, 2))}, False),  # several objects
        ({"boxes": np.ones((2, 1, 4))}, False),
        ({"boxes": np.ones((2, 1, 1, 4))}, False),
        ({"boxes": np.ones((2, 1, 3, 2, 2))}, False),  # several boxes of one object
        ({"masks": np.ones((2, 1, *MASK, 1))}, True),  # KerasHub's
        ({"masks": np.ones((2, 1, *MASK))}, False),
        ({"masks": np.ones((2, 3, *MASK, 1))}, False),
        (
            {
                "points": np.ones((2, 3, 2)),
                "labels": np.ones((2, 3)),
                "boxes": np.ones((2, 1, 2, 2)),
                "masks": np.ones((2, 1, *MASK, 1)),
            },
            True,
        ),  # KerasHub's five-key dict
        (
            {
                "points": np.ones((2, 3, 2)),
                "labels": np.ones((2, 3)),
                "boxes": np.ones((2, 1, 4)),
            },
            False,
        ),  # one kind in the general form is enough
        (
            {
                "points": np.ones((2, 3, 2)),
                "labels": np.ones((2, 3)),
                "boxes": np.zeros((2, 0, 4)),
            },
            True,
        ),  # an absent kind does not count
        (
            {
                "points": [[[1, 1]], None],
                "labels": [[1], None],
                "boxes": [None, [[[1, 1], [2, 2]]]],
            },
            True,
        ),  # each image by another kind
    ],
)
def test_the_single_object_form_is_known(prompts, single):
    completed = complete(prompts, TWO, MASK)
    assert completed["single_object"] is single
    expected = max(1, np.shape(prompts["boxes"])[1]) if list(prompts) == ["boxes"] else None
    if expected:
        assert completed["labels"].shape[1] == expected


@pytest.mark.parametrize(
    "form",
    [
        [[[1, 2, 3, 4], [5, 6, 7, 8]]],  # (B, P, 4)
        [[[[1, 2], [3, 4]], [[5, 6], [7, 8]]]],  # (B, P, 2, 2)
        [[[[1, 2, 3, 4]], [[5, 6, 7, 8]]]],  # (B, P, M, 4)
        [[[[[1, 2], [3, 4]]], [[[5, 6], [7, 8]]]]],  # (B, P, M, 2, 2)
    ],
)
def test_all_forms_of_boxes_mean_the_same(form):
    for boxes in (form, np.array(form), np.array(form, "float64"), tuple(form)):
        completed = complete({"boxes": boxes}, ONE, MASK)
        assert completed["labels"].tolist() == [[[2, 3], [2, 3]]]
        assert completed["points"].tolist() == [[[[1, 2], [3, 4]], [[5, 6], [7, 8]]]]


def test_kerashubs_five_key_dict_with_empty_arrays():
    completed = complete(
        {
            "images": "not looked at here",
            "points": np.zeros((2, 0, 2)),
            "labels": np.zeros((2, 0)),
            "boxes": np.ones((2, 1, 2, 2)),
            "masks": np.zeros((2, 0, 128, 128, 1)),
        },
        TWO,
        MASK,
    )
    assert completed["labels"].tolist() == [[[2, 3]], [[2, 3]]]
    assert completed["masks"].shape == (2, 0, *MASK, 1)
    assert completed["single_object"] is True
    # and the other way round
    completed = complete(
        {
            "points": np.ones((2, 1, 2)),
            "labels": np.ones((2, 1), "float32"),
            "boxes": np.zeros((2, 0, 2, 2)),
        },
        TWO,
        MASK,
    )
    assert completed["labels"].tolist() == [[[1, -1]], [[1, -1]]]


def test_float_labels_that_are_whole_are_labels():
    completed = complete(
        {"points": np.ones((1, 3, 2)), "labels": np.array([[1.0, 0.0, -1.0]])}, ONE, MASK
    )
    assert completed["labels"].tolist() == [[[1, 0, -1]]]
    assert completed["labels"].dtype == np.int32


def test_none_and_empty_lists_stand_for_nothing():
    some = {"points": [[[1, 2]], [[3, 4]]], "labels": [[1], [1]]}
    expected = complete(some, TWO, MASK)
    for nothing in (None, [], [None, None], [[], []], [[None], [None]], np.zeros((2, 0, 4))):
        completed = complete({**some, "boxes": nothing}, TWO, MASK)
        np.testing.assert_array_equal(completed["labels"], expected["labels"])
    for nothing in (None, [None, None], np.zeros((2, 0, *MASK, 1))):
        completed = complete({**some, "masks": nothing}, TWO, MASK)
        assert completed["mask_given"].shape == (2, 0)


# --- ragged ---


def test_ragged_in_every_axis():
    completed = complete(
        {
            "points": [
                [[[1, 1], [2, 2], [3, 3]], [[4, 4]]],  # image 0: two objects, 3 and 1 points
                [None, [[5, 5]], None],  # image 1: three objects, one with a point
            ],
            "labels": [[[1, 0, 1], [1]], [None, [0], None]],
            "boxes": [
                None,  # image 0 has no boxes
                [[[1, 1, 2, 2], [3, 3, 4, 4]], None, [[5, 5, 6, 6]]],  # 2, 0 and 1
            ],
        },
        TWO,
        MASK,
    )
    assert completed["num_prompts"].tolist() == [2, 3]
    assert completed["labels"].tolist() == [
        [[1, 0, 1, -1], [1, -1, -10, -10], [-10] * 4],
        [[2, 3, 2, 3], [0, -1, -10, -10], [2, 3, -10, -10]],
    ]
    assert completed["single_object"] is False
    np.testing.assert_array_equal(completed["points"][completed["labels"] == -10], 0)


def test_lists_of_arrays_of_different_lengths():
    completed = complete({"boxes": [np.ones((3, 4)), np.ones((1, 4))]}, TWO, MASK)
    assert completed["num_prompts"].tolist() == [3, 1]
    assert completed["labels"][1].tolist() == [[2, 3], [-10, -10], [-10, -10]]
    as_objects = np.empty(2, object)
    as_objects[:] = [np.ones((3, 4)), np.ones((1, 4))]
    again = complete({"boxes": as_objects}, TWO, MASK)
    np.testing.assert_array_equal(again["labels"], completed["labels"])


def test_an_image_without_objects_among_others():
    for empty in (None, [], np.zeros((0, 4))):
        completed = complete({"boxes": [[[1, 1, 2, 2]] * 2, empty]}, TWO, MASK)
        assert completed["num_prompts"].tolist() == [2, 0]
        assert (completed["labels"][1] == -10).all()


def test_trailing_sets_of_padding_are_not_counted():
    completed = complete(
        {
            "points": np.ones((2, 3, 1, 2)),
            "labels": [[[1], [1], [1]], [[1], [-10], [-10]]],
        },
        TWO,
        MASK,
    )
    assert completed["num_prompts"].tolist() == [3, 1]
    # An image without objects in a batch of fixed shapes.
    completed = complete(
        {"points": np.ones((2, 2, 1, 2)), "labels": [[[1], [1]], [[-10], [-10]]]}, TWO, MASK
    )
    assert completed["num_prompts"].tolist() == [2, 0]


_label = st.sampled_from([-10, -1, 0, 1])
_xy = st.tuples(st.integers(0, 90), st.integers(0, 60)).map(list)
_token = st.tuples(_xy, _label)
_box = st.tuples(_xy, st.integers(0, 9), st.integers(0, 9)).map(
    lambda t: [*t[0], t[0][0] + t[1], t[0][1] + t[2]]
)
_object = st.fixed_dictionaries(
    {
        "points": st.one_of(st.none(), st.lists(_token, min_size=1, max_size=4)),
        "boxes": st.one_of(st.none(), st.lists(_box, min_size=1, max_size=3)),
        "masks": st.sampled_from([None, -3.0, 0.0, 5.0]),
    }
).filter(
    lambda o: (
        o["boxes"] is not None
        or o["masks"] is not None
        or (o["points"] is not None and any(label != -10 for _, label in o["points"]))
    )
)


def _as_prompts(images):
    def of(prompt_object, kind):
        value = prompt_object[kind]
        if value is None or kind == "boxes":
            return value
        if kind == "masks":
            return np.full((*MASK, 1), value, "float32")
        return [xy for xy, _ in value] if kind == "points" else [label for _, label in value]

    prompts = {
        kind: [[of(o, kind) for o in image] for image in images]
        for kind in ("points", "boxes", "masks")
    }
    prompts["labels"] = [
        [None if o["points"] is None else [label for _, label in o["points"]] for o in image]
        for image in images
    ]
    return prompts


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(_object, min_size=1, max_size=3), min_size=1, max_size=3))
def test_a_ragged_batch_is_each_prompt_set_alone(images):
    """Every prompt set of a batch has the tokens and the mask that it has on its own."""
    sizes = [(64, 96), (40, 30), (200, 7)][: len(images)]
    completed = complete(_as_prompts(images), plans_for(*sizes), MASK)
    assert completed["num_prompts"].tolist() == [len(image) for image in images]
    for i, image in enumerate(images):
        for p, prompt_object in enumerate(image):
            alone = complete(_as_prompts([[prompt_object]]), plans_for(sizes[i]), MASK)
            assert real_tokens(completed, i, p) == real_tokens(alone, 0, 0)
            has_mask = bool(completed["mask_given"][i, p]) if completed["masks"].size else False
            assert has_mask == (prompt_object["masks"] is not None)
            if has_mask:
                np.testing.assert_array_equal(completed["masks"][i, p], alone["masks"][0, 0])
        # Real tokens come first, padding last.
        padding = completed["labels"][i] == -10
        np.testing.assert_array_equal(padding, np.sort(padding, axis=-1))
    assert (~(completed["labels"] == -10)).sum(-1).max(initial=0) == completed["labels"].shape[-1]


# --- masks ---


def test_masks_of_the_mask_frame_are_used_as_they_are():
    logits = np.random.default_rng(0).normal(size=(2, 3, *MASK, 1))
    completed = complete({"masks": logits}, TWO, MASK)
    np.testing.assert_array_equal(completed["masks"], logits.astype("float32"))
    assert completed["mask_given"].all() and completed["mask_given"].shape == (2, 3)
    without_channel = complete({"masks": logits[..., 0]}, TWO, MASK)
    np.testing.assert_array_equal(without_channel["masks"], completed["masks"])


def test_masks_of_the_image_go_through_its_plan():
    plans = plans_for((80, 120), (50, 33))
    masks = [np.full((80, 120, 1), 2.0), np.full((50, 33, 1), 3.0)]
    completed = complete({"masks": [[m] for m in masks]}, plans, MASK)
    for i, plan in enumerate(plans):
        expected = plan.masks_to_model(masks[i][..., 0], MASK)
        np.testing.assert_array_equal(completed["masks"][i, 0, ..., 0], expected)
    assert completed["masks"][1, 0, 8, 0, 0] == 3 and completed["masks"][1, 0, 8, 20, 0] < -6
    assert completed["single_object"] is True


def test_a_size_that_is_both_is_the_models():
    plans = plans_for(MASK)  # the image is as large as the mask frame
    logits = np.random.default_rng(1).normal(size=(1, 1, *MASK, 1)).astype("float32")
    completed = complete({"masks": logits}, plans, MASK)
    np.testing.assert_array_equal(completed["masks"], logits)


def test_a_mask_of_zeros_is_a_mask():
    masks = [[np.zeros((*MASK, 1)), None], [None, np.ones((*MASK, 1))]]
    boxes = np.ones((2, 2, 4))
    completed = complete({"boxes": boxes, "masks": masks}, TWO, MASK)
    assert completed["mask_given"].tolist() == [[True, False], [False, True]]
    np.testing.assert_array_equal(completed["masks"][0, 0], completed["masks"][0, 1])
    assert completed["masks"].shape == (2, 2, *MASK, 1)


def test_masks_for_some_images_only():
    for masks in (
        [None, np.ones((1, *MASK, 1))],  # an array of the image that has some
        [None, [np.ones((*MASK, 1))]],
        [[None], [np.ones(MASK + (1,)).tolist()]],  # nested lists to the last pixel
    ):
        prompts = {"points": np.ones((2, 1, 2)), "labels": np.ones((2, 1)), "masks": masks}
        completed = complete(prompts, TWO, MASK)
        assert completed["mask_given"].tolist() == [[False], [True]]
        assert completed["single_object"] is True


# --- tensors ---


def _tensor_makers():
    def torch_parameter(value):
        torch = pytest.importorskip("torch")
        return torch.tensor(value, dtype=torch.float32, requires_grad=True)

    def torch_bfloat16(value):
        torch = pytest.importorskip("torch")
        return torch.tensor(value, dtype=torch.bfloat16)

    def tensorflow(value):
        return pytest.importorskip("tensorflow").constant(value, "float32")

    def tensorflow_variable(value):
        return pytest.importorskip("tensorflow").Variable(value, dtype="float32")

    def tensorflow_bfloat16(value):
        return pytest.importorskip("tensorflow").constant(value, "bfloat16")

    def jax(value):
        return pytest.importorskip("jax").numpy.asarray(value, "float32")

    def jax_bfloat16(value):
        return pytest.importorskip("jax").numpy.asarray(value, "bfloat16")

    makers = (
        torch_parameter,
        torch_bfloat16,
        tensorflow,
        tensorflow_variable,
        tensorflow_bfloat16,
        jax,
        jax_bfloat16,
    )
    return [pytest.param(maker, id=maker.__name__) for maker in makers]


@pytest.mark.parametrize("make", _tensor_makers())
def test_tensors_of_every_backend_are_read(make):
    prompts = {
        "points": [[[5.0, 6.0]], [[7.0, 8.0]]],
        "labels": [[1.0], [0.0]],
        "boxes": [[[[1.0, 2.0], [3.0, 4.0]]]] * 2,
        "masks": np.full((2, 1, *MASK, 1), 0.5).tolist(),
    }
    expected = complete(prompts, TWO, MASK)
    whole = complete({k: make(v) for k, v in prompts.items()}, TWO, MASK)
    listed = complete({k: [make(image) for image in v] for k, v in prompts.items()}, TWO, MASK)
    for completed in (whole, listed):
        assert completed.pop("single_object") is True
        for name, value in completed.items():
            np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_tensorflows_ragged_tensors_are_read():
    tf = pytest.importorskip("tensorflow")
    points = [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0]]]
    labels = [[1, 0], [1]]
    expected = complete({"points": points, "labels": labels}, TWO, MASK)
    ragged = {
        "points": tf.ragged.constant(points, ragged_rank=1),
        "labels": tf.ragged.constant(labels),
    }
    completed = complete(ragged, TWO, MASK)
    np.testing.assert_array_equal(completed["points"], expected["points"])
    np.testing.assert_array_equal(completed["labels"], expected["labels"])


def test_the_callers_dict_and_arrays_are_untouched():
    prompts = {
        "points": np.full((2, 2, 1, 2), 9.0),
        "labels": np.array([[[1], [-10]], [[0], [1]]]),
        "boxes": [[[1, 2, 3, 4], None], None],
        "masks": [[None, np.ones((*MASK, 1), "float32")], None],
    }
    before = copy.deepcopy(prompts)
    for value in (prompts["points"], prompts["labels"], prompts["masks"][0][1]):
        value.setflags(write=False)
    completed = complete(prompts, TWO, MASK)
    for name in ("points", "labels", "masks"):
        completed[name][...] = 5  # the result shares no memory with the arguments
    assert list(prompts) == list(before)
    np.testing.assert_array_equal(prompts["points"], before["points"])
    np.testing.assert_array_equal(prompts["labels"], before["labels"])
    assert prompts["boxes"] == before["boxes"]
    np.testing.assert_array_equal(prompts["masks"][0][1], before["masks"][0][1])


# --- refusals: each names the argument, what it received and the remedy ---

CLICK = {"points": [[[1, 1]], [[2, 2]]], "labels": [[1], [1]]}


@pytest.mark.parametrize(
    "prompts, message",
    [
        ({}, "At least one prompt is needed.*the whole call.*SAMAutomaticMaskGenerator"),
        ({"points": None, "masks": []}, "At least one prompt is needed"),
        ({"points": np.zeros((2, 0, 2)), "labels": np.zeros((2, 0))}, "At least one prompt"),
        ({"masks": np.zeros((2, 0, 9, 9, 1))}, "At least one prompt"),
        (
            {"points": np.ones((2, 2, 1, 2)), "labels": np.full((2, 2, 1), -10)},
            "At least one prompt is needed.*the whole call",
        ),  # padding all over
        (
            {"points": [[[1, 1]], None], "labels": [[1], None]},
            "At least one prompt is needed.*image 1",
        ),  # one object per image, and an image without
        (
            {"points": [[[1, 1]], [[1, 1]]], "labels": [[1], [-10]]},
            "At least one prompt is needed.*image 1",
        ),  # nothing but padding
        (
            {"boxes": [[[1, 1, 2, 2], None, [1, 1, 2, 2]], None]},
            "At least one prompt is needed.*object 1 of image 0",
        ),  # a hole between two objects
        (
            {"labels": CLICK["labels"]},
            r"`labels` must come with `points`.*shape=\(2, 1\)\) without `points`",
        ),
        (
            {"points": np.zeros((2, 0, 2)), "labels": np.zeros((2, 1))},
            "without `points`",
        ),  # labels of no points
        ({**CLICK, "labels": [[1], [4]]}, "`labels` must be one of.*foreground.*Received: 4"),
        ({**CLICK, "labels": [[1], [0.5]]}, "`labels` must be one of.*Received: 0.5"),
        ({**CLICK, "labels": [[1], [np.nan]]}, "`labels` must be one of.*Received: nan"),
        ({**CLICK, "labels": [[1], [-2]]}, "`labels` must be one of.*Received: -2"),
        (
            {**CLICK, "labels": [[1, 1], [1, 1]]},
            r"`labels` must have shape.*one label per point.*\(2, 2\).*\(2, 1, 2\)",
        ),
        ({**CLICK, "labels": 1}, r"`labels` must have shape.*Received: shape=\(\)"),
        (
            {"points": np.ones((2, 2, 2)), "labels": [1, 1]},
            r"`labels` must have shape.*Received: shape=\(2,\)",
        ),  # one label per image, for two points
        (
            {"points": [[[1, 1], [2, 2]], [[3, 3]]], "labels": [[1], [1, 1]]},
            "`labels` must have shape.*one label per point",
        ),  # ragged, but not alike
        (
            {"points": [[[1, 1]], None], "labels": [None, [1]]},
            "`labels` must have shape.*one label per point",
        ),  # the label belongs to the other image
        (
            {"points": [1, 1], "labels": [1, 1]},
            r"`points` must have shape \(B, N, 2\).*Received: shape=\(2,\)",
        ),
        (
            {"points": np.ones((2, 1, 3)), "labels": np.ones((2, 1))},
            r"`points` must have shape.*Received: shape=\(2, 1, 3\)",
        ),
        (
            {"points": np.ones((2, 1, 1, 1, 2)), "labels": np.ones((2, 1, 1, 1))},
            r"`points` must have shape.*Received: shape=\(2, 1, 1, 1, 2\)",
        ),
        (
            {"points": [[[1, 1]], [[2, 2, 2]]], "labels": [[1], [1]]},
            "`points` must have shape.*Received",
        ),  # one point has three coordinates
        ({**CLICK, "points": [[[1, np.nan]], [[1, 1]]]}, "`points` must be finite.*Received: nan"),
        ({**CLICK, "points": [[[1, np.inf]], [[1, 1]]]}, "`points` must be finite.*Received: inf"),
        ({**CLICK, "points": [[[1, 1e300]], [[1, 1]]]}, "`points` must be finite.*inf"),
        ({**CLICK, "points": [[["a", 1]], [[1, 1]]]}, "`points` must hold numbers.*'a'"),
        ({**CLICK, "points": [[[None, 1]], [[1, 1]]]}, "`points` must hold numbers.*None"),
        ({**CLICK, "points": "here"}, "`points` must hold numbers.*'here'"),
        ({**CLICK, "points": 5}, r"`points` must have shape.*Received: shape=\(\)"),
        (
            {"points": np.ones((3, 1, 2)), "labels": np.ones((3, 1))},
            "`points` must have one entry per image, 2.*3 entries",
        ),
        ({**CLICK, "boxes": np.zeros((3, 0, 4))}, "`boxes` must have one entry per image, 2"),
        ({"boxes": [[[1, 2, 3, 4]]]}, "`boxes` must have one entry per image, 2.*1 entries"),
        ({"boxes": np.ones((2, 3))}, r"`boxes` must have shape \(B, P, 4\).*shape=\(2, 3\)"),
        ({"boxes": np.ones((2, 1, 3))}, r"`boxes` must have shape.*x1 y1 x2 y2.*\(2, 1, 3\)"),
        ({"boxes": np.ones((2, 1, 3, 2))}, r"`boxes` must have shape.*\(2, 1, 3, 2\)"),
        ({"boxes": np.ones((2, 1, 1))}, r"`boxes` must have shape.*\(2, 1, 1\)"),
        ({"boxes": [[[1, 2, 3, 4], [1, 2, 3]]] * 2}, "`boxes` must have shape"),  # a corner short
        (
            {"boxes": [[[[1, 2], [3, 4]], [[1, 2]]]] * 2},
            "`boxes` must have shape",
        ),  # a corner is missing
        ({"boxes": [[[1, 2, 3, 4]], [[[1, 2], [3, 4]]]]}, "`boxes` must be nested equally deep"),
        (
            {"boxes": [[[5, 2, 3, 4]]] * 2},
            r"`boxes` must have x1 <= x2.*Received: \[5.0, 2.0, 3.0, 4.0\].*xywh_to_xyxy",
        ),  # right of itself
        ({"boxes": [[[[1, 9], [3, 4]]]] * 2}, "`boxes` must have x1 <= x2 and y1 <= y2"),
        ({"boxes": [[[1, 2, 3, np.nan]]] * 2}, "`boxes` must be finite.*Received: nan"),
        ({"boxes": [[[1, 2, np.inf, 4]]] * 2}, "`boxes` must be finite.*Received: inf"),
        (
            {"masks": np.ones((2, 1, 17, 17, 1))},
            r"`masks` must have the size.*\(16, 24\).*\(64, 96\).*Received: \(17, 17\)",
        ),
        (
            {"masks": np.ones((2, 1, 24, 16, 1))},
            r"`masks` must have the size.*Received: \(24, 16\)",
        ),  # transposed
        (
            {"masks": [[np.ones((64, 96, 1))], [np.ones((64, 96, 1))]]},
            r"`masks` must have the size.*\(32, 96\).*Received: \(64, 96\) for image 1",
        ),  # another image's size
        ({"masks": np.ones((2, *MASK))}, r"`masks` must have shape.*\(2, 16, 24\)"),
        ({"masks": np.ones((2, 1, *MASK, 3))}, r"`masks` must have shape.*\(2, 1, 16, 24, 3\)"),
        ({"masks": [[[[1.0, 2.0], [3.0]]], None]}, "`masks` must have shape"),  # ragged rows
        (
            {"masks": (np.arange(768) // 96).astype("uint8").reshape(2, 1, *MASK, 1)},
            r"`masks` must hold one object each.*label map of.*\[1, 2, 3\].*`labels == 1`",
        ),
        (
            {
                "masks": np.full((2, 1, *MASK, 1), 120, "uint8")
                + np.arange(24, dtype="uint8")[:, None]
            },
            "`masks` must be float logits, .*black and white. Received: dtype=uint8",
        ),  # a photograph
        ({"masks": np.full((2, 1, *MASK, 1), -3)}, "Received: dtype=int64.*numbers from 0 on"),
        ({"masks": np.full((2, 1, *MASK, 1), np.nan)}, "`masks` must be finite.*Received: nan"),
        ({"masks": np.full((2, 1, *MASK, 1), -np.inf)}, "`masks` must be finite.*-inf"),
        (
            {
                "points": np.ones((2, 2, 1, 2)),
                "labels": np.ones((2, 2, 1)),
                "boxes": np.ones((2, 3, 4)),
            },
            "same number of objects.*'points': 2, 'boxes': 3.*image 0.*Use None",
        ),
        (
            {**CLICK, "boxes": np.ones((2, 2, 4))},
            "same number of objects.*'points': 1, 'boxes': 2",
        ),
        (
            {"boxes": [[[1, 1, 2, 2]], [[1, 1, 2, 2]]], "masks": [None, np.ones((2, *MASK, 1))]},
            "same number of objects.*'boxes': 1, 'masks': 2.*image 1",
        ),
    ],
)
def test_bad_prompts_are_refused(prompts, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        complete(prompts, TWO, MASK)


def test_prompts_must_be_a_dict():
    with pytest.raises(ValueError, match="`prompts` must be a dict.*Received: list"):
        complete([1, 2], TWO, MASK)


def test_what_stands_under_padding_does_not_matter():
    points = np.full((2, 2, 2), np.nan)
    points[:, 0] = 3
    completed = complete({"points": points, "labels": [[1, -10], [0, -10]]}, TWO, MASK)
    assert completed["labels"].tolist() == [[[1, -1]], [[0, -1]]]


def test_boxes_without_extent_are_allowed():
    completed = complete({"boxes": [[[5, 5, 5, 5]], [[5, 5, 9, 5]]]}, TWO, MASK)
    assert completed["labels"].tolist() == [[[2, 3]], [[2, 3]]]


# --- what people type first ---

FULL = {
    "points": np.array([[[5, 6]], [[7, 8]]]),
    "labels": np.array([[1], [1]]),
    "boxes": np.array([[[[1, 2], [3, 4]]], [[[5, 6], [7, 8]]]]),
}


@pytest.mark.parametrize(
    "kinds, prompts",
    [
        (("points", "labels"), {"points": FULL["points"]}),  # labels default to foreground
        (("points", "labels"), {"points": [[[5, 6]], [[7, 8]]], "labels": None}),
        (("points", "labels"), {"points": [[5, 6], [7, 8]], "labels": [1, 1]}),  # (B, 2)
        (("points", "labels"), {"points": [[5, 6], [7, 8]]}),
        (("boxes",), {"boxes": [[1, 2, 3, 4], [5, 6, 7, 8]]}),  # (B, 4)
        (FULL, {"points": [[5, 6], [7, 8]], "boxes": FULL["boxes"].reshape(2, 4)}),
    ],
)
def test_short_forms_mean_what_the_long_ones_do(kinds, prompts):
    completed = complete(prompts, TWO, MASK)
    expected = complete({name: FULL[name] for name in kinds}, TWO, MASK)
    assert completed["single_object"] and expected["single_object"]
    for name in ("points", "labels", "num_prompts"):
        np.testing.assert_array_equal(completed[name], expected[name])


def test_labels_of_ragged_points_default_to_foreground():
    points = [[[[1, 1]], [[2, 2], [3, 3]]], None, [[[4, 4], [5, 5], [6, 6]]]]
    labels = [[[1], [1, 1]], None, [[1, 1, 1]]]
    completed, expected = read({"points": points}, 3), read({"points": points, "labels": labels}, 3)
    np.testing.assert_array_equal(completed.points, expected.points)
    np.testing.assert_array_equal(completed.labels, expected.labels)


@pytest.mark.parametrize(
    "prompts",
    [{"points": [5, 6]}, {"points": [5, 6], "labels": 1}, {"points": [5, 6], "labels": [1]}],
)
def test_one_click_on_one_image(prompts):
    completed = read(prompts)
    expected = read({"points": [[5, 6]], "labels": [1]})
    np.testing.assert_array_equal(completed.points, expected.points)
    np.testing.assert_array_equal(completed.labels, expected.labels)
    assert completed.single_object


@pytest.mark.parametrize("size", [(64, 96), (32, 96), MASK])
def test_bool_masks_become_logits(size):
    """A mask of the image as `mask_to_logits` maps it, one of the model's frame as it is."""
    mask = np.zeros(size, bool)
    mask[3:9, 5:14] = True
    plans = plans_for((64, 96) if size == MASK else size)
    given = {"masks": [[mask, logits_of(mask.shape)]]}  # beside logits, which stay
    completed = complete(given, plans, MASK)
    expected = np.where(mask, np.log(999), -np.log(999)) if size == MASK else None
    if expected is None:
        expected = mask_to_logits(mask, mask_size=MASK)[..., 0]
    np.testing.assert_allclose(completed["masks"][0, 0, ..., 0], expected, rtol=1e-6)
    alone = complete({"masks": mask[None, None]}, plans, MASK)
    np.testing.assert_array_equal(alone["masks"][0, 0], completed["masks"][0, 0])
    floats = complete({"masks": logits_of(mask.shape)[None, None]}, plans, MASK)
    np.testing.assert_array_equal(floats["masks"][0, 0], completed["masks"][0, 1])


def logits_of(size):
    return np.random.default_rng(0).normal(0, 3, size).astype("float32")


def test_bool_masks_of_images_that_are_padded_alone():
    mask = np.ones((32, 48), bool)
    plan = ResizePlan((32, 48), (64, 96), pad_only=True)
    completed = read({"masks": mask[None, None]}, 1).to_model([plan], MASK)
    inside = completed.masks[0, 0, ..., 0] > 0
    assert inside[:8, :12].all() and inside.sum() == 8 * 12


@pytest.mark.parametrize(
    "theirs, ours",
    [
        ("box", "boxes"),  # Meta
        ("point_coords", "points"),
        ("point_labels", "labels"),
        ("mask_input", "masks"),
        ("input_points", "points"),  # transformers
        ("input_labels", "labels"),
        ("input_boxes", "boxes"),
        ("input_masks", "masks"),
        ("bboxes", "boxes"),  # ultralytics
        ("Boxes", "boxes"),
        ("ponts", "points"),  # a slip
        ("extra", None),
    ],
)
def test_names_of_other_systems(theirs, ours):
    assert our_name(theirs, KEYS) == ours
    message = str(unknown_names("x", {theirs}, KEYS))
    assert f"Received also: ['{theirs}']" in message
    assert (f"Here '{theirs}' is '{ours}'." in message) == (ours is not None)


# --- binary masks ---


def _logits_by_hand(mask, side):
    """The steps in the words of the reference, with pillow."""
    height, width = mask.shape
    scale = side / max(height, width)
    size = (int(width * scale + 0.5), int(height * scale + 0.5))
    inside = np.array(Image.fromarray(mask.astype("float32")).resize(size, 2)) >= 0.5
    padded = np.zeros((side, side), bool)
    padded[: size[1], : size[0]] = inside
    return np.where(padded, np.log(0.999 / 0.001), np.log(0.001 / 0.999))


@pytest.mark.parametrize("size", [(333, 500), (1200, 1800), (500, 333), (40, 64), (256, 256)])
def test_binary_masks_become_logits(size):
    y, x = np.mgrid[: size[0], : size[1]]
    mask = (x - size[1] / 3) ** 2 + (y - size[0] / 2) ** 2 < (min(size) / 3) ** 2
    logits = mask_to_logits(mask)
    assert logits.shape == (256, 256, 1)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits[..., 0], _logits_by_hand(mask, 256), rtol=1e-6)
    assert sorted(set(logits.ravel().tolist())) == pytest.approx([-6.9067548, 6.9067548])


@pytest.mark.parametrize(
    "form, shape",
    [
        (lambda m: m, (16, 16, 1)),  # (H0, W0)
        (lambda m: m[..., None], (16, 16, 1)),  # (H0, W0, 1)
        (lambda m: np.stack([m, m, ~m]), (3, 16, 16, 1)),  # (P, H0, W0)
        (lambda m: np.stack([m, ~m])[..., None], (2, 16, 16, 1)),  # (P, H0, W0, 1)
        (lambda m: m.astype("uint8") * 255, (16, 16, 1)),  # a PNG
        (lambda m: m.astype("float64"), (16, 16, 1)),
        (lambda m: m.tolist(), (16, 16, 1)),
    ],
)
def test_forms_of_binary_masks(form, shape):
    mask = np.zeros((40, 60), bool)
    mask[10:30, 20:50] = True
    logits = mask_to_logits(form(mask), 64)
    assert logits.shape == shape
    first = logits if len(shape) == 3 else logits[0]
    np.testing.assert_array_equal(first, mask_to_logits(mask, 64))


def test_binary_masks_of_other_frames_and_values():
    mask = np.ones((30, 60), bool)
    logits = mask_to_logits(mask, (64, 96))[..., 0]
    assert logits.shape == (16, 24)
    assert (logits[:12] > 6).all() and (logits[12:] < -6).all()
    assert mask_to_logits(mask, 64, mask_size=(32, 32)).shape == (32, 32, 1)  # patches of 8
    assert (mask_to_logits(np.zeros((30, 60))) < -6).all()  # nothing inside
    assert mask_to_logits(np.ones((1, 3000), bool)).max() > 6  # thinner than a pixel of the frame


def test_binary_masks_are_accepted_as_prompts():
    mask = np.zeros((32, 96), bool)
    mask[5:20, 10:60] = True
    logits = mask_to_logits(mask, (64, 96))
    completed = complete({"masks": logits[None, None]}, plans_for((32, 96)), MASK)
    np.testing.assert_array_equal(completed["masks"][0, 0], logits)


@pytest.mark.parametrize(
    "mask, message",
    [
        (np.arange(12).reshape(3, 4), "`mask` must be binary.*12 values from 0 to 11.*labels == k"),
        (np.array([[1, 2]]), "`mask` must be binary.*2 values from 1 to 2"),  # no outside
        (np.array([[0.0, np.nan]]), "`mask` must be binary"),
        (np.zeros((0, 5)), r"`mask` must have shape.*not be empty.*shape=\(0, 5\)"),
        (np.zeros(5), r"`mask` must have shape.*shape=\(5,\)"),
        (np.zeros((2, 3, 4, 5)), r"`mask` must have shape.*shape=\(2, 3, 4, 5\)"),
    ],
)
def test_masks_that_are_not_binary_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        mask_to_logits(mask)


# --- prompts that are read: a click, buckets, parts of a batch ---


def canonical(labels, mask_given, masks=None):
    """`Prompts` in a model frame, whose points are all at (1, 1)."""
    points = np.ones((*labels.shape, 2), "float32")
    if masks is None:
        masks = np.ones((*mask_given.shape, 4, 6, 1), "float32")
    counts = np.full(len(labels), labels.shape[1])
    return Prompts(points, labels, masks, mask_given, counts, counts, False)


@pytest.mark.parametrize(
    "labels, mask, lone",
    [
        ([1, -1], False, True),  # a click
        ([0, -1], False, True),  # a click on the background says as little
        ([1], False, True),
        ([1, -10, -10], False, True),  # padding is nothing
        ([1, 1, -1], False, False),  # two clicks
        ([1, 0, -1], False, False),
        ([2, 3], False, False),  # a box counts as two points
        ([1, 2, 3], False, False),  # a click and a box
        ([1, -1], True, False),  # a click and a mask
        ([], True, False),  # a mask alone
        ([-1], False, False),  # nothing that points anywhere
        ([-10, -10], False, False),  # a prompt set that does not exist
    ],
)
def test_what_a_lone_click_is(labels, mask, lone):
    labels = np.array(labels, "int32").reshape(1, 1, -1)
    assert canonical(labels, np.array([[mask]])).lone_click.tolist() == [[lone]]
    if not mask:
        assert canonical(labels, np.zeros((1, 0), bool)).lone_click.tolist() == [[lone]]


def test_buckets_pad_with_nothing():
    prompts = canonical(np.ones((2, 3, 5), "int32"), np.ones((2, 3), bool))
    [(sets, padded)] = chunks(prompts, 8, pad_sets=True)
    assert sets == slice(0, 3)
    assert padded.points.shape == (2, 4, 8, 2)
    assert padded.masks.shape == (2, 4, 4, 6, 1)
    for name, filler in (("points", 0), ("labels", -10), ("masks", 0), ("mask_given", False)):
        array = getattr(padded, name)[:, 3]
        np.testing.assert_array_equal(array, np.full_like(array, filler))
    assert (padded.labels[:, :, 5:] == -10).all()
    np.testing.assert_array_equal(padded.points[:, :3, :5], prompts.points)
    without = canonical(np.ones((2, 3, 5), "int32"), np.ones((2, 0), bool))
    assert pad_prompts(without).masks.shape == (2, 0, 4, 6, 1)
    [(_, padded)] = chunks(prompts, 3, pad_sets=True)
    assert padded.labels.shape == (2, 3, 8)  # never beyond the chunk


@pytest.mark.parametrize(
    ("total", "chunk", "sizes"),
    [
        (0, 8, []),
        (1, 8, [1]),
        (3, 8, [3]),  # one padded
        (5, 8, [4, 1]),
        (6, 8, [4, 2]),
        (7, 8, [7]),  # one padded
        (13, 8, [8, 4, 1]),
        (5, 7, [4, 1]),
        (14, 7, [7, 7]),
    ],
)
def test_prompts_are_split_into_full_buckets(total, chunk, sizes):
    pieces = list(split_into_buckets(total, chunk, pad_sets=True))
    assert [stop - start for start, stop, _ in pieces] == sizes
    assert [i for start, stop, _ in pieces for i in range(start, stop)] == list(range(total))


def test_prompts_that_are_taken_in_turn_are_not_padded():
    assert list(split_into_buckets(13, 8, pad_sets=False)) == [(0, 8, 8), (8, 13, 5)]
    prompts = canonical(np.zeros((2, 5, 3), "int32"), np.zeros((2, 0), bool))
    [(_, padded)] = chunks(prompts, 8, pad_sets=False)
    assert padded.labels.shape == (2, 5, 4)


def test_a_part_of_a_batch_is_no_wider_than_it_needs():
    prompts = {
        "points": [[[[1, 1]]], [[[2, 2], [3, 3]], [[4, 4]]], None],
        "labels": [[[1]], [[1, 0], [1]], None],
        "masks": [[np.full(MASK, 7.0)], None, None],
    }
    whole = read(prompts, 3)
    assert whole.num_sets == 2 and whole.labels.shape == (3, 2, 3)
    first, second, third = whole[0:1], whole[np.array([1])], whole[2:]
    assert first.labels.tolist() == [[[1, -1]]] and first.mask_given.tolist() == [[True]]
    assert first.masks[0, 0].tolist() == np.full(MASK, 7.0).tolist()
    assert second.labels.shape == (1, 2, 3) and second.mask_given.shape == (1, 0)
    assert third.num_sets == 0 and third.num_prompts.tolist() == [0]
    padded = read({"points": np.ones((2, 3, 1, 2)), "labels": [[[1]] * 3, [[1], [-10], [-10]]]}, 2)
    assert padded[1:].num_sets == 3  # as it came
    assert padded[1:].num_prompts.tolist() == [1]
    both = whole[np.array([1, 0])]  # in another order
    assert both.num_prompts.tolist() == [2, 1] and both.mask_given.tolist() == [
        [False, False],
        [True, False],
    ]


@pytest.mark.parametrize(
    "boxes", [np.zeros((2, 0, 4)), np.zeros((2, 0, 2, 2)), [[], []], [None, None], []]
)
def test_no_boxes_are_no_objects(boxes):
    nobody = read({"boxes": boxes}, 2)
    assert nobody.num_sets == 0 and nobody.num_prompts.tolist() == [0, 0]
    assert (nobody.points.shape, nobody.labels.shape) == ((2, 0, 0, 2), (2, 0, 0))
    assert not nobody.single_object


@pytest.mark.parametrize("boxes", [np.zeros((0, 4)), []])
def test_no_boxes_on_one_image(boxes):
    assert read({"boxes": boxes}).num_sets == 0


def test_a_batch_without_objects_is_read_where_that_is_allowed():
    points = np.zeros((2, 0, 1, 2))
    nobody = read({"points": points}, 2, allow_none=True)
    assert nobody.num_sets == 0 and nobody.num_prompts.tolist() == [0, 0]
    with pytest.raises(ValueError, match="At least one prompt is needed"):
        read({"points": points}, 2)
    for prompts in ({}, {"boxes": None}):
        with pytest.raises(ValueError, match="At least one prompt is needed"):
            read(prompts, 2, allow_none=True)


# --- binary masks of other types, and what `best_mask` returns ---


INSIDE = np.zeros((64, 96), bool)
INSIDE[10:40, 30:70] = True


@pytest.mark.parametrize(
    "mask, said",
    [
        (INSIDE.astype("uint8") * 255, None),  # as image libraries read black and white
        (INSIDE.astype("uint8"), None),
        (INSIDE.astype("int64"), None),
        (INSIDE.astype("uint16") * 65535, None),
        (INSIDE.astype("uint8").tolist(), None),
        (Image.fromarray(INSIDE), None),
        (Image.fromarray(INSIDE.astype("uint8") * 255), None),
        (INSIDE * 250 + (~INSIDE) * 3, "black and white with values between"),  # JPEG's noise
        (INSIDE.astype("float32"), "floats that are only 0 and 1 is read as a binary mask"),
        (INSIDE * 255.0, "floats that are only 0 and 255 is read as a binary mask"),
    ],
    ids=str,
)
def test_binary_masks_of_any_type_are_bool_masks(mask, said):
    expected = complete({"masks": INSIDE[None, None, ..., None]}, plans_for((64, 96)), MASK)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        made = complete(
            {"masks": np.asarray(mask)[None, None, ..., None]}, plans_for((64, 96)), MASK
        )
        of_one = read({"masks": mask}).to_model(plans_for((64, 96)), MASK)
    np.testing.assert_array_equal(made["masks"], expected["masks"])
    np.testing.assert_array_equal(of_one.masks, expected["masks"])
    assert [str(warning.message) for warning in told if str(said) not in str(warning.message)] == []
    assert len(told) == (said is not None)


@pytest.mark.parametrize(
    "logits",
    [
        np.zeros(MASK),  # undecided everywhere
        np.ones(MASK),
        np.where(np.arange(24) > 9, 1.0, -1.0) * np.ones(MASK),
        np.where(np.arange(24) > 9, 2.0, 0.0) * np.ones(MASK),  # not the ends of any binary mask
    ],
)
def test_logits_of_few_values_are_logits(logits):
    made = complete({"masks": logits[None, None, ..., None]}, ONE, MASK)
    np.testing.assert_array_equal(made["masks"][0, 0, ..., 0], logits)


def test_a_binary_mask_beside_logits_stays_one():
    logits = np.linspace(-4, 4, 16 * 24).reshape(*MASK, 1)
    binary = np.zeros((*MASK, 1), "uint8")
    binary[4:9] = 255
    mixed = complete({"masks": [[logits, binary]]}, ONE, MASK)["masks"]
    alone = complete({"masks": [[binary > 0]]}, ONE, MASK)["masks"]
    np.testing.assert_allclose(mixed[0, 0], logits, rtol=1e-6)
    np.testing.assert_array_equal(mixed[0, 1], alone[0, 0])


def test_one_of_the_candidates_may_keep_their_axis():
    logits = np.random.default_rng(3).normal(size=(2, 3, 1, *MASK))
    wanted = complete({"masks": logits[:, :, 0, ..., None]}, ONE * 2, MASK)
    for form in (logits, list(logits), [list(of_image) for of_image in logits]):
        made = complete({"masks": form}, ONE * 2, MASK)
        np.testing.assert_array_equal(made["masks"], wanted["masks"])
    two = np.repeat(logits, 2, axis=2)
    with pytest.raises(
        ValueError, match=r"candidates one, as `best_mask\(outputs\).*\(2, 3, 2, 16, 24\)"
    ):
        complete({"masks": two}, ONE * 2, MASK)
    with pytest.raises(ValueError, match=r"pass one, `logits.*`best_mask\(outputs\)"):
        complete({"points": [[[5, 6]]], "masks": two[:1, 0, 0, None].repeat(4, 1)}, ONE, MASK)


# --- coordinates that are hardly pixels of the image ---


@pytest.mark.parametrize(
    "prompts, said",
    [
        ({"boxes": [[[0.1, 0.2, 0.8, 0.9]]]}, "`boxes` lie within 0..1 in image 0, 300 .*200 high"),
        ({"boxes": [[[0, 0, 1, 1]]]}, "`boxes` lie within 0..1"),  # all of it, normalised
        (
            {"boxes": [[[0.1, 0.2, 0.8, 0.9], [0, 0, 0.5, 1]]]},
            r"`boxes` lie within 0..1.*, \.\.\.\. Multiply",
        ),
        ({"points": [[[0.5, 0.5]]]}, "`points` lie within 0..1.*Multiply x by the image's width"),
        ({"points": [[[[0.5, 0.5]], [[0.25, 1.0]]]]}, "`points` lie within 0..1"),
        ({"boxes": [[[400, 10, 500, 90]]]}, r"`boxes` lie entirely outside image 0.*\[400.0, 10.0"),
        ({"boxes": [[[-90, 10, -20, 90]]]}, "`boxes` lie entirely outside"),
        ({"boxes": [[[5, 5, 99, 99], [9, 201, 99, 290]]]}, "entirely outside.*Received: .9.0, 201"),
        ({"boxes": [[[10, 10, 3000, 2000]]]}, "`boxes` lie far outside"),  # of the whole picture
        ({"points": [[[1000, 700]]]}, "`points` lie far outside.*not of one of another size"),
        ({"points": [[[150, 280]]]}, "`points` lie far outside.*not row, column"),
        (
            {"points": [[[30, 20], [-99, 20]]], "labels": [[1, 0]]},
            r"far outside.*: \[-99.0, 20.0\]\.",
        ),
        ({"points": [[[-9, 2], [-5, 9]]], "labels": [[2, 3]]}, "`boxes` lie entirely outside"),
    ],
)
def test_coordinates_that_are_hardly_pixels_are_told_once(prompts, said):
    with pytest.warns(UserWarning, match=f"(?s){said}") as told:
        for _ in range(2):
            complete(prompts, plans_for((200, 300)), MASK)
    assert len(told) == 1


@pytest.mark.parametrize(
    "prompts",
    [
        {"points": [[[0, 0]]]},  # a click into the corner
        {"points": [[[1, 0], [0, 1]]], "labels": [[1, 0]]},
        {"points": [[[0.5, 0.5], [150.5, 99.5]]]},
        {"points": [[[-60, 250]]]},  # somewhat outside
        {"boxes": [[[0, 0, 0, 0]]]},  # a detector's padding
        {"boxes": [[[5, 5, 5, 5]]]},
        {"boxes": [[[1, 1, 1, 1]]]},
        {"boxes": [[[0.5, 0.5, 0.9, 20]]]},
        {"boxes": [[[-20, -30, 320, 230]]]},  # a tracker's, larger than the image
        {"boxes": [[[300, 200, 310, 220]]]},  # touches the border
        {"points": [[[5, 5], [7000, 7000]]], "labels": [[1, -10]]},  # padding
        {"points": [[[5, 5], [9000, 9000]]], "labels": [[1, -1]]},  # no point
    ],
)
def test_coordinates_that_may_be_meant_are_no_reason_to_warn(prompts):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        complete(prompts, plans_for((200, 300)), MASK)


def test_coordinates_are_judged_by_their_own_image():
    prompts = {"points": [[[0.5, 0.5]], [[0.5, 0.5]]]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        complete({"points": [[[0.5, 0.5]]]}, plans_for((1, 1)), MASK)  # the only pixel
    with pytest.warns(UserWarning, match="in image 1, 90 pixels wide and 40 high"):
        complete(prompts, plans_for((1, 1), (40, 90)), MASK)
