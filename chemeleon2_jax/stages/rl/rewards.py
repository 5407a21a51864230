"""From the `reward_fn` block of a config to a reward function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from chemeleon2_jax.common.errors import ConfigError, RewardError
from chemeleon2_jax.common.suggest import did_you_mean
from chemeleon2_jax.crystals.arrays import Crystals
from chemeleon2_jax.data.datasets import load_split
from chemeleon2_jax.inference.features import map_crystals
from chemeleon2_jax.inference.vae import PredictorModel, VAEModel
from chemeleon2_jax.pretrained.loading import VAEParts, open_model, predictor_of
from chemeleon2_jax.rewards.build import build_component, check_reward
from chemeleon2_jax.rewards.combine import Weighted
from chemeleon2_jax.rewards.component import Context, Crystal, Models
from chemeleon2_jax.rewards.evaluation import REQUIREMENTS, RewardFunction
from chemeleon2_jax.rewards.normalise import NORMALISATIONS
from chemeleon2_jax.rewards.options import read_number
from chemeleon2_jax.rewards.registry import REWARDS
from chemeleon2_jax.runs.config import split_names
from chemeleon2_jax.workers import WorkerPool

_KEY = "rl_module.reward_fn"


def check_reward_fn(options: ConfigDict) -> None:
    """Check the block, before models and data are loaded.

    Raises:
        ConfigError: no component, one twice, or a value that is none of its choices.
        RewardError: no such reward, or options that it refuses.
    """
    chosen = split_names(options.components)
    if not chosen:
        raise ConfigError(f"{_KEY}.components is empty; name rewards: {', '.join(REWARDS)}")
    if len(set(chosen)) < len(chosen):
        raise ConfigError(f"{_KEY}.components names one twice: {', '.join(chosen)}")
    _check_choice(f"{_KEY}.require", options.require, REQUIREMENTS)
    _check_choice(f"{_KEY}.normalize_fn", options.normalize_fn, NORMALISATIONS)
    for name in chosen:
        check_reward(name, _own_options(name, options))
        _check_choice(f"{_KEY}.{name}.normalize_fn", options[name].normalize_fn, NORMALISATIONS)
        _read_floor(name, options)


def make_reward(
    options: ConfigDict, *, vae: VAEParts, known: Crystals | None, pool: WorkerPool
) -> RewardFunction:
    """Build the rewards that `reward_fn.components` names.

    Args:
        options: the block, checked.
        vae: of the model to fine-tune.
        known: training crystals, the references where no other set is named; None if there are
            none.
        pool: worker processes.

    Raises:
        RewardError: options that a reward cannot use.
    """
    models = Models(VAEModel(vae), _open_predictor)
    context = Context(models, _references(options, known), pool, options.timeout_s)
    return RewardFunction(
        {
            name: Weighted(
                build_component(name, _own_options(name, options), context),
                options[name].weight,
                options[name].normalize_fn,
                _read_floor(name, options),
            )
            for name in split_names(options.components)
        },
        normalisation=options.normalize_fn,
        require=options.require,
        eps=options.eps,
        pool=pool,
    )


def _own_options(name: str, options: ConfigDict) -> Mapping[str, Any]:
    """Return a reward's own options, without weight, normalisation and floor."""
    own = REWARDS[name].options() if name in REWARDS else {}
    return {key: options[name][key] for key in own}


def _check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        names = ", ".join(map(repr, choices))
        raise ConfigError(
            f"{key} is {value!r}; it is one of {names}.{did_you_mean(value, choices)}"
        )


def _read_floor(name: str, options: ConfigDict) -> float | None:
    try:
        return read_number(options[name].floor, "floor")
    except RewardError as error:
        raise ConfigError(f"{_KEY}.{name}: {error}") from error


def _references(options: ConfigDict, known: Crystals | None) -> Callable[[], Crystals]:
    """Load the known crystals when a reward asks for them."""

    def load() -> Crystals:
        if options.reference_dataset:
            return load_split(options.reference_dataset, "train").crystals
        if known is None:
            raise ConfigError(
                f"a reward of {_KEY}.components compares with known crystals: name them with "
                f"{_KEY}.reference_dataset, or set data.name or data.data_dir"
            )
        return known

    return load


def _open_predictor(
    path: str,
) -> tuple[tuple[str, ...], Callable[[Sequence[Crystal]], dict[str, np.ndarray]]]:
    opened = open_model(path)
    model = PredictorModel(predictor_of(opened), opened.meta)
    targets = tuple(target.name for target in model.parts.sizes.targets)

    def predict(crystals: Sequence[Crystal]) -> dict[str, np.ndarray]:
        def predict_rows(present: Crystals) -> list[np.ndarray]:
            values = model.predict_crystals(present)
            return list(np.stack([values[name] for name in targets], -1))

        nothing = np.full(len(targets), np.nan)
        rows = [nothing if row is None else row for row in map_crystals(predict_rows, crystals)]
        return dict(zip(targets, np.stack(rows, 1), strict=True))

    return targets, predict
