"""Heun's method along the lines between x_0 and eps: second order, two evaluations a step.

In the coordinates of `euler` (y and its time t), Euler's step to t' is a first guess, and the step
goes with the mean of the velocities at both ends:

    y_guess = y + (t' - t) v(y, t)
    y'      = y + (t' - t) (v(y, t) + v(y_guess, t')) / 2

The last step, to t' = 0, where no model was trained, is Euler's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from chemeleon2_jax.diffusion.gaussian import Level, PredictFn
from chemeleon2_jax.diffusion.sampler import Memory, Sampler, Transition, spaced_in_noise
from chemeleon2_jax.diffusion.schedule import Schedule


class _Step(NamedTuple):
    t: Any
    bar: Any
    t_next: Any
    bar_next: Any
    time: Any
    time_next: Any
    scale: Any
    scale_next: Any
    is_last: Any


@dataclass(frozen=True)
class Heun(Sampler):
    """See above."""

    name = "heun"

    eta: float = 0.0

    def kept_steps(self, schedule: Schedule) -> np.ndarray:
        """Return even spacing along the line, up to the last step."""
        return spaced_in_noise(self.steps, schedule)

    def constants(self, kept: Schedule) -> _Step:
        """Return the levels at both ends of each step; the last step's own level repeats."""
        bar = kept.alphas_cumprod
        before = np.maximum(np.arange(kept.num_steps) - 1, 0)
        is_last = np.arange(kept.num_steps) == 0
        scale = np.sqrt(bar) + np.sqrt(1.0 - bar)
        time = np.sqrt(1.0 - bar) / scale
        return _Step(
            t=kept.timesteps,
            bar=bar,
            t_next=kept.timesteps[before],
            bar_next=bar[before],
            time=time,
            time_next=np.where(is_last, 0.0, time[before]),
            scale=scale,
            scale_next=np.where(is_last, 1.0, scale[before]),
            is_last=is_last.astype(np.float32),
        )

    def transition(
        self, predict: PredictFn, x: jax.Array, step: Any, *, memory: Memory = ()
    ) -> Transition:
        """Return the corrected step; nothing is drawn."""
        at_start = predict(x, Level.of(step.t, step.bar))
        velocity = at_start.eps - at_start.start
        y, length = x / step.scale, step.time_next - step.time
        next_level = Level.of(step.t_next, step.bar_next)
        guess = predict(step.scale_next * (y + length * velocity), next_level)
        mean = 0.5 * (velocity + guess.eps - guess.start)
        chosen = jnp.where(step.is_last > 0, velocity, mean)
        return Transition(step.scale_next * (y + length * chosen))
