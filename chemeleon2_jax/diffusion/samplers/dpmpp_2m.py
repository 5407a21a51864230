"""DPM-Solver++(2M) (Lu et al. 2022): second order from one evaluation a step.

With signal a, spread b and lambda = log(a / b), the probability-flow ODE is linear in x but for the
prediction of x_0. From one level to the next, h = lambda' - lambda apart,

    x' = b' / b x + a' (1 - exp(-h)) D                                     (eq. 9 and algorithm 2)
    D  = x_0 + h / (2 h_before) (x_0 - x_0 of the step before)

D follows the line through the last two predictions. The first step has none before it, and the last
one, to b' = 0, has an infinite h: both take D = x_0.

eta > 0 adds noise without moving the marginals (the SDE form for eta = 1, Lu et al. 2022, app. B):

    x' = b' / b exp(-eta h) x + a' (1 - exp(-(1 + eta) h)) D + b' sqrt(1 - exp(-2 eta h)) noise
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from chemeleon2_jax.diffusion.gaussian import Level, PredictFn
from chemeleon2_jax.diffusion.sampler import Memory, Sampler, Transition, spaced_in_noise
from chemeleon2_jax.diffusion.schedule import Schedule


class _Step(NamedTuple):
    t: Any
    bar: Any
    state_factor: Any
    start_factor: Any
    slope: Any  # h / (2 h_before); 0 where D is x_0
    std: Any


@dataclass(frozen=True)
class DpmPlusPlus2M(Sampler):
    """See above."""

    name = "dpmpp_2m"
    num_remembered = 1  # x_0 of the step before

    eta: float = 0.0

    @property
    def num_drawn(self) -> int:
        """All steps but the last; none with eta 0."""
        return self.steps - 1 if self.eta > 0 else 0

    def kept_steps(self, schedule: Schedule) -> np.ndarray:
        """Return even spacing in the share of noise, up to the last step: a last level close to 0
        would be one long step in lambda away, and the line through the predictions before it would
        lead far off.
        """
        return spaced_in_noise(self.steps, schedule)

    def constants(self, kept: Schedule) -> _Step:
        """Return the factors of each step, in float64 before they are cast: h cancels."""
        bar = kept.alphas_cumprod
        signal, spread = np.sqrt(bar), np.sqrt(1.0 - bar)
        log_ratio = np.log(signal / spread)
        # Ascending in time: the next, less noisy level is the one before; the first goes to x_0.
        length = np.append(np.inf, log_ratio[:-1] - log_ratio[1:])
        length_before = np.append(length[1:], np.inf)
        signal_next, spread_next = np.append(1.0, signal[:-1]), np.append(0.0, spread[:-1])
        slope = np.zeros(len(bar))
        inner = slice(1, len(bar) - 1)
        slope[inner] = length[inner] / (2.0 * length_before[inner])
        shrink = np.append(0.0, np.exp(-self.eta * length[1:]))
        return _Step(
            t=kept.timesteps,
            bar=bar,
            state_factor=spread_next / spread * shrink,
            start_factor=signal_next * (1.0 - np.exp(-(1.0 + self.eta) * length)),
            slope=slope,
            std=spread_next * np.sqrt(1.0 - shrink**2),
        )

    def transition(
        self, predict: PredictFn, x: jax.Array, step: Any, *, memory: Memory = ()
    ) -> Transition:
        """Return the next state, and x_0 for the step after it."""
        start = predict(x, Level.of(step.t, step.bar)).start
        (start_before,) = memory
        line = start + step.slope * (start - start_before)
        mean = step.state_factor * x + step.start_factor * line
        return Transition(mean, step.std, (start,))
