"""The models that a latent diffusion model is trained from: its VAE, and weights to start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.common.randomness import named_key
from chemeleon2_jax.models.latents import ChannelMoments
from chemeleon2_jax.models.lora import merge
from chemeleon2_jax.models.losses import Terms
from chemeleon2_jax.models.meta import LDMMeta
from chemeleon2_jax.models.sizes import ConditionSizes, DiffusionConfig, DiTSizes
from chemeleon2_jax.models.vae import sample_posterior
from chemeleon2_jax.pretrained.loading import LDMParts, VAEParts, ldm_of, open_model, vae_of
from chemeleon2_jax.rows.rows import Rows, atom_normal
from chemeleon2_jax.stages.common import evaluator, open_start, resumed_from, sum_terms
from chemeleon2_jax.stages.data import StageData
from chemeleon2_jax.stages.posteriors import posterior_of
from chemeleon2_jax.training.plain_trees import from_plain, overlay, to_plain

_LEAST_STD = 1e-3
"""Least standard deviation of a channel, as a share of that of all numbers."""


@dataclass(frozen=True)
class LDMStart:
    """What an LDM is trained from.

    Attributes:
        vae: frozen VAE.
        vae_config: config of the VAE's run.
        known: of the run to resume, or of the model with the first weights: the moments of its
            latents and the statistics of its conditions are kept. None for an LDM from scratch.
        weights: model with the first weights; None from scratch, and for a run to resume.
    """

    vae: VAEParts
    vae_config: Mapping[str, Any]
    known: LDMMeta | None = None
    weights: LDMParts | None = None

    @property
    def conditions(self) -> ConditionSizes | None:
        """Conditions of the known model."""
        return None if self.known is None else self.known.dit.conditions


def open_ldm_start(module: ConfigDict, resume_dir: Path | None, *, dtype: Any) -> LDMStart:
    """Open the models that `ldm_module` names; a run to resume keeps its own.

    Raises:
        ConfigError: no model is named.
        CheckpointError: a model cannot be opened.
    """
    resumed = resumed_from(resume_dir)
    if resumed is not None:
        vae = vae_of(resumed, dtype=dtype)
        return LDMStart(vae, resumed.meta.config_of_vae, known=resumed.meta.ldm)
    if module.ldm_ckpt_path:
        if module.vae_ckpt_path:
            logging.info("The VAE comes with ldm_ckpt_path; vae_ckpt_path is not used")
        model = open_model(module.ldm_ckpt_path)
        ldm = ldm_of(model, dtype=dtype)
        return LDMStart(ldm.vae, model.meta.config_of_vae, known=model.meta.ldm, weights=ldm)
    model = open_start(module.vae_ckpt_path, key="ldm_module.vae_ckpt_path", stage="train_vae")
    return LDMStart(vae_of(model, dtype=dtype), model.meta.config_of_vae)


def start_weights(
    params: Any, sizes: DiTSizes, start: LDMParts, *, diffusion: DiffusionConfig, path: str
) -> Any:
    """Return parameters with those of another LDM, where it has them.

    Conditions and adapters that it lacks stay new; adapters of other sizes are added to its
    weights.

    Args:
        params: new parameters of a denoiser.
        sizes: of the new denoiser.
        start: the other LDM.
        diffusion: chain of the new LDM.
        path: of the other LDM, for messages.

    Raises:
        CheckpointError: it has another network, other conditions or another chain.
    """
    there = {**_network(start.sizes), **asdict(start.diffusion)}
    here = {**_network(sizes), **asdict(diffusion)}
    differing = [f"{k} = {there[k]!r} (here {here[k]!r})" for k in here if here[k] != there[k]]
    if differing:
        raise CheckpointError(
            f"{path} has {', '.join(differing)}: set these in ldm_module.denoiser (size = custom) "
            "and ldm_module.diffusion, or start from another model"
        )
    conditions, conditions_there = (_inputs(s.conditions) for s in (sizes, start.sizes))
    if conditions_there and conditions_there != conditions:
        raise CheckpointError(
            f"{path} has the conditions {conditions_there}, but the config asks for "
            f"{conditions or 'none'}"
        )
    tree = to_plain(start.params)
    if start.sizes.lora is not None and start.sizes.lora != sizes.lora:
        tree = merge(tree, start.sizes.lora)
    return from_plain(overlay(to_plain(params), tree), params)


def _network(sizes: DiTSizes) -> dict[str, Any]:
    """Sizes that must be equal for weights to fit."""
    return {k: v for k, v in asdict(sizes).items() if k not in ("conditions", "lora")}


def _inputs(conditions: ConditionSizes | None) -> dict[str, str]:
    """Name -> kind and width."""
    return {c.name: f"{c.kind} ({c.width})" for c in conditions.conditions} if conditions else {}


class LatentMoments(NamedTuple):
    """Moments of sampled latents over a training set, without augmentation.

    Attributes:
        std: standard deviation of all numbers.
        channels: moments of each channel; None where `std` alone standardises the latents.
    """

    std: float
    channels: ChannelMoments | None = None


def latent_moments(
    start: LDMStart, data: StageData, vae: VAEParts, *, options: ConfigDict, seed: int
) -> LatentMoments:
    """Return the moments that standardise the latents: those of the known model, else measured.

    Args:
        start: with the known model, if any.
        data: the training set.
        vae: on the devices.
        options: `ldm_module.diffusion`.
        seed: of the samples.

    Raises:
        CheckpointError: moments of each channel are asked for, and the known model has none.
    """
    by_channel = options.latent_standardisation == "channel"
    if start.known is None:
        return measure_moments(
            data, vae, seed=seed, posterior_scale=options.posterior_scale, by_channel=by_channel
        )
    known = LatentMoments(start.known.latent_std, start.known.latent_channels)
    if by_channel and known.channels is None:
        raise CheckpointError(
            "ldm_module.diffusion.latent_standardisation is 'channel', but the model to start from "
            "divides its latents by one number: set it to 'global', or train from scratch"
        )
    if start.weights is not None and known.channels is not None:
        logging.info("The latents are standardised by channel, as in the model to start from")
    return known


def measure_moments(
    data: StageData,
    vae: VAEParts,
    *,
    seed: int,
    posterior_scale: float = 1.0,
    by_channel: bool = False,
) -> LatentMoments:
    """Measure sampled latents of the training set; `posterior_scale` as in `ldm.ldm_terms`."""
    key = named_key(seed, "latent_std")

    def moments(params: Any, rows: Rows) -> Terms:
        posterior = posterior_of(vae, params, rows)
        drawn = atom_normal(key, rows, posterior.mean.shape[-1])
        z = sample_posterior(posterior, drawn, scale=posterior_scale)
        weights = rows.is_atom.astype(jnp.float32)
        count = jnp.sum(weights) * z.shape[-1]
        terms = {
            "first": (jnp.sum(jnp.sum(z, -1) * weights), count),
            "second": (jnp.sum(jnp.sum(z**2, -1) * weights), count),
        }
        for i in range(z.shape[-1] if by_channel else 0):
            for name, values in (("first", z[..., i]), ("second", z[..., i] ** 2)):
                terms[f"{name}_{i}"] = jnp.sum(values * weights), jnp.sum(weights)
        return terms

    jitted = evaluator(moments, data.mesh)
    sums = sum_terms(jitted(vae.params, rows) for rows, _, _ in data.train_batches())

    def mean_and_std(channel: str) -> tuple[float, float]:
        (first, count), (second, _) = sums[f"first{channel}"], sums[f"second{channel}"]
        variance = (second - first**2 / count) / (count - 1)
        return first / count, float(np.sqrt(max(variance, 0.0)))

    _, std = mean_and_std("")
    if not by_channel:
        return LatentMoments(std)
    channels = [mean_and_std(f"_{i}") for i in range(vae.sizes.latent_dim)]
    means, stds = zip(*channels, strict=True)
    # A channel that holds nothing must not be blown up to the size of the others.
    least = _LEAST_STD * std
    return LatentMoments(std, ChannelMoments(means, tuple(max(s, least) for s in stds)))
