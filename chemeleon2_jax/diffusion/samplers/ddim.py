"""DDIM (Song et al. 2021): from noise level to noise level by way of x_0 and eps.

With bar and bar' the alphas_cumprod of this step and of the next, less noisy one, the prediction is
noised again to the level bar', partly with the predicted eps and partly with fresh noise:

    x' = sqrt(bar') x_0 + sqrt(1 - bar' - std^2) eps + std noise                   (eq. 12)
    std = eta sqrt((1 - bar') / (1 - bar)) sqrt(1 - bar / bar')                    (eq. 16)

The variances of both add up to 1 - bar', so that every eta keeps the marginals. With eta 0 the
chain is a deterministic map of its first state, with eta 1 std is that of the posterior
q(x' | x, x_0). At the last step bar' is 1, std is 0, and x' is x_0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from chemeleon2_jax.diffusion.gaussian import Level, PredictFn
from chemeleon2_jax.diffusion.sampler import Memory, Sampler, Transition
from chemeleon2_jax.diffusion.schedule import Schedule


class _Step(NamedTuple):
    t: Any
    bar: Any
    bar_next: Any
    std: Any


@dataclass(frozen=True)
class Ddim(Sampler):
    """See above."""

    name = "ddim"

    @property
    def num_drawn(self) -> int:
        """All steps but the last; none with eta 0."""
        return self.steps - 1 if self.eta > 0 else 0

    def timesteps(self, num_steps: int) -> np.ndarray:
        """Take an integer stride where one gives exactly that many steps (the original knows only
        those), and even spacing from 0 otherwise.
        """
        strides = (s for s in range(1, num_steps + 1) if len(range(0, num_steps, s)) == self.steps)
        stride = next(strides, None)
        if stride is not None:
            return np.arange(0, num_steps, stride)
        return np.arange(self.steps) * num_steps // self.steps

    def constants(self, kept: Schedule) -> _Step:
        """Return noise levels and standard deviations. In float32, as the original: 1 - bar / bar'
        cancels where bar is near 1, and log-probabilities hang on the digits that are left.
        """
        bar, bar_next = (np.float32(v) for v in (kept.alphas_cumprod, kept.alphas_cumprod_prev))
        std = self.eta * np.sqrt((1 - bar_next) / (1 - bar)) * np.sqrt(1 - bar / bar_next)
        return _Step(kept.timesteps, bar, bar_next, std)

    def transition(
        self, predict: PredictFn, x: jax.Array, step: Any, *, memory: Memory = ()
    ) -> Transition:
        """Equation 12."""
        prediction = predict(x, Level.of(step.t, step.bar))
        direction = jnp.sqrt(jnp.maximum(1.0 - step.bar_next - step.std**2, 0.0))
        mean = jnp.sqrt(step.bar_next) * prediction.start + direction * prediction.eps
        return Transition(mean, step.std)
