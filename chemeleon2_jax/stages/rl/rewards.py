"""From the `reward_fn` block of a config to a reward function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.crystals.arrays import Crystals, wrap
from chemeleon2_jax.data.datasets import load_split
from chemeleon2_jax.inference.vae import PredictorModel, VAEModel
from chemeleon2_jax.pretrained.loading import VAEParts, load_predictor
from chemeleon2_jax.rewards.combine import RewardFunction, Weighted
from chemeleon2_jax.rewards.components import Crystal
from chemeleon2_jax.rewards.normalise import NORMALISATIONS
from chemeleon2_jax.rewards.registry import Context, Models, build_component, names, read_number
from chemeleon2_jax.runs.config import split_names
from chemeleon2_jax.workers import WorkerPool

_KEY = "rl_module.reward_fn"
_OF_ALL = ("weight", "normalize_fn", "floor")


def make_reward(
    options: ConfigDict, *, vae: VAEParts, known: Crystals | None, pool: WorkerPool
) -> RewardFunction:
    """Build the rewards that `reward_fn.components` names.

    Args:
        options: the block.
        vae: of the model that is fine-tuned.
        known: training crystals, the references where no other set is named; None if there are
            none.
        pool: worker processes.

    Raises:
        ConfigError: no component, one twice, or a normalisation that is none.
        RewardError: a reward that is none, or options that it cannot use.
    """
    chosen = split_names(options.components)
    if not chosen:
        raise ConfigError(f"{_KEY}.components is empty; name rewards: {', '.join(names())}")
    if len(set(chosen)) < len(chosen):
        raise ConfigError(f"{_KEY}.components names one twice: {', '.join(chosen)}")
    context = Context(_models(vae), _references(options, known), pool, options.timeout_s)
    components = {}
    for name in chosen:
        block = dict(options.get(name) or {})
        own = {key: value for key, value in block.items() if key not in _OF_ALL}
        component = build_component(name, own, context)
        if block["normalize_fn"] not in NORMALISATIONS:
            raise ConfigError(
                f"{_KEY}.{name}.normalize_fn is {block['normalize_fn']!r}; it is one of "
                f"{', '.join(map(repr, NORMALISATIONS))}"
            )
        try:
            floor = read_number(block["floor"], "floor")
        except ValueError as error:
            raise ConfigError(f"{_KEY}.{name}: {error}") from error
        components[name] = Weighted(component, block["weight"], block["normalize_fn"], floor)
    return RewardFunction(
        components,
        normalisation=options.normalize_fn,
        require=options.require,
        eps=options.eps,
        pool=pool,
    )


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


def _models(vae: VAEParts) -> Models:
    model = VAEModel(vae, {})
    encoder: Any = vae.module(vae.params).encoder

    def encode(crystals: Sequence[Crystal]) -> list[np.ndarray | None]:
        return _where_there(crystals, lambda found: model.encode_crystals(found)[0])

    return Models(
        encode, np.asarray(encoder.atom_types[...]), vae.sizes.latent_dim, _open_predictor
    )


def _open_predictor(
    path: str,
) -> tuple[tuple[str, ...], Callable[[Sequence[Crystal]], dict[str, np.ndarray]]]:
    parts, meta = load_predictor(path)
    model = PredictorModel(parts, dict(meta))
    targets = tuple(target.name for target in parts.sizes.targets)

    def predict(crystals: Sequence[Crystal]) -> dict[str, np.ndarray]:
        def rows(known: Crystals) -> list[Any]:
            found = model.predict_crystals(known)
            return list(np.stack([found[name] for name in targets], -1))

        values = _where_there(crystals, rows)
        nothing = np.full(len(targets), np.nan)
        table = np.stack([nothing if row is None else row for row in values])
        return {name: table[:, i] for i, name in enumerate(targets)}

    return targets, predict


def _where_there(
    crystals: Sequence[Crystal], function: Callable[[Crystals], Sequence[Any]]
) -> list[Any]:
    """Call a function with the crystals that are there; None for the others."""
    out: list[Any] = [None] * len(crystals)
    index = [i for i, crystal in enumerate(crystals) if crystal is not None]
    if index:
        # The decoder's coordinates may lie beyond the cell, those that encoders know do not.
        known = Crystals.from_list(
            (types, wrap(frac), cell) for types, frac, cell in filter(None, crystals)
        )
        for place, value in zip(index, function(known), strict=True):
            out[place] = value
    return out
