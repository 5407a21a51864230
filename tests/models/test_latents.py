"""Latents standardised channel by channel."""

import jax
import numpy as np
import pytest

from chemeleon2_jax.models.latents import ChannelMoments

MOMENTS = ChannelMoments((1.0, -2.0), (0.5, 4.0))


def test_a_hand_value():
    x = MOMENTS.standardise(np.array([[2.0, 2.0], [1.0, -2.0]], np.float32))
    np.testing.assert_array_equal(x, [[2.0, 1.0], [0.0, 0.0]])
    assert x.dtype == np.float32


def test_restore_undoes_standardise_on_arrays_of_any_shape():
    z = jax.random.normal(jax.random.key(0), (3, 5, 2))
    np.testing.assert_allclose(MOMENTS.restore(MOMENTS.standardise(z)), z, atol=1e-6)


def test_to_dict_and_back():
    assert ChannelMoments.from_dict(MOMENTS.to_dict()) == MOMENTS


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mean": [0.0], "std": [1.0, 1.0]}, "1 means and 2 standard deviations"),
        ({"mean": [], "std": []}, "0 means"),
        ({"mean": [0.0], "std": [0.0]}, "above 0"),
        ({"mean": [float("nan")], "std": [1.0]}, "finite"),
        ({"mean": [0.0], "std": ["1"]}, "not lists of numbers"),
        ({"mean": [True], "std": [1.0]}, "not lists of numbers"),
    ],
)
def test_values_that_no_latents_have(values, message):
    with pytest.raises(ValueError, match=message):
        ChannelMoments.from_dict(values)
