"""Validation of a model that is fine-tuned with rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from chemeleon2_jax.common.errors import RewardError
from chemeleon2_jax.crystals.arrays import CrystalArrays
from chemeleon2_jax.inference.generator import Generator
from chemeleon2_jax.inference.requests import Prompts
from chemeleon2_jax.metrics.matching import reduce_cells
from chemeleon2_jax.metrics.uniqueness import find_unique
from chemeleon2_jax.rewards.combine import Rewards
from chemeleon2_jax.rewards.evaluation import RewardFunction
from chemeleon2_jax.stages.common import broadcast_from_first, max_over_processes
from chemeleon2_jax.training.stage import ValidateFn, Validation

SEED = 0
"""Of the prompts and the noise, the same at every validation of every run."""


def value_names(components: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the values of a validation, for a check before training."""
    own = ("reward", "reward_se", "refused_share", "valid_share", "unique_share")
    of_components = (f"{name}{end}" for name in components for end in ("", "_failures"))
    return tuple(f"val/{name}" for name in (*own, *of_components))


def make_validate(generator: Generator, prompts: Prompts, reward: RewardFunction) -> ValidateFn:
    """Raw rewards of crystals of the same prompts and noise every time, and what they must not
    cost: validity and uniqueness.

    Components without a floor keep that of the first validation, so that all can be compared: it
    is the validation's state.
    """

    def validate(params: Any, state: Mapping[str, Any]) -> Validation:
        floors = dict(state["floors"])
        found = generator.generate(
            prompts.num_atoms,
            seed=SEED,
            params=params,
            conditions=prompts.conditions,
            atom_types=prompts.atom_types,
        ).crystals
        rewards = _judge_together(reward, found, floors)
        for name, judged in rewards.components.items():
            floors.setdefault(name, judged.floor)
            if judged.failures:
                logging.warning(
                    "validation: the reward %s failed for %d of %d crystals: %s",
                    *(name, sum(judged.failures.values()), len(found), judged.reasons),
                )
        raw = rewards.raw
        values = {
            "reward": float(raw.mean()),
            "reward_se": float(raw.std(ddof=1) / np.sqrt(len(raw))) if len(raw) > 1 else 0.0,
            "refused_share": sum(why is not None for why in rewards.refused) / len(raw),
            "valid_share": float(rewards.valid.mean()),
            "unique_share": find_unique(reduce_cells(found, reward.pool), reward.pool).share,
        }
        for name, judged in rewards.components.items():
            values[name] = float(judged.filled.mean())
            values[f"{name}_failures"] = float(sum(judged.failures.values()))
        named = {f"val/{name}": value for name, value in values.items()}
        return Validation(broadcast_from_first(named), state={"floors": floors})

    return validate


def _judge_together(
    reward: RewardFunction, crystals: Sequence[CrystalArrays], floors: Mapping[str, float]
) -> Rewards:
    """Judge crystals; where that fails in one process, it fails in all."""
    rewards, error = None, None
    try:
        rewards = reward(crystals, floors)
    except RewardError as found:
        error = found
    failed = max_over_processes({"failed": float(error is not None)})["failed"]
    if rewards is None or failed:
        raise error or RewardError("the rewards failed in another process; its messages say why")
    return rewards
