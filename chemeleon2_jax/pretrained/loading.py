"""Trained models by name: what to build, and its parameters.

A name is a run folder (its best checkpoint), a checkpoint folder, a PyTorch `.ckpt` file of the
original, or the key of a published checkpoint. Everything else, and everything broken, is a
CheckpointError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.common.suggest import did_you_mean
from chemeleon2_jax.diffusion.schedule import Schedule
from chemeleon2_jax.models.abstract import abstract_module
from chemeleon2_jax.models.dit import DiT
from chemeleon2_jax.models.predictor import Predictor
from chemeleon2_jax.models.sizes import DiffusionConfig, DiTSizes, PredictorSizes, VAESizes
from chemeleon2_jax.models.vae import VAE
from chemeleon2_jax.pretrained import hub
from chemeleon2_jax.torch_format.from_torch import convert_file
from chemeleon2_jax.torch_format.model import Converted, Options, vae_item
from chemeleon2_jax.torch_format.size_tables import published_size_table
from chemeleon2_jax.torch_format.sizes import MAX_LAYERS
from chemeleon2_jax.training.checkpoint_reader import (
    BEST,
    LAST,
    Checkpoint,
    open_checkpoint,
    short_reason,
)
from chemeleon2_jax.training.checkpoint_writer import write_checkpoint

SAMPLE_WEIGHTS = ("ema", "raw")
_MOST_ATOMS, _MOST_CRYSTALS = 10_000, 10**12
AnyCheckpoint = Checkpoint | Converted


@dataclass(frozen=True)
class VAEParts:
    """A VAE: sizes, nnx graph definition and parameters."""

    sizes: VAESizes
    graphdef: Any
    params: Any

    def module(self, params: Any) -> VAE:
        """The module with the given parameters."""
        return nnx.merge(self.graphdef, params)


@dataclass(frozen=True)
class LDMParts:
    """A latent diffusion model with its VAE.

    Attributes:
        sizes, graphdef, params: of the denoiser; `params` are the weights that it samples with.
        diffusion: the chain.
        vae: decoder and encoder of its latents.
        latent_std: what latents are divided by.
        size_table: (N + 1,) training crystals by number of atoms.
    """

    sizes: DiTSizes
    graphdef: Any
    params: Any
    diffusion: DiffusionConfig
    vae: VAEParts
    latent_std: float
    size_table: np.ndarray

    def module(self, params: Any) -> DiT:
        """The denoiser with the given parameters."""
        return nnx.merge(self.graphdef, params)


@dataclass(frozen=True)
class PredictorParts:
    """A property predictor with the VAE whose latents it reads."""

    sizes: PredictorSizes
    graphdef: Any
    params: Any
    vae: VAEParts

    def module(self, params: Any) -> Predictor:
        """The predictor's head with the given parameters."""
        return nnx.merge(self.graphdef, params)


def open_model(
    name: str | Path, *, vae: str | Path = "", ema: bool = False, size_table: str = ""
) -> AnyCheckpoint:
    """Open a run folder, a checkpoint folder, a PyTorch file or a published checkpoint.

    Args:
        name: what to open; `${hub:<key>}` is the key.
        vae: of an LDM's PyTorch file that does not hold its VAE, or does not tell its heads.
        ema: take the moving averages of a PyTorch file instead of the raw weights.
        size_table: name of the table of sizes that a PyTorch file samples with.

    Raises:
        CheckpointError: it is none of these, or broken.
    """
    if not str(name):
        raise CheckpointError("no model is named: its name is empty")
    options = Options(
        vae=open_model(vae) if vae else None,
        ema=ema,
        size_table=published_size_table(size_table) if size_table else (),
    )
    pasted, key = str(name).startswith("${"), hub.hub_key(str(name))
    path = _expanded(name)
    if not pasted and path.is_file():
        return _warned(convert_file(path, options))
    is_here = path.exists() or path.is_symlink() or path.name in (LAST, BEST)
    if not pasted and is_here:
        if options != Options():
            raise CheckpointError(
                f"{name} is no PyTorch file: the options vae, ema and size_table are for those"
            )
        return open_checkpoint(path)
    if key is not None:
        if options == Options():
            folder = hub.converted(key, lambda file, to: _convert(key, file, to))
            try:
                return open_checkpoint(folder)
            except CheckpointError as error:
                raise CheckpointError(
                    f"{error}. It is the converted form of {key}: remove {folder}, and it is made "
                    "again"
                ) from error
        return _warned(convert_file(hub.fetch(key).path, _published_options(key, options)))
    hint = did_you_mean(str(name), hub.REGISTRY, cutoff=0.7)
    raise CheckpointError(
        f"there is no {name}.{hint} Give a run folder, a checkpoint folder, a PyTorch .ckpt file, "
        f"or the key of a published checkpoint: {', '.join(hub.REGISTRY)}"
    )


def _expanded(name: str | Path) -> Path:
    """The name as a path.

    Raises:
        CheckpointError: it cannot be one: too long, a null byte, no such user's home.
    """
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{name!s:.200} cannot be opened: {short_reason(error)}") from error
    return path


def _warned(model: Converted) -> Converted:
    """Say what is not as it may be expected."""
    for note in model.report.notes:
        logging.info("%s: %s", model.path, note)
    for assumption in model.report.assumptions:
        logging.warning("%s: %s", model.path, assumption)
    return model


def _convert(key: str, file: Path, folder: Path) -> None:
    """Convert a published file into a folder."""
    model = convert_file(file, _published_options(key, Options()))
    stage = f"train_{hub.lookup(key).stage}"
    if model.meta["stage"] != stage:
        raise CheckpointError(
            f"{file} is a checkpoint of {model.meta['stage']}, but {key} is one of {stage}"
        )
    write_checkpoint(folder, items=model.trees, meta=model.meta)


def _published_options(key: str, options: Options) -> Options:
    """Add what the registry knows of a file."""
    entry = hub.lookup(key)
    table = options.size_table or published_size_table(entry.size_table)
    return replace(options, size_table=table, vae_heads=(entry.vae_heads, entry.vae_heads))


def load_vae(name: str, *, dtype: Any = jnp.float32) -> tuple[VAEParts, Mapping[str, Any]]:
    """Open a VAE, or the VAE inside another model, and return it with the checkpoint's meta.

    Raises:
        CheckpointError: no model there, or a broken one.
    """
    return vae_of(open_model(name), dtype=dtype)


def vae_of(
    checkpoint: AnyCheckpoint, *, dtype: Any = jnp.float32
) -> tuple[VAEParts, Mapping[str, Any]]:
    """Return the VAE of an open checkpoint and the meta."""
    sizes = _read(checkpoint, "vae", _vae_sizes)
    graphdef, params = _restored(checkpoint, vae_item(checkpoint), VAE, sizes, dtype)
    return VAEParts(sizes, graphdef, params), checkpoint.meta


def load_ldm(name: str, *, dtype: Any = jnp.float32) -> tuple[LDMParts, Mapping[str, Any]]:
    """Open an LDM with its VAE and return it with the checkpoint's meta.

    Raises:
        CheckpointError: no LDM there, or a broken one.
    """
    return ldm_of(open_model(name), dtype=dtype)


def ldm_of(
    checkpoint: AnyCheckpoint, *, dtype: Any = jnp.float32, item: str = ""
) -> tuple[LDMParts, Mapping[str, Any]]:
    """Return the LDM of an open checkpoint and the meta.

    Args:
        checkpoint: of an LDM.
        dtype: to compute in.
        item: the denoiser's weights; by default those that it samples with.
    """
    meta = checkpoint.meta
    if "dit" not in meta:
        raise CheckpointError(
            f"{checkpoint.path} is a checkpoint of {meta.get('stage', 'an unknown stage')}, which "
            "cannot generate; give the run folder of a latent diffusion model (train_ldm)"
        )
    sizes = _read(checkpoint, "dit", _dit_sizes)
    item = item or ("ema" if sample_weights(checkpoint) == "ema" else "params")
    graphdef, params = _restored(checkpoint, item, DiT, sizes, dtype)
    parts = LDMParts(
        sizes=sizes,
        graphdef=graphdef,
        params=params,
        diffusion=_read(checkpoint, "diffusion", _diffusion),
        vae=vae_of(checkpoint, dtype=dtype)[0],
        latent_std=_read(checkpoint, "latent_std", _latent_std),
        size_table=_read(checkpoint, "size_table", _size_table),
    )
    return parts, meta


def sample_weights(checkpoint: AnyCheckpoint) -> str:
    """Which weights an LDM samples with: 'ema' or 'raw'."""
    weights = checkpoint.meta.get("sample_weights")
    if weights not in SAMPLE_WEIGHTS:
        raise CheckpointError(
            f"{checkpoint.path} says sample_weights = {weights!r}; it must be one of "
            f"{SAMPLE_WEIGHTS}"
        )
    return str(weights)


def load_predictor(
    name: str, *, dtype: Any = jnp.float32
) -> tuple[PredictorParts, Mapping[str, Any]]:
    """Open a predictor with its VAE and return it with the checkpoint's meta.

    Raises:
        CheckpointError: no predictor there, or a broken one.
    """
    return predictor_of(open_model(name), dtype=dtype)


def predictor_of(
    checkpoint: AnyCheckpoint, *, dtype: Any = jnp.float32
) -> tuple[PredictorParts, Mapping[str, Any]]:
    """Return the predictor of an open checkpoint and the meta."""
    if "predictor" not in checkpoint.meta:
        raise CheckpointError(
            f"{checkpoint.path} is a checkpoint of "
            f"{checkpoint.meta.get('stage', 'an unknown stage')}, not of a predictor"
        )
    sizes = _read(checkpoint, "predictor", PredictorSizes.from_dict)
    graphdef, params = _restored(checkpoint, "params", Predictor, sizes, dtype)
    vae, meta = vae_of(checkpoint, dtype=dtype)
    return PredictorParts(sizes, graphdef, params, vae), meta


def _restored(
    checkpoint: AnyCheckpoint, item: str, module: Any, sizes: Any, dtype: Any
) -> tuple[Any, Any]:
    """Graph definition of `module(sizes)`, and its parameters on the device."""
    try:
        graphdef, target = abstract_module(module, sizes, dtype=dtype)
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{checkpoint.path} has sizes that fit no model: {error}") from error
    return graphdef, jax.device_put(checkpoint.restore(item, target))  # once, not at every call


def _read(checkpoint: AnyCheckpoint, key: str, convert: Callable[[Any], Any]) -> Any:
    """Convert an entry of the meta."""
    problem = f"{checkpoint.path} has no entry {key!r} in its meta"
    if key in checkpoint.meta:
        try:
            return convert(checkpoint.meta[key])
        except (ArithmeticError, KeyError, TypeError, ValueError) as error:
            problem = f"{checkpoint.path} has a wrong entry {key!r} in its meta ({error!r})"
    raise CheckpointError(
        f"{problem}: it is damaged, or was not written by this version of the package"
    )


def _latent_std(value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value < np.inf:
        raise ValueError("not a number above 0")
    return float(value)


def _vae_sizes(values: Any) -> VAESizes:
    sizes = VAESizes.from_dict(values)
    _check_layers(sizes.encoder.num_layers)
    _check_layers(sizes.decoder.num_layers)
    return sizes


def _dit_sizes(values: Any) -> DiTSizes:
    sizes = DiTSizes.from_dict(values)
    _check_layers(sizes.depth)
    return sizes


def _check_layers(count: Any) -> None:
    """Building a model takes time for each layer, also where the parameters turn out not to fit."""
    if type(count) is not int or not 0 <= count <= MAX_LAYERS:
        raise ValueError(f"{count!r:.30} layers; at most {MAX_LAYERS} are possible")


def _diffusion(values: Any) -> DiffusionConfig:
    config = DiffusionConfig(**values)
    Schedule.of(config)
    return config


def _size_table(values: Any) -> np.ndarray:
    table = np.asarray(values, np.int64)
    if table.ndim != 1 or table.min(initial=0) < 0 or not table[1:].any():
        raise ValueError("not numbers of crystals by size")
    if len(table) > _MOST_ATOMS + 1 or table.max() > _MOST_CRYSTALS:
        raise ValueError(f"more than {_MOST_ATOMS} atoms or {_MOST_CRYSTALS} crystals")
    return table
