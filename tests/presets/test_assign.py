"""All variables or none, and one error that says everything."""

import re

import numpy as np
import pytest

from keras_sam.presets.assign import assign


class Variable:
    """What `assign` needs of a Keras variable."""

    def __init__(self, path, value):
        self.path, self.value = path, np.array(value, "float32")

    @property
    def shape(self):
        return self.value.shape


def model():
    return [Variable("a/kernel", [[1, 2, 3], [4, 5, 6]]), Variable("a/bias", [7, 8, 9])]


RIGHT = {"a/kernel": np.zeros((2, 3), "f4"), "a/bias": np.ones(3, "f4")}


def put(variable, array):
    variable.value = array.copy()


def test_sets_every_variable_to_its_array():
    variables = model()
    assign(variables, RIGHT, put)
    np.testing.assert_array_equal(variables[0].value, np.zeros((2, 3)))
    np.testing.assert_array_equal(variables[1].value, np.ones(3))


PROBLEMS = [
    ({"a/bias": None}, r"Missing, not in the file (1): a/bias.", "missing"),
    ({"z": np.ones(1), "b": np.ones(1)}, "Unexpected, not in the model (2): b, z.", "extra"),
    (
        {"a/kernel": np.zeros((3, 2), "f4")},
        "Of another shape or type (1): a/kernel (file (3, 2), model (2, 3)).",
        "transposed",
    ),
    (
        {"a/bias": np.zeros(3, "i8")},
        "Of another shape or type (1): a/bias (file (3,) of int64, model (3,)).",
        "integers, as quantised files have them",
    ),
    (
        {"a/bias": np.zeros(3, "c8")},
        "a/bias (file (3,) of complex64, model (3,))",
        "complex numbers",
    ),
]


@pytest.mark.parametrize(("change", "message", "reason"), PROBLEMS, ids=[p[2] for p in PROBLEMS])
def test_nothing_is_loaded_when_something_does_not_fit(change, message, reason):
    arrays = {k: v for k, v in {**RIGHT, **change}.items() if v is not None}
    variables = model()
    with pytest.raises(ValueError, match=re.escape(message)):
        assign(variables, arrays, put)
    for variable, untouched in zip(variables, model()):
        np.testing.assert_array_equal(variable.value, untouched.value)


def test_three_lists_in_one_error_each_sorted():
    arrays = {"y": np.ones(1), "x": np.ones(1), "a/bias": np.ones(4, "f4")}
    with pytest.raises(ValueError) as error:
        assign(model(), arrays, put)
    assert str(error.value).splitlines() == [
        "The weights do not fit the model; nothing was loaded.",
        "Missing, not in the file (1): a/kernel.",
        "Unexpected, not in the model (2): x, y.",
        "Of another shape or type (1): a/bias (file (4,), model (3,)).",
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["class_head.weight"], r'ignore=r"class_head\.\*"'),  # a head beside the model
        (["prompt_encoder/x"], r'ignore=r"prompt_encoder/x\.\*"'),  # more than a part has
    ],
)
def test_what_is_too_much_can_be_left_out(names, message):
    with pytest.raises(ValueError, match=message):
        assign(model(), {**RIGHT, **{name: np.ones(1) for name in names}}, put)


def test_long_lists_are_cut_and_counted():
    arrays = {**RIGHT, **{f"extra_{i:03}": np.ones(1) for i in range(100)}}
    with pytest.raises(ValueError, match=r"\(100\): extra_000, .*extra_039, and 60 more"):
        assign(model(), arrays, put)


def test_what_may_be_left_over_is_a_pattern_of_whole_names():
    assign(model(), {**RIGHT, "other/x": np.ones(1)}, put, ignore=["other/.*"])
    with pytest.raises(ValueError, match="another/x"):
        assign(model(), {**RIGHT, "another/x": np.ones(1)}, put, ignore=["other/.*"])
    with pytest.raises(ValueError, match="Missing"):
        assign(model(), {"a/bias": np.ones(3)}, put, ignore=[".*"])


def test_two_variables_of_one_path_are_an_error():
    with pytest.raises(ValueError, match="more than one variable: a/bias"):
        assign([*model(), Variable("a/bias", [1])], RIGHT, put)


def test_the_error_says_what_the_file_looks_like():
    with pytest.raises(ValueError, match="look like SAM-HQ"):
        assign(model(), {**RIGHT, "mask_decoder.hf_token.weight": np.ones((1, 3))}, put)
