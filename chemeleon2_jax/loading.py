"""Trained models from checkpoints: what to build, and its parameters.

A name is a run folder (its best checkpoint) or a checkpoint folder. Everything else, and everything
broken, is a CheckpointError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from chemeleon2_jax.diffusion.gaussian import DiffusionConfig
from chemeleon2_jax.errors import CheckpointError
from chemeleon2_jax.models.dit import DiT, DiTSizes
from chemeleon2_jax.models.vae import VAE, VAESizes
from chemeleon2_jax.training.checkpoints import Checkpoint, open_checkpoint

SAMPLE_WEIGHTS = ("ema", "raw")


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


def load_vae(name: str, *, dtype: Any = jnp.float32) -> tuple[VAEParts, Mapping[str, Any]]:
    """Open a VAE, or the VAE inside an LDM, and return it with the checkpoint's meta.

    Raises:
        CheckpointError: no model there, or a broken one.
    """
    return vae_of(open_checkpoint(name), dtype=dtype)


def vae_of(
    checkpoint: Checkpoint, *, dtype: Any = jnp.float32
) -> tuple[VAEParts, Mapping[str, Any]]:
    """Return the VAE of an open checkpoint and the meta."""
    meta = checkpoint.meta
    item = "params" if meta.get("stage") == "train_vae" else "vae"
    sizes, graphdef, target = _read(checkpoint, "vae", lambda v: _vae(v, dtype))
    params = jax.device_put(checkpoint.restore(item, target))  # once, not at every call
    return VAEParts(sizes, graphdef, params), meta


def load_ldm(name: str, *, dtype: Any = jnp.float32) -> tuple[LDMParts, Mapping[str, Any]]:
    """Open an LDM with its VAE and return it with the checkpoint's meta.

    Raises:
        CheckpointError: no LDM there, or a broken one.
    """
    return ldm_of(open_checkpoint(name), dtype=dtype)


def ldm_of(
    checkpoint: Checkpoint, *, dtype: Any = jnp.float32
) -> tuple[LDMParts, Mapping[str, Any]]:
    """Return the LDM of an open checkpoint and the meta."""
    meta = checkpoint.meta
    if "dit" not in meta:
        raise CheckpointError(
            f"{checkpoint.path} is a checkpoint of {meta.get('stage', 'an unknown stage')}, which "
            "cannot generate; give the run folder of a latent diffusion model (train_ldm)"
        )
    sizes, graphdef, target = _read(checkpoint, "dit", lambda v: _dit(v, dtype))
    weights = meta.get("sample_weights")
    if weights not in SAMPLE_WEIGHTS:
        raise CheckpointError(
            f"{checkpoint.path} says sample_weights = {weights!r}; it must be one of "
            f"{SAMPLE_WEIGHTS}"
        )
    parts = LDMParts(
        sizes=sizes,
        graphdef=graphdef,
        params=jax.device_put(checkpoint.restore("ema" if weights == "ema" else "params", target)),
        diffusion=_read(checkpoint, "diffusion", _diffusion),
        vae=vae_of(checkpoint, dtype=dtype)[0],
        latent_std=_read(checkpoint, "latent_std", float),
        size_table=_read(checkpoint, "size_table", _size_table),
    )
    return parts, meta


def abstract_module(module: Any, sizes: Any, *, dtype: Any = jnp.float32) -> tuple[Any, Any]:
    """Return the graph definition of `module(sizes)` and the shapes of its parameters, without
    computing any.
    """
    return nnx.split(
        nnx.eval_shape(lambda: module(sizes, rngs=nnx.Rngs(0), dtype=dtype)), nnx.Param
    )


def _read(checkpoint: Checkpoint, key: str, convert: Callable[[Any], Any]) -> Any:
    """Convert an entry of the meta."""
    problem = f"{checkpoint.path} has no entry {key!r} in its meta"
    if key in checkpoint.meta:
        try:
            return convert(checkpoint.meta[key])
        except (KeyError, TypeError, ValueError) as error:
            problem = f"{checkpoint.path} has a wrong entry {key!r} in its meta ({error!r})"
    raise CheckpointError(
        f"{problem}: it is damaged, or was not written by this version of the package"
    )


def _vae(values: Any, dtype: Any) -> tuple[VAESizes, Any, Any]:
    sizes = VAESizes.from_dict(values)
    return (sizes, *abstract_module(VAE, sizes, dtype=dtype))


def _dit(values: Any, dtype: Any) -> tuple[DiTSizes, Any, Any]:
    sizes = DiTSizes.from_dict(values)
    return (sizes, *abstract_module(DiT, sizes, dtype=dtype))


def _diffusion(values: Any) -> DiffusionConfig:
    config = DiffusionConfig(**values)
    config.make_schedule()
    return config


def _size_table(values: Any) -> np.ndarray:
    table = np.asarray(values, np.int64)
    if table.ndim != 1 or table.min(initial=0) < 0 or not table[1:].any():
        raise ValueError("not numbers of crystals by size")
    return table


def count_parameters(params: Any) -> int:
    """Number of parameters in a tree."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
