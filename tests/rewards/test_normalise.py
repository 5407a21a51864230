"""Normalised rewards against values worked out by hand."""

import numpy as np
import pytest

from chemeleon2_jax.rewards.normalise import EPSILON, normalise

VALUES = np.array([1.0, 2.0, np.nan, 6.0, np.inf])
NAN = np.nan


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("", [1.0, 2.0, NAN, 6.0, NAN]),
        ("norm", [0.0, 1.0 / (5.0 + EPSILON), NAN, 5.0 / (5.0 + EPSILON), NAN]),
        ("subtract_mean", [-2.0, -1.0, NAN, 3.0, NAN]),
        ("std", np.array([-2.0, -1.0, NAN, 3.0, NAN]) / (np.sqrt(7.0) + EPSILON)),
    ],
)
def test_values(how, expected):
    before = VALUES.copy()
    np.testing.assert_allclose(normalise(VALUES, how), expected, rtol=1e-12)
    np.testing.assert_array_equal(VALUES, before)


@pytest.mark.parametrize("how", ["norm", "std", "subtract_mean"])
@pytest.mark.parametrize("values", [[3.0], [3.0, 3.0, np.nan]])
def test_equal_values(how, values):
    expected = np.where(np.isnan(values), np.nan, 0.0)
    np.testing.assert_array_equal(normalise(np.array(values), how), expected)


@pytest.mark.parametrize("how", ["", "norm", "std", "subtract_mean"])
def test_no_value(how):
    np.testing.assert_array_equal(normalise(np.full(2, np.nan), how), [np.nan, np.nan])
    assert normalise(np.zeros(0), how).shape == (0,)


def test_unknown_normalisation():
    with pytest.raises(ValueError, match="'minmax' of rewards is unknown; choose one of '', 'no"):
        normalise(VALUES, "minmax")
