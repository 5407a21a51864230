"""A crystal has a value or a reason for having none."""

import numpy as np
import pytest

from chemeleon2_jax.common.scores import Scores


def test_values_and_reasons():
    values = [1.0, None, np.nan, 0.5, -np.inf]
    scores = Scores.of(values, [None, "timeout after 3 s", None, "ValueError: odd", None])
    np.testing.assert_array_equal(scores.values, [1.0, np.nan, np.nan, np.nan, np.nan])
    assert scores.reasons == (
        None,
        "timeout after 3 s",
        "not finite: nan",
        "ValueError: odd",
        "not finite: -inf",
    )
    assert scores.failures == {"not finite": 2, "timeout after 3 s": 1, "ValueError": 1}


def test_a_missing_value_without_a_reason():
    assert Scores.of([None], [None]).reasons == ("no value",)


@pytest.mark.parametrize(("value", "reason"), [(np.nan, None), (1.0, "why")])
def test_contradictions_are_refused(value, reason):
    with pytest.raises(ValueError, match="a finite value or a reason"):
        Scores(np.array([value]), (reason,))
