"""The reward block of a config, checked before models and data are loaded."""

from __future__ import annotations

import pytest

from chemeleon2_jax.common.errors import ConfigError, RewardError
from chemeleon2_jax.runs.config_checks import check_config
from chemeleon2_jax.stages.rl.rewards import check_reward_fn
from tests.tiny import RL_SPEC, make_config


def block_of(**changes):
    config = make_config(RL_SPEC, {f"rl_module.reward_fn.{k}": v for k, v in changes.items()})
    check_config(config)
    return config.rl_module.reward_fn


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"require": "covalnt"}, ConfigError, "require is 'covalnt'; .* Did you mean 'covalent'"),
        ({"normalize_fn": "nrm"}, ConfigError, "reward_fn.normalize_fn is 'nrm'"),
        ({"atomic_density.normalize_fn": "max"}, ConfigError, "atomic_density.normalize_fn is"),
        ({"atomic_density.floor": "nan"}, ConfigError, "atomic_density: floor is 'nan'"),
        ({"atomic_density.target": -0.1}, RewardError, "atomic_density: target is -0.1"),
        ({"components": "space_group"}, RewardError, "targets has ''"),
        ({"components": "symmetry,symetry"}, RewardError, "Did you mean 'symmetry'"),
    ],
)
def test_what_cannot_be_used(changes, error, message):
    with pytest.raises(error, match=message):
        check_reward_fn(block_of(**changes))


def test_what_can_be_used():
    check_reward_fn(block_of(**{"components": "atomic_density,energy", "energy.weight": -1.0}))
    # Options of unused rewards are not checked.
    check_reward_fn(block_of(**{"volume.target": -3.0}))
