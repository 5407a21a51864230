"""Euler's method along straight lines between x_0 and eps (rectified flow, Liu et al. 2023).

With t the share of noise, spread / (signal + spread), and y = x_t / (signal + spread), the line is

    y = (1 - t) x_0 + t eps,    dy/dt = eps - x_0

A step to t' is y' = y + (t' - t) (eps - x_0), which is (1 - t') x_0 + t' eps: DDIM's step between
the same levels, for every schedule and target. What differs are the levels: evenly spaced in t and
from the last one of training on, where DDIM's strides end below it, which a few steps of a straight
line would not forgive. eta > 0 adds DDIM's noise: a stochastic chain with the same marginals, whose
steps have a log-probability.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chemeleon2_jax.diffusion.sampler import spaced_in_noise
from chemeleon2_jax.diffusion.samplers.ddim import Ddim
from chemeleon2_jax.diffusion.schedule import Schedule


@dataclass(frozen=True)
class Euler(Ddim):
    """See above."""

    name = "euler"

    eta: float = 0.0

    def kept_steps(self, schedule: Schedule) -> np.ndarray:
        """Return even spacing along the line, up to the last step."""
        return spaced_in_noise(self.steps, schedule)
