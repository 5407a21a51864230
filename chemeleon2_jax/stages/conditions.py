"""Conditions and adapters of a diffusion model that is trained, from the config and the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.crystals.arrays import Crystals
from chemeleon2_jax.models.condition_kinds import DROPS, KINDS, Condition, option_names
from chemeleon2_jax.models.sizes import ConditionSizes, LoRASizes
from chemeleon2_jax.rows.rows import Rows, crystal_keys
from chemeleon2_jax.runs.config import split_names
from chemeleon2_jax.stages.statistics import read_statistics
from chemeleon2_jax.torch_format.names import adapted_layer

KEY = "ldm_module.condition_module"
_TRAINABLE = tuple(kind for kind, condition in KINDS.items() if condition.source != "none")
_STANDARDISED = tuple(kind for kind in KINDS if "std" in option_names(kind))


def read_kinds(module: ConfigDict) -> dict[str, str]:
    """Return name -> kind of the conditions of `ldm_module`; {} for an unconditional model.

    Raises:
        ConfigError: not 'name:kind', comma-separated, or an unknown kind.
    """
    kinds = {}
    for part in split_names(module.condition_module.condition_type):
        name, colon, kind = (piece.strip() for piece in part.partition(":"))
        if not (name and colon) or kind not in _TRAINABLE:
            raise ConfigError(
                f"{KEY}.condition_type has the part {part!r}; it is name:kind, comma-separated, "
                f"with the kinds {', '.join(_TRAINABLE)}"
            )
        if name in kinds:
            raise ConfigError(f"{KEY}.condition_type names {name!r} twice")
        kinds[name] = kind
    if module.condition_module.stats and not set(kinds.values()) & set(_STANDARDISED):
        raise ConfigError(f"{KEY}.stats is set, but no condition is a {' or '.join(_STANDARDISED)}")
    return kinds


def columns(kinds: Mapping[str, str]) -> tuple[str, ...]:
    """Return the conditions whose values are columns of the data."""
    return tuple(name for name, kind in kinds.items() if KINDS[kind].source == "column")


def make_sizes(
    module: ConfigDict,
    kinds: Mapping[str, str],
    *,
    hidden_dim: int,
    splits: Sequence[Crystals],
    known: ConditionSizes | None = None,
) -> ConditionSizes | None:
    """Return the conditions of a model to train; None for an unconditional one.

    Args:
        module: `ldm_module`.
        kinds: name -> kind.
        hidden_dim: width of the denoiser.
        splits: training crystals, then others; values of all are checked.
        known: conditions of the model to continue from. Its statistics precede those of the
            training set, but not those of the config.

    Raises:
        ConfigError: missing or wrong options, or a value in the data that no condition can have.
    """
    if not kinds:
        return None
    options = module.condition_module
    standardised = tuple(name for name, kind in kinds.items() if kind in _STANDARDISED)
    moments = read_statistics(options.stats, standardised, splits[0], key=f"{KEY}.stats")
    if known is not None and not options.stats:
        for condition in known.conditions:
            mean, std = (getattr(condition, option, None) for option in ("mean", "std"))
            if mean is not None and std is not None:
                moments[condition.name] = (mean, std)
    conditions = []
    for name, kind in kinds.items():
        own = {key: options[key] for key in option_names(kind) if key in options}
        if name in moments:
            own["mean"], own["std"] = moments[name]
        try:
            condition = KINDS[kind](name, **own)
        except ValueError as error:
            raise ConfigError(f"{KEY}: {error}") from error
        if condition.source == "column":
            _check_columns(condition, splits)
        conditions.append(condition)
    return ConditionSizes(tuple(conditions), hidden_dim, options.drop_prob)


def _check_columns(condition: Condition, splits: Sequence[Crystals]) -> None:
    for crystals in splits:
        try:
            condition.encode_crystals(crystals)
        except ValueError as error:
            own = [f"{key} is {getattr(condition, key)}" for key in option_names(condition.kind)]
            raise ConfigError(f"{KEY}: {', '.join(own)}: {error}") from error


def lora_sizes(module: ConfigDict) -> LoRASizes | None:
    """Return the adapters of `ldm_module.lora_configs`; None where r is 0.

    Layers have the original's names or ours.

    Raises:
        ConfigError: no layers, nothing to adapt, or a weight decay, which would move the frozen
            weights.
    """
    options = module.lora_configs
    if not options.r:
        return None
    if not module.ldm_ckpt_path:
        raise ConfigError(
            "ldm_module.lora_configs.r is set, but ldm_ckpt_path names no model to adapt"
        )
    layers = split_names(options.target_modules)
    if not layers:
        raise ConfigError("ldm_module.lora_configs.target_modules is empty: name layers")
    if module.optimizer.weight_decay:
        raise ConfigError(
            "ldm_module.optimizer.weight_decay is not 0, but with lora_configs all weights except "
            "those of the adapters and the conditions are frozen: set it to 0"
        )
    targets = tuple(adapted_layer(layer) or layer for layer in layers)
    return LoRASizes(options.r, options.lora_alpha, targets)


def drop_some(
    key: jax.Array, rows: Rows, share: float, *, mode: str = DROPS[0]
) -> dict[str, jax.Array]:
    """Return the rows' conditions, all of a crystal's null (NaN) with probability `share`.

    Args:
        key: of the choices.
        rows: with conditions.
        share: probability.
        mode: "together" for no more; "each" makes every condition of the other crystals null with
            the same probability, too, so that a model learns to be asked for some of them.
    """
    keys = crystal_keys(key, rows)
    together = jax.vmap(jax.vmap(lambda k: jax.random.bernoulli(k, share)))(keys)
    dropped = {}
    for index, (name, values) in enumerate(sorted(rows.conditions.items())):
        drop = together
        if mode == "each":

            def draw(k: jax.Array, index: int = index) -> jax.Array:
                return jax.random.bernoulli(jax.random.fold_in(k, index), share)

            drop = together | jax.vmap(jax.vmap(draw))(keys)
        dropped[name] = jnp.where(drop[..., None], jnp.nan, values)
    return dropped
