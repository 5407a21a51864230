"""Rewards by name: from the options of a config to components.

A name that is not here is no reward, and a user's own one is `custom`: any function of the form
`(list of Structures) -> one float each`, by its import path. The built-in ones that judge a crystal
alone have that form too (`FUNCTIONS`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from chemeleon2_jax.common.errors import EnergyError, RewardError
from chemeleon2_jax.common.scores import Scores
from chemeleon2_jax.common.suggest import did_you_mean
from chemeleon2_jax.crystals.arrays import Crystals
from chemeleon2_jax.metrics.uniqueness import References
from chemeleon2_jax.rewards.components import (
    NOT_JUDGED,
    Component,
    Creativity,
    Crystal,
    Diversity,
    FunctionOfStructures,
    PerChunk,
    load_function,
    read_options,
)
from chemeleon2_jax.rewards.diversity import composition_features, structure_features
from chemeleon2_jax.workers import WorkerPool

Options = Mapping[str, Any]

_REWARDS = "chemeleon2_jax.rewards"
FUNCTIONS = {
    "atomic_density": f"{_REWARDS}.geometry:atomic_density",
    "mass_density": f"{_REWARDS}.geometry:mass_density",
    "volume": f"{_REWARDS}.geometry:volume",
    "structural_validity": f"{_REWARDS}.geometry:structural_validity",
    "composition_validity": f"{_REWARDS}.composition:composition_validity",
    "allowed_elements": f"{_REWARDS}.composition:allowed_elements",
    "number_of_elements": f"{_REWARDS}.composition:number_of_elements",
    "space_group": f"{_REWARDS}.symmetry:space_group",
    "symmetry": f"{_REWARDS}.symmetry:symmetry",
}
"""Name -> built-in function of a list of Structures."""


@dataclass(frozen=True)
class Models:
    """What rewards ask of trained models.

    Attributes:
        encode_fn: crystals -> posterior means, (n, L) each or None.
        type_embedding: (100, d), of the VAE's encoder.
        latent_dim: L.
        predict_fn: path -> (its targets, (crystals) -> {target: (G,)}), NaN where there is no
            crystal.
    """

    encode_fn: Callable[[Sequence[Crystal]], list[np.ndarray | None]]
    type_embedding: np.ndarray
    latent_dim: int
    predict_fn: Callable[[str], tuple[tuple[str, ...], Callable[[Sequence[Crystal]], Any]]]


@dataclass(frozen=True)
class Context:
    """What rewards are built from.

    Attributes:
        models: trained models.
        crystals_fn: loads the reference crystals; called once, if a reward wants them.
        pool: worker processes.
        timeout_s: limit for a crystal, in seconds.
    """

    models: Models
    crystals_fn: Callable[[], Crystals]
    pool: WorkerPool
    timeout_s: float = 30.0

    @cached_property
    def crystals(self) -> Crystals:
        """The reference crystals."""
        return self.crystals_fn()


def names() -> tuple[str, ...]:
    """Names of all rewards, sorted."""
    return tuple(sorted([*FUNCTIONS, *_BUILDERS]))


def build_component(name: str, options: Options, context: Context) -> Component:
    """Make a reward.

    Args:
        name: one of `names`.
        options: its own options, without weight, normalisation and floor.
        context: models, references, workers.

    Raises:
        RewardError: no such reward, or options that it cannot use.
    """
    try:
        if name in _BUILDERS:
            return _BUILDERS[name](options, context)
        if name in FUNCTIONS:
            return _function(FUNCTIONS[name], options, context.timeout_s)
    except (EnergyError, RewardError) as error:
        raise RewardError(f"reward {name}: {error}") from error
    hint = did_you_mean(name, names())
    raise RewardError(f"there is no reward {name!r}.{hint} There are: {', '.join(names())}")


def _function(name: str, options: Options, timeout_s: float, batch_size: int = 1) -> Component:
    """A function of structures; what is wrong with its options is found now."""
    function = load_function(name)
    try:
        function([], **options)
    except (TypeError, ValueError) as error:
        raise RewardError(str(error)) from error
    return FunctionOfStructures(name, dict(options), batch_size=batch_size, timeout_s=timeout_s)


def _custom(options: Options, context: Context) -> Component:
    """A user's own function. It is imported, not called: an empty list may be new to it."""
    name = options["function"]
    if not name:
        raise RewardError("function is empty: name yours as module:function")
    load_function(name)
    kwargs = read_options(options["kwargs"])
    return FunctionOfStructures(
        name, kwargs, batch_size=options["batch_size"], timeout_s=context.timeout_s
    )


def _creativity(options: Options, context: Context) -> Component:
    del options
    return Creativity(References(context.crystals))


def _composition_diversity(options: Options, context: Context) -> Component:
    del options
    crystals, embedding = context.crystals, context.models.type_embedding
    known = [crystals.crystal(i) for i in range(len(crystals))]
    return Diversity(
        lambda found: composition_features(found, embedding),
        composition_features(known, embedding),
    )


def _structure_diversity(options: Options, context: Context) -> Component:
    del options
    crystals, models = context.crystals, context.models

    def features(found: Sequence[Crystal]) -> np.ndarray:
        return structure_features(models.encode_fn(found), models.latent_dim)

    return Diversity(features, features([crystals.crystal(i) for i in range(len(crystals))]))


def _predictor(options: Options, context: Context) -> Component:
    """The value of a predicted property, or minus its squared distance from a target."""
    path = options["ckpt_path"]
    if not path:
        raise RewardError("ckpt_path is empty: give the run folder of a predictor")
    targets, predict = context.models.predict_fn(path)
    name = options["target_name"] or targets[0]
    if name not in targets:
        raise RewardError(f"target_name is {name!r}, but {path} predicts {', '.join(targets)}")
    if not options["target_name"] and len(targets) > 1:
        raise RewardError(f"{path} predicts {', '.join(targets)}: choose one with target_name")
    wanted, low, high = (
        read_number(options[key], key) for key in ("target_value", "clip_min", "clip_max")
    )
    if low is not None and high is not None and low > high:
        raise RewardError(f"clip_min {low:g} is above clip_max {high:g}")

    def judge(crystals: Sequence[Crystal], pool: WorkerPool) -> Scores:
        del pool
        values = np.asarray(predict(crystals)[name], np.float64)
        if low is not None or high is not None:
            values = np.clip(values, low, high)  # NaN stays NaN
        if wanted is not None:
            values = -((values - wanted) ** 2)
        reasons = [NOT_JUDGED if crystal is None else None for crystal in crystals]
        return Scores.of(values, reasons)

    return PerChunk(judge)


def _energy(options: Options, context: Context) -> Component:
    """Minus the energy above the hull, as the crystals are or relaxed."""
    from chemeleon2_jax.energy.hull import read_hull
    from chemeleon2_jax.energy.model import energy_model
    from chemeleon2_jax.rewards.energy import check_energy_reward, energy_reward

    name = options["model"]
    if options["quantity"] == "e_above_hull" and not options["hull"]:
        raise RewardError(
            "hull is empty: it names a file of entries of known compounds (see Energies in the "
            "README); quantity=energy does without"
        )
    limit = context.timeout_s
    settings: dict[str, Any] = {"model_path": options["model_path"]}
    if name != "nequix":
        settings = {"pool": context.pool, "timeout_s": limit, "relax_timeout_s": limit}
    settings |= read_options(options["model_kwargs"])
    scale = {"": None, "true": True, "false": False}
    if options["hull_corrected"] not in scale:
        raise RewardError(
            f"hull_corrected is {options['hull_corrected']!r}; it is true, false or ''"
        )
    model = energy_model(name, **settings)
    hull = None
    if options["hull"]:
        hull = read_hull(options["hull"], corrected=scale[options["hull_corrected"]])
    quantity, steps = options["quantity"], options["relax_steps"]
    check_energy_reward(model, hull, quantity=quantity)

    def judge(crystals: Sequence[Crystal], pool: WorkerPool) -> Scores:
        try:
            return energy_reward(
                crystals, model, hull, pool=pool, quantity=quantity, relax_steps=steps
            )
        except EnergyError as error:  # a calculator that cannot be made, say
            raise RewardError(f"reward energy: {error}") from error

    return PerChunk(judge)


def read_number(text: str, key: str) -> float | None:
    """Read a number that may be absent ('').

    Raises:
        RewardError: neither, or not finite.
    """
    if not str(text).strip():
        return None
    try:
        value = float(text)
    except ValueError:
        raise RewardError(f"{key} is {text!r}; it is a number, or '' for none") from None
    if not np.isfinite(value):
        raise RewardError(f"{key} is {text!r}; it must be finite")
    return value


_BUILDERS: dict[str, Callable[[Options, Context], Component]] = {
    "creativity": _creativity,
    "energy": _energy,
    "structure_diversity": _structure_diversity,
    "composition_diversity": _composition_diversity,
    "predictor": _predictor,
    "custom": _custom,
}
