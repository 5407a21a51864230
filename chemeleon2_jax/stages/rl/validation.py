"""Validation of a model that is fine-tuned with rewards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from chemeleon2_jax.common import hosts
from chemeleon2_jax.inference.generator import Generator
from chemeleon2_jax.inference.requests import Prompts
from chemeleon2_jax.metrics.matching import reduce_cells
from chemeleon2_jax.metrics.uniqueness import find_unique
from chemeleon2_jax.rewards.evaluation import RewardFunction
from chemeleon2_jax.stages.common import VALIDATION_SEED
from chemeleon2_jax.training.stage import ValidateFn, Validation


def value_names(components: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the validation values of `make_validate`."""
    own = ("reward", "reward_se", "refused_share", "valid_share", "unique_share")
    of_components = (f"{name}{end}" for name in components for end in ("", "_failures"))
    return tuple(f"val/{name}" for name in (*own, *of_components))


def make_validate(generator: Generator, prompts: Prompts, reward: RewardFunction) -> ValidateFn:
    """Raw rewards of generated crystals, always of the same prompts and noise, with their validity
    and uniqueness, which the rewards must not cost.

    The state of the validation holds floors: a component without a floor keeps that of the first
    validation, so that all validations can be compared.
    """

    def validate(params: Any, state: Mapping[str, Any]) -> Validation:
        crystals = generator.generate(
            prompts.num_atoms,
            seed=VALIDATION_SEED,
            params=params,
            conditions=prompts.conditions,
            atom_types=prompts.atom_types,
        ).crystals
        rewards = reward(crystals, state["floors"])
        raw = rewards.raw
        values = {
            "reward": float(raw.mean()),
            "reward_se": float(raw.std(ddof=1) / np.sqrt(len(raw))) if len(raw) > 1 else 0.0,
            "refused_share": sum(why is not None for why in rewards.refused) / len(raw),
            "valid_share": float(rewards.valid.mean()),
            "unique_share": hosts.from_first(
                lambda: find_unique(reduce_cells(crystals, reward.pool), reward.pool).share
            ),
        }
        for name, judged in rewards.components.items():
            num_failures = sum(judged.failures.values())
            values[name] = float(judged.filled.mean())
            values[f"{name}_failures"] = float(num_failures)
            if num_failures:
                logging.warning(
                    "validation: the reward %s failed for %d of %d crystals: %s",
                    *(name, num_failures, len(crystals), judged.reasons),
                )
        floors = {name: judged.floor for name, judged in rewards.components.items()}
        return Validation(
            {f"val/{name}": value for name, value in values.items()},
            state={"floors": {**floors, **state["floors"]}},
        )

    return validate
