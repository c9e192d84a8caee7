"""When two results count as the same."""

import numpy as np


def assert_same(actual, expected, bound=1e-5):
    """Fails unless the arrays differ by at most `bound` of the expected array's largest value.

    NaN has to stand in the same places.
    """
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    if expected.dtype.kind != "f":
        np.testing.assert_array_equal(actual, expected)
        return
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
    scale = np.nanmax(np.abs(expected), initial=0)
    error = np.nanmax(np.abs(actual.astype("float64") - expected), initial=0)
    assert error <= bound * scale, f"differs by {error / max(scale, 1e-30):.2e} of the scale"


def assert_same_outputs(actual, expected, bound=1e-5):
    """`assert_same` for each entry of two dicts of arrays."""
    assert set(actual) == set(expected)
    for name in expected:
        assert_same(actual[name], expected[name], bound)


def assert_different(first, second, bound=1e-3):
    """Fails if the arrays differ nowhere by `bound` of the scale: then the test says nothing."""
    first, second = np.asarray(first), np.asarray(second)
    assert first.shape == second.shape
    assert np.abs(first - second).max() > bound * np.abs(second).max()


def relative_difference(actual, expected):
    """The root mean square of what finite `actual` is off, relative to that of `expected`."""
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all()
    return np.sqrt(np.mean((actual - expected) ** 2) / np.mean(expected**2))
