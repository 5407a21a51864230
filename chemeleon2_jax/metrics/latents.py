"""What a diffusion model can do with a VAE: the information in its latents, and the tolerance of
its decoder to errors in them.

A reconstruction is decoded from exact latents, a generated crystal from those of a diffusion model,
which are wrong by some share of their spread. The tolerance curve tells what is left of the
reconstructions after noise of known shares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from chemeleon2_jax.crystals.arrays import CrystalArrays, Crystals
from chemeleon2_jax.metrics.matching import Tolerances
from chemeleon2_jax.metrics.reconstruction import match_rates
from chemeleon2_jax.metrics.structure import covalent_check
from chemeleon2_jax.workers import WorkerPool

DecodeFn = Callable[[list[np.ndarray]], Sequence[CrystalArrays | None]]
"""Latents (n, L) of each crystal -> crystals; None where there is none."""

NOISE_LEVELS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3)
"""Standard deviations of the noise, over the spread of each channel."""

_STRICT = {"match_rate": Tolerances()}


@dataclass(frozen=True)
class Posteriors:
    """Gaussians of the latents of crystals, as an encoder returns them.

    Attributes:
        means, logvars: (n, L) for each crystal.
    """

    means: Sequence[np.ndarray]
    logvars: Sequence[np.ndarray]

    def spread(self, posterior_scale: float) -> np.ndarray:
        """Return the standard deviation of each channel over all atoms of latents that are drawn
        with that share of the posterior's standard deviation, (L,).
        """
        means, variances = self._moments()
        return np.sqrt(means.var(0) + posterior_scale**2 * variances.mean(0))

    def widths(self) -> np.ndarray:
        """Return the root mean square over atoms of the posterior's standard deviation, (L,)."""
        return np.sqrt(self._moments()[1].mean(0))

    def nats(self) -> np.ndarray:
        """Return the mean over atoms of KL(posterior || N(0, 1)) in each channel, (L,): the
        information that an atom's latent carries, at most.
        """
        means, variances = self._moments()
        return 0.5 * (means**2 + variances - 1.0 - np.log(variances)).mean(0)

    def draw(self, posterior_scale: float, *, level: float, seed: int) -> list[np.ndarray]:
        """Return latents with noise.

        Args:
            posterior_scale: share of the posterior's standard deviation; 0 for the means.
            level: noise on top, over `spread`.
            seed: of both; the same draws for all levels.
        """
        rng = np.random.default_rng(seed)
        added = level * self.spread(posterior_scale)
        latents = []
        for mean, logvar in zip(self.means, self.logvars, strict=True):
            draws = rng.normal(size=(2, *mean.shape))
            width = posterior_scale * np.exp(0.5 * logvar)
            latents.append((mean + width * draws[0] + added * draws[1]).astype(np.float32))
        return latents

    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Means and variances of all atoms, (A, L) float64."""
        means = np.concatenate(self.means).astype(np.float64)
        return means, np.exp(np.concatenate(self.logvars).astype(np.float64))


@dataclass(frozen=True)
class TolerancePoint:
    """Crystals decoded from latents with noise.

    Attributes:
        posterior_scale: share of the posterior's standard deviation in the latents.
        level: of the noise, over the spread of each channel.
        match_rate: share of the crystals that StructureMatcher, at its defaults, calls the same as
            those encoded.
        covalent_share: share whose atoms are farther apart than 0.7 of their covalent radii.
        num_timeouts: comparisons that exceeded the time limit, which count as no match.
    """

    posterior_scale: float
    level: float
    match_rate: float
    covalent_share: float
    num_timeouts: int = 0


def tolerance_curves(
    decode: DecodeFn,
    posteriors: Posteriors,
    crystals: Crystals,
    *,
    pool: WorkerPool,
    posterior_scales: Sequence[float] = (0.0, 1.0),
    levels: Sequence[float] = NOISE_LEVELS,
    timeout_s: float = 3.0,
    seed: int = 0,
) -> list[TolerancePoint]:
    """Decode latents with noise of rising levels, and compare with the crystals that were encoded.

    Args:
        decode: the decoder.
        posteriors: of the crystals.
        crystals: that were encoded.
        pool: processes to compare in.
        posterior_scales: one curve each: the share of the posterior's standard deviation in the
            latents, 0 for the means.
        levels: of the noise, over the spread of each channel.
        timeout_s: limit for one comparison, in seconds.
        seed: of the noise.
    """
    known = [crystals.crystal(index) for index in range(len(crystals))]
    points = []
    for scale, level in product(posterior_scales, levels):
        decoded = decode(posteriors.draw(scale, level=level, seed=seed))
        pairs = list(zip(decoded, known, strict=True))
        matches = match_rates(pairs, pool, tolerances=_STRICT, timeout_s=timeout_s)["match_rate"]
        points.append(
            TolerancePoint(
                posterior_scale=scale,
                level=level,
                match_rate=matches.rate,
                covalent_share=covalent_check(decoded).share,
                num_timeouts=matches.num_timeouts,
            )
        )
    return points
