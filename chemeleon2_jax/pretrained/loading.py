"""Open trained models by name, and build their modules with the saved parameters.

A name is a run folder (its best checkpoint), a checkpoint folder, a PyTorch `.ckpt` file of the
original, or the key of a published checkpoint. Any other name, and any broken file, is a
CheckpointError.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.common.paths import expand_path
from chemeleon2_jax.common.suggest import did_you_mean
from chemeleon2_jax.diffusion.schedule import Schedule
from chemeleon2_jax.models.abstract import abstract_module
from chemeleon2_jax.models.dit import DiT
from chemeleon2_jax.models.latents import ChannelMoments
from chemeleon2_jax.models.meta import ModelMeta
from chemeleon2_jax.models.predictor import Predictor
from chemeleon2_jax.models.sizes import DiffusionConfig, DiTSizes, PredictorSizes, VAESizes
from chemeleon2_jax.models.vae import VAE
from chemeleon2_jax.pretrained import hub
from chemeleon2_jax.torch_format.from_torch import convert_file
from chemeleon2_jax.torch_format.model import Converted, OpenModel, Options
from chemeleon2_jax.torch_format.size_tables import published_size_table
from chemeleon2_jax.training.checkpoint_reader import (
    BEST,
    LAST,
    Checkpoint,
    open_checkpoint,
)
from chemeleon2_jax.training.checkpoint_writer import write_checkpoint


@dataclass(frozen=True)
class VAEParts:
    """A VAE: sizes, nnx graph definition and parameters."""

    sizes: VAESizes
    graphdef: Any
    params: Any

    def module(self, params: Any) -> VAE:
        """Return the module with these parameters."""
        return nnx.merge(self.graphdef, params)


@dataclass(frozen=True)
class LDMParts:
    """A latent diffusion model with its VAE.

    Attributes:
        sizes, graphdef, params: of the denoiser; `params` are the weights to sample with, None in
            training.
        diffusion: the chain it was trained on.
        vae: encoder and decoder of its latents.
        latent_std: divisor of the latents.
        size_table: (N + 1,) training crystals by number of atoms.
        latent_channels: as in `models.meta.LDMMeta`.
    """

    sizes: DiTSizes
    graphdef: Any
    params: Any
    diffusion: DiffusionConfig
    vae: VAEParts
    latent_std: float
    size_table: np.ndarray
    latent_channels: ChannelMoments | None = None

    def standardise(self, latents: Any) -> Any:
        """Return latents (..., L) of the VAE as the denoiser takes them."""
        if self.latent_channels is not None:
            return self.latent_channels.standardise(latents)
        return latents / self.latent_std

    def restore(self, standardised: Any) -> Any:
        """Undo `standardise`: latents (..., L) as the VAE decodes them."""
        if self.latent_channels is not None:
            return self.latent_channels.restore(standardised)
        return standardised * self.latent_std

    def module(self, params: Any) -> DiT:
        """Return the denoiser with these parameters."""
        return nnx.merge(self.graphdef, params)


@dataclass(frozen=True)
class PredictorParts:
    """A property predictor, with the VAE whose latents are its input."""

    sizes: PredictorSizes
    graphdef: Any
    params: Any
    vae: VAEParts

    def module(self, params: Any) -> Predictor:
        """Return the predictor with these parameters."""
        return nnx.merge(self.graphdef, params)


def open_model(
    name: str | Path,
    *,
    vae: str | Path = "",
    ema: bool = False,
    size_table: str = "",
    verify: bool = True,
) -> OpenModel:
    """Open a run folder, a checkpoint folder, a PyTorch file or a published checkpoint.

    Args:
        name: of the model; `${hub:<key>}` is always a key.
        vae: VAE for the PyTorch file of an LDM that does not hold it, or does not state its heads.
        ema: take the moving averages of a PyTorch file instead of the raw weights.
        size_table: name of the size table that a PyTorch file samples with.
        verify: compare each array that is read with the checkpoint's checksums.

    Raises:
        CheckpointError: no model has that name, or it is broken.
    """
    if not str(name):
        raise CheckpointError("no model is named: its name is empty")
    options = Options(
        vae=open_model(vae, verify=verify) if vae else None,
        ema=ema,
        size_table=published_size_table(size_table) if size_table else (),
    )
    if not str(name).startswith("${"):
        path = expand_path(name, error=CheckpointError)
        if path.is_file():
            return _report(convert_file(path, options))
        if path.exists() or path.is_symlink() or path.name in (LAST, BEST):
            return _open_folder(path, options, verify=verify)
    key = hub.hub_key(str(name))
    if key is not None:
        return _open_published(key, options, verify=verify)
    hint = did_you_mean(str(name), hub.REGISTRY, cutoff=0.7)
    raise CheckpointError(
        f"there is no {name}.{hint} Give a run folder, a checkpoint folder, a PyTorch .ckpt file, "
        f"or the key of a published checkpoint: {', '.join(hub.REGISTRY)}"
    )


def _open_folder(path: Path, options: Options, *, verify: bool) -> Checkpoint[ModelMeta]:
    if options != Options():
        raise CheckpointError(
            f"{path} is no PyTorch file: the options vae, ema and size_table are for those"
        )
    return _read_meta(open_checkpoint(path, verify=verify))


def _open_published(key: str, options: Options, *, verify: bool) -> OpenModel:
    """Open the converted form of a published file, or the file itself with other options."""
    if options != Options():
        return _report(convert_file(hub.fetch(key).path, _published_options(key, options)))
    folder = hub.converted(key, lambda file, to: _convert(key, file, to))
    try:
        return _read_meta(open_checkpoint(folder, verify=verify))
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}. It is the converted form of {key}: remove {folder}, and it is made again"
        ) from error


def _report(model: Converted) -> Converted:
    """Log the notes and assumptions of a conversion."""
    for note in model.report.notes:
        logging.info("%s: %s", model.path, note)
    for assumption in model.report.assumptions:
        logging.warning("%s: %s", model.path, assumption)
    return model


def _convert(key: str, file: Path, folder: Path) -> None:
    """Convert a published file into a checkpoint folder."""
    model = convert_file(file, _published_options(key, Options()))
    stage = f"train_{hub.lookup(key).stage}"
    if model.meta.stage != stage:
        raise CheckpointError(
            f"{file} is a checkpoint of {model.meta.stage}, but {key} is one of {stage}"
        )
    write_checkpoint(folder, items=model.trees, meta=model.meta.to_json())


def _published_options(key: str, options: Options) -> Options:
    """Add the options that the registry states for a published file."""
    entry = hub.lookup(key)
    table = options.size_table or published_size_table(entry.size_table)
    return replace(options, size_table=table, vae_heads=(entry.vae_heads, entry.vae_heads))


def _read_meta(checkpoint: Checkpoint[dict[str, Any]]) -> Checkpoint[ModelMeta]:
    """Read the meta of a checkpoint on disk; nothing else does."""
    try:
        meta = ModelMeta.from_json(checkpoint.meta)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from error
    if meta.ldm is not None:
        try:
            Schedule.of(meta.ldm.diffusion)
        except ValueError as error:
            raise CheckpointError(
                f"{checkpoint.path}: its meta has a wrong entry 'diffusion': {error}"
            ) from error
    return Checkpoint(checkpoint.path, meta, checkpoint.progress, verify=checkpoint.verify)


def vae_of(model: OpenModel, *, dtype: Any = jnp.float32) -> VAEParts:
    """Return a VAE, or the VAE inside another model.

    Raises:
        CheckpointError: its arrays are broken, or do not fit its sizes.
    """
    graphdef, params = _restore(
        model, model.meta.vae_item, module=VAE, sizes=model.meta.vae, dtype=dtype
    )
    return VAEParts(model.meta.vae, graphdef, params)


def ldm_of(model: OpenModel, *, dtype: Any = jnp.float32, item: str = "") -> LDMParts:
    """Return a latent diffusion model with its VAE.

    Args:
        model: opened.
        dtype: to compute in.
        item: of the checkpoint, with the denoiser's weights; by default those to sample with.

    Raises:
        CheckpointError: another kind of model, or its arrays are broken or do not fit its sizes.
    """
    meta = model.meta.ldm
    if meta is None:
        raise CheckpointError(
            f"{model.path} is a checkpoint of {model.meta.stage}, which cannot generate; give the "
            "run folder of a latent diffusion model (train_ldm)"
        )
    graphdef, params = _restore(
        model, item or meta.sample_item, module=DiT, sizes=meta.dit, dtype=dtype
    )
    return LDMParts(
        sizes=meta.dit,
        graphdef=graphdef,
        params=params,
        diffusion=meta.diffusion,
        vae=vae_of(model, dtype=dtype),
        latent_std=meta.latent_std,
        size_table=np.array(model.meta.size_table),
        latent_channels=meta.latent_channels,
    )


def predictor_of(model: OpenModel, *, dtype: Any = jnp.float32) -> PredictorParts:
    """Return a predictor with its VAE.

    Raises:
        CheckpointError: another kind of model, or its arrays are broken or do not fit its sizes.
    """
    sizes = model.meta.predictor
    if sizes is None:
        raise CheckpointError(
            f"{model.path} is a checkpoint of {model.meta.stage}, not of a predictor"
        )
    graphdef, params = _restore(model, "params", module=Predictor, sizes=sizes, dtype=dtype)
    return PredictorParts(sizes, graphdef, params, vae_of(model, dtype=dtype))


def _restore(
    model: OpenModel, item: str, *, module: Any, sizes: Any, dtype: Any
) -> tuple[Any, Any]:
    """Graph definition of `module(sizes)`, and its parameters on the device."""
    try:
        graphdef, target = abstract_module(module, sizes, dtype=dtype)
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{model.path} has sizes that fit no model: {error}") from error
    return graphdef, jax.device_put(model.restore(item, target))  # once, not at every call
