"""Validation of a VAE by what a diffusion model can do with its latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from chemeleon2_jax.crystals.arrays import Crystals
from chemeleon2_jax.inference.vae import VAEModel
from chemeleon2_jax.metrics.latents import Posteriors, tolerance_curves
from chemeleon2_jax.metrics.latents_figure import draw_latents
from chemeleon2_jax.models.sizes import VAESizes
from chemeleon2_jax.pretrained.loading import VAEParts
from chemeleon2_jax.training.stage import Pictures
from chemeleon2_jax.workers import WorkerPool

LEVELS = (0.0, 0.05, 0.1, 0.2, 0.3)
SHOWN_LEVEL = 0.2
"""The level of the noise whose shares are validation values."""

TOLERANCE_VALUES = ("nats_per_atom", "covalent_share", "noisy_covalent_share", "noisy_match_rate")
"""Names of the values; the noisy ones are at SHOWN_LEVEL, all of sampled posteriors."""

ToleranceFn = Callable[[Any], tuple[dict[str, float], Pictures]]


def make_tolerance(
    config: ConfigDict, val: Crystals, *, sizes: VAESizes, graphdef: Any, pool: WorkerPool
) -> ToleranceFn:
    """Return `params -> (values, pictures)` over validation crystals; nothing where it is off.

    Args:
        config: of the run.
        val: validation crystals.
        sizes: of the VAE.
        graphdef: its definition.
        pool: processes to compare crystals in.
    """
    options = config.vae_module.tolerance
    if not options.num_samples:
        return lambda params: ({}, {})
    spread = np.linspace(0, len(val) - 1, min(options.num_samples, len(val)))
    crystals = val.take(spread.astype(int))

    def measure(params: Any) -> tuple[dict[str, float], Pictures]:
        vae = VAEModel(VAEParts(sizes, graphdef, jax.device_get(params)))
        posteriors = Posteriors(*vae.encode_crystals(crystals))
        points = tolerance_curves(
            lambda latents: vae.decode_onto(latents, crystals),
            posteriors,
            crystals,
            pool=pool,
            posterior_scales=tuple(dict.fromkeys((0.0, options.posterior_scale))),
            levels=LEVELS,
            timeout_s=config.vae_module.match_rate.timeout_s,
        )
        sampled = {p.level: p for p in points if p.posterior_scale == options.posterior_scale}
        noisy = sampled[SHOWN_LEVEL]
        numbers = (
            *(float(posteriors.nats().sum()), sampled[0.0].covalent_share),
            *(noisy.covalent_share, noisy.match_rate),
        )
        values = dict(zip(TOLERANCE_VALUES, numbers, strict=True))
        return values, {"val/tolerance": draw_latents(posteriors, points)}

    return measure
