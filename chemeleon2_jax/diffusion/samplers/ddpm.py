"""DDPM (Ho et al. 2020): ancestral sampling from the posterior at the predicted x_0.

The state before x_t, given x_0, is Gaussian (eq. 6 and 7):

    q(x_{t-1} | x_t, x_0) = N(coef1 x_0 + coef2 x_t, variance)
    coef1 = sqrt(bar_{t-1}) beta_t / (1 - bar_t)
    coef2 = sqrt(1 - beta_t) (1 - bar_{t-1}) / (1 - bar_t)
    variance = beta_t (1 - bar_{t-1}) / (1 - bar_t)

A model that learns its variance goes between log variance and log beta_t (Nichol and Dhariwal 2021,
eq. 15); another takes beta_t. With fewer steps than in training, betas are those of the respaced
schedule. The last step goes to the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from chemeleon2_jax.diffusion.gaussian import Level, PredictFn, interpolate_log_variance
from chemeleon2_jax.diffusion.sampler import Memory, Sampler, Transition
from chemeleon2_jax.diffusion.schedule import Schedule


class _Step(NamedTuple):
    t: Any
    bar: Any
    coef1: Any
    coef2: Any
    log_beta: Any
    log_posterior: Any
    log_fixed: Any


@dataclass(frozen=True)
class Ddpm(Sampler):
    """See above."""

    name = "ddpm"
    reads_variance = True

    @property
    def num_drawn(self) -> int:
        """All steps but the last."""
        return self.steps - 1

    def constants(self, kept: Schedule) -> _Step:
        """Return noise levels, the factors of the mean and the ends of the log variance."""
        return _Step(
            t=kept.timesteps,
            bar=kept.alphas_cumprod,
            coef1=kept.posterior_mean_coef1,
            coef2=kept.posterior_mean_coef2,
            log_beta=np.log(kept.betas),
            log_posterior=kept.posterior_log_variance_clipped,
            log_fixed=kept.fixed_large_log_variance,
        )

    def transition(
        self, predict: PredictFn, x: jax.Array, step: Any, *, memory: Memory = ()
    ) -> Transition:
        """Return the posterior at the predicted x_0."""
        prediction = predict(x, Level.of(step.t, step.bar))
        mean = step.coef1 * prediction.start + step.coef2 * x
        log_variance = step.log_fixed
        if prediction.variance_values is not None:
            log_variance = interpolate_log_variance(
                prediction.variance_values, step.log_beta, step.log_posterior
            )
        return Transition(mean, jnp.exp(0.5 * log_variance))
