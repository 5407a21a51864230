"""From a reward's name and options to its component."""

from __future__ import annotations

from typing import Any

from chemeleon2_jax.common.errors import EnergyError, RewardError
from chemeleon2_jax.common.suggest import did_you_mean
from chemeleon2_jax.rewards.component import Component, Context
from chemeleon2_jax.rewards.functions import FunctionOfStructures, load_function
from chemeleon2_jax.rewards.registry import REWARDS, Options


def check_reward(name: str, options: Options) -> None:
    """Check what can be checked before models and data are there.

    Raises:
        RewardError: no such reward, or options that a function of structures refuses.
    """
    if name not in REWARDS:
        known = sorted(REWARDS)
        hint = did_you_mean(name, known)
        raise RewardError(f"there is no reward {name!r}.{hint} There are: {', '.join(known)}")
    if not REWARDS[name].builds:
        try:
            _load(name)([], **options)
        except (TypeError, ValueError) as error:
            raise RewardError(f"reward {name}: {error}") from error


def build_component(name: str, options: Options, context: Context) -> Component:
    """Make a reward.

    Args:
        name: one of `REWARDS`.
        options: its own options, without weight, normalisation and floor.
        context: models, references, workers.

    Raises:
        RewardError: no such reward, or options that it cannot use.
    """
    check_reward(name, options)
    if not REWARDS[name].builds:
        return FunctionOfStructures(_path(name), dict(options), timeout_s=context.timeout_s)
    try:
        component: Component = _load(name)(context, **options)
    except (EnergyError, RewardError) as error:
        raise RewardError(f"reward {name}: {error}") from error
    return component


def _path(name: str) -> str:
    return f"{__package__}.{REWARDS[name].path}"


def _load(name: str) -> Any:
    return load_function(_path(name))
