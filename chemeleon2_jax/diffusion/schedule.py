"""Noise schedules of the diffusion chain, in float64 (Ho et al. 2020; Nichol and Dhariwal 2021).

Free of JAX: checks of a config read the names of the schedules.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from chemeleon2_jax.diffusion.targets import TARGETS
from chemeleon2_jax.models.sizes import DiffusionConfig


def linear_betas(num_steps: int) -> np.ndarray:
    """Return betas (K,) from 1e-4 to 0.02 for 1000 steps, scaled for others."""
    scale = 1000.0 / num_steps
    return np.linspace(scale * 1e-4, scale * 0.02, num_steps, dtype=np.float64)


def cosine_betas(num_steps: int) -> np.ndarray:
    """Return betas (K,) whose alphas_cumprod follow a squared cosine; at most 0.999."""
    edges = np.cos((np.arange(num_steps + 1) / num_steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1.0 - edges[1:] / edges[:-1], 0.999)


def straight_line_betas(num_steps: int) -> np.ndarray:
    """Return betas (K,) of the straight line (1 - t) x_0 + t eps at t = (k + 1/2) / K.

    The line, divided by sqrt((1 - t)^2 + t^2), preserves the variance: rectified flow (Liu et al.
    2023) is a chain like the others, whose input keeps its scale at all times.
    """
    time = (np.arange(num_steps) + 0.5) / num_steps
    bar = (1.0 - time) ** 2 / ((1.0 - time) ** 2 + time**2)
    return 1.0 - bar / np.append(1.0, bar[:-1])


SCHEDULES = {
    "linear": linear_betas,
    "squaredcos_cap_v2": cosine_betas,
    "straight_line": straight_line_betas,
}


def make_betas(name: str, num_steps: int) -> np.ndarray:
    """Return the variances beta_t, (K,) float64.

    Raises:
        ValueError: unknown name.
    """
    if name not in SCHEDULES:
        raise ValueError(
            f"diffusion schedule {name!r} is unknown; choose one of {', '.join(SCHEDULES)}"
        )
    return SCHEDULES[name](num_steps)


@dataclass(frozen=True)
class Schedule:
    """Betas and the quantities that follow from them; all (K,) float64.

    Attributes:
        betas: variances of the kept steps.
        timesteps: (K,) int64, ascending: the time of each kept step in the training chain, which
            is the model's input.
    """

    betas: np.ndarray
    timesteps: np.ndarray

    @staticmethod
    def make(name: str = "linear", num_steps: int = 1000) -> Schedule:
        """Return the schedule of a training chain."""
        return Schedule(make_betas(name, num_steps), np.arange(num_steps))

    @staticmethod
    def of(config: DiffusionConfig) -> Schedule:
        """Return the schedule of a model's training chain.

        Raises:
            ValueError: unknown name of a schedule or a target.
        """
        if config.target not in TARGETS:
            raise ValueError(
                f"diffusion target {config.target!r} is unknown; choose one of {', '.join(TARGETS)}"
            )
        return Schedule.make(config.schedule, config.num_steps)

    def respace(self, timesteps: np.ndarray) -> Schedule:
        """Keep some steps only; their alphas_cumprod stay, and betas are recomputed from these."""
        kept = self.alphas_cumprod[timesteps]
        return Schedule(1.0 - kept / np.append(1.0, kept[:-1]), self.timesteps[timesteps])

    @property
    def num_steps(self) -> int:
        """K."""
        return len(self.betas)

    @cached_property
    def alphas_cumprod(self) -> np.ndarray:
        """Product of 1 - beta up to each step."""
        return np.cumprod(1.0 - self.betas)

    @cached_property
    def alphas_cumprod_prev(self) -> np.ndarray:
        """alphas_cumprod of the previous step, 1 at the first."""
        return np.append(1.0, self.alphas_cumprod[:-1])

    @cached_property
    def posterior_variance(self) -> np.ndarray:
        """Variance of q(x_{t-1} | x_t, x_0); 0 at the first step."""
        return self.betas * (1.0 - self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)

    @cached_property
    def posterior_log_variance_clipped(self) -> np.ndarray:
        """log posterior_variance; at the first step, whose variance is 0, that of the second."""
        variance = self.posterior_variance
        first = variance[1] if len(variance) > 1 else self.betas[0]
        return np.log(np.append(first, variance[1:]))

    @cached_property
    def fixed_large_log_variance(self) -> np.ndarray:
        """log beta; at the first step the clipped posterior's value. The variance of models that do
        not learn it.
        """
        return np.append(self.posterior_log_variance_clipped[0], np.log(self.betas[1:]))

    @cached_property
    def posterior_mean_coef1(self) -> np.ndarray:
        """Factor of x_0 in the mean of q(x_{t-1} | x_t, x_0)."""
        return self.betas * np.sqrt(self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)

    @cached_property
    def posterior_mean_coef2(self) -> np.ndarray:
        """Factor of x_t in the mean of q(x_{t-1} | x_t, x_0)."""
        previous = 1.0 - self.alphas_cumprod_prev
        return previous * np.sqrt(1.0 - self.betas) / (1.0 - self.alphas_cumprod)
