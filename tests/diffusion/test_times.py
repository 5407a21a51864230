"""The distributions of diffusion times."""

import jax
import numpy as np
import pytest

from chemeleon2_jax.diffusion.times import TIMES


@pytest.mark.parametrize("name", sorted(TIMES))
def test_times_are_of_the_chain_and_follow_the_distribution(name):
    keys = jax.random.split(jax.random.key(0), 20_000)
    times = np.asarray(jax.vmap(lambda key: TIMES[name](key, 1000))(keys))
    assert times.dtype == np.int32
    assert times.min() >= 0
    assert times.max() <= 999
    # Of a logit-normal, 68 % lie between sigmoid(-1) and sigmoid(1).
    middle = np.mean((times >= 269) & (times < 731))
    assert middle == pytest.approx({"uniform": 0.462, "logit_normal": 0.683}[name], abs=0.015)
