"""What a conditional model is trained to be asked for: read from the config and the crystals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.crystals.arrays import NUM_ATOM_CLASSES, Crystals
from chemeleon2_jax.inference.condition_encoding import encode_values
from chemeleon2_jax.models.sizes import Condition, ConditionSizes, LoRASizes
from chemeleon2_jax.rows.rows import Rows, crystal_keys
from chemeleon2_jax.runs.config import split_names
from chemeleon2_jax.stages.common import read_statistics
from chemeleon2_jax.torch_format.names import adapted_layer

KEY = "ldm_module.condition_module"
FROM_CRYSTAL = ("composition", "chemical_system")
FROM_COLUMN = ("float", "categorical")


def read_kinds(module: ConfigDict) -> dict[str, str]:
    """Return name -> kind of the conditions of `ldm_module`; {} for an unconditional model.

    Raises:
        ConfigError: not 'name:kind', comma-separated, or a kind that is none.
    """
    kinds = {}
    for part in split_names(module.condition_module.condition_type):
        name, colon, kind = (piece.strip() for piece in part.partition(":"))
        if not (name and colon) or kind not in (*FROM_COLUMN, *FROM_CRYSTAL):
            raise ConfigError(
                f"{KEY}.condition_type has the part {part!r}; it is name:kind, comma-separated, "
                f"with the kinds {', '.join((*FROM_COLUMN, *FROM_CRYSTAL))}"
            )
        if name in kinds:
            raise ConfigError(f"{KEY}.condition_type names {name!r} twice")
        kinds[name] = kind
    if module.condition_module.stats and "float" not in kinds.values():
        raise ConfigError(f"{KEY}.stats is set, but no condition is a float")
    return kinds


def columns(kinds: Mapping[str, str]) -> tuple[str, ...]:
    """Return the properties that the data must have."""
    return tuple(name for name, kind in kinds.items() if kind in FROM_COLUMN)


def make_sizes(
    module: ConfigDict,
    kinds: Mapping[str, str],
    *,
    hidden_dim: int,
    splits: Sequence[Crystals],
    known: ConditionSizes | None = None,
) -> ConditionSizes | None:
    """Return the conditions of a model to be trained.

    Args:
        module: the config of the stage.
        kinds: name -> kind.
        hidden_dim: of the denoiser.
        splits: training crystals and others; all must have possible values.
        known: conditions of the model that is gone on with: its statistics count where none are
            given, else those of the training set.

    Raises:
        ConfigError: statistics or classes that are missing or wrong.
    """
    if not kinds:
        return None
    options = module.condition_module
    floats = tuple(name for name, kind in kinds.items() if kind == "float")
    moments = read_statistics(options.stats, floats, splits[0], key=f"{KEY}.stats")
    if known is not None and not options.stats:
        for condition in known.conditions:
            if condition.mean is not None and condition.std is not None:
                moments[condition.name] = (condition.mean, condition.std)
    conditions = []
    for name, kind in kinds.items():
        mean, std = moments.get(name, (None, None))
        classes = options.num_classes if kind == "categorical" else 0
        try:
            condition = Condition(name, kind, mean=mean, std=std, num_classes=classes)
        except ValueError as error:
            raise ConfigError(f"{KEY}: {error}") from error
        if kind == "categorical":
            _check_classes(condition, splits)
        conditions.append(condition)
    return ConditionSizes(tuple(conditions), hidden_dim, options.drop_prob)


def _check_classes(condition: Condition, splits: Sequence[Crystals]) -> None:
    for crystals in splits:
        try:
            encode_values(condition, _column(crystals, condition))
        except ValueError as error:
            raise ConfigError(f"{KEY}.num_classes is {condition.num_classes}: {error}") from error


def lora_sizes(module: ConfigDict) -> LoRASizes | None:
    """Return the adapters of `ldm_module.lora_configs`; None where r is 0.

    Layers go by the original's names or by ours.

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
            "the adapters and the conditions stay as they are: set it to 0"
        )
    targets = tuple(adapted_layer(layer) or layer for layer in layers)
    return LoRASizes(options.r, options.lora_alpha, targets)


def inputs_of(sizes: ConditionSizes) -> Callable[[Crystals], dict[str, np.ndarray]]:
    """Return what gives crystals as a model is asked for them: name -> (G, width)."""

    def describe(crystals: Crystals) -> dict[str, np.ndarray]:
        counts = np.zeros((len(crystals), NUM_ATOM_CLASSES), np.float32)
        owner = np.repeat(np.arange(len(crystals)), crystals.num_atoms)
        np.add.at(counts, (owner, crystals.atom_types), 1.0)
        found = {}
        for condition in sizes.conditions:
            if condition.kind == "composition":
                # Fractions of the whole formula are those of the reduced one.
                found[condition.name] = counts / crystals.num_atoms[:, None].astype(np.float32)
            elif condition.kind == "chemical_system":
                found[condition.name] = (counts > 0).astype(np.float32)
            else:
                found[condition.name] = encode_values(condition, _column(crystals, condition))
        return found

    return describe


def _column(crystals: Crystals, condition: Condition) -> list[float | int]:
    """Values of a property; classes, which are read as all numbers are, as integers."""
    values = crystals.targets[condition.name].tolist()
    if condition.kind == "categorical":
        return [int(value) if value.is_integer() else value for value in map(float, values)]
    return values


def drop_some(key: jax.Array, rows: Rows, share: float) -> dict[str, jax.Array]:
    """Return the conditions of the rows, all of a crystal's null (NaN) with probability `share`."""
    drop = jax.vmap(jax.vmap(lambda k: jax.random.bernoulli(k, share)))(crystal_keys(key, rows))
    return {n: jnp.where(drop[..., None], jnp.nan, v) for n, v in rows.conditions.items()}
