"""Options of rewards as configs give them."""

import numpy as np
import pytest

from chemeleon2_jax.rewards.options import check_flag, check_positive, check_text


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2)])
def test_numbers(value):
    assert check_positive(value, "target") == 2.0
    assert check_positive(value, "target", or_zero=True) == 2.0


@pytest.mark.parametrize("value", [-1, np.inf, np.nan, True, "2", None])
def test_not_a_positive_number(value):
    with pytest.raises(ValueError, match=r"target is .*; it must be a positive number or 0"):
        check_positive(value, "target", or_zero=True)
    with pytest.raises(ValueError, match=r"target is .*; it must be a positive number$"):
        check_positive(value, "target")


def test_zero():
    assert check_positive(0, "target", or_zero=True) == 0.0
    with pytest.raises(ValueError, match="target is 0; it must be a positive number"):
        check_positive(0, "target")


def test_texts_and_flags():
    assert check_text("a", "targets") == "a"
    assert check_flag(True, "graded") is True
    with pytest.raises(ValueError, match="targets is 3; it must be a text"):
        check_text(3, "targets")
    with pytest.raises(ValueError, match="graded is 'false'; it must be true or false"):
        check_flag("false", "graded")
