"""The contract of a sampler: steps -> transitions over a denoise function.

A chain goes through some of the noise levels that a model is trained on, the noisiest first. The
sampler says which, and gives the Gaussian of the next state at each. Sampling draws from it
(`chain`); reinforcement learning scores a drawn state under it (`rl.rollout`). A sampler is one
file in `samplers/`, which explains its algebra, and one line in `samplers/__init__.py`. Nothing
else names it. `samplers/ddim.py` is the shortest example.

Shapes: R rows, T tokens, L latent, K steps of the chain.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from chemeleon2_jax.diffusion.gaussian import PredictFn
from chemeleon2_jax.diffusion.schedule import Schedule
from chemeleon2_jax.rows.rows import Rows, mean_over_crystal, slot_matrix

Memory = tuple[jax.Array, ...]


class Transition(NamedTuple):
    """The Gaussian of the next state, and the sampler's memory for the next step.

    Attributes:
        mean: (R, T, L).
        std: broadcasts to `mean`; 0 where nothing is drawn.
        memory: `Sampler.num_remembered` arrays (R, T, L).
    """

    mean: jax.Array
    std: jax.Array | float = 0.0
    memory: Memory = ()


@dataclass(frozen=True)
class Sampler(ABC):
    """A sampler with its options; hashable, so that compiled programs can be kept by it.

    Attributes:
        name: in the registry.
        reads_variance: whether its transitions use `Prediction.variance_values`. A model with an
            interleaved variance has them in padded rows alone.
        num_remembered: arrays (R, T, L) that it carries from step to step, as multistep solvers
            do. Zeros at the first step.
        steps: K.
        eta: share of the noise that a step adds; a sampler without this option ignores it.
    """

    name: ClassVar[str]
    reads_variance: ClassVar[bool] = False
    num_remembered: ClassVar[int] = 0

    steps: int = 50
    eta: float = 1.0

    def __post_init__(self) -> None:
        """Check the options. A sampler with limits of its own extends this."""
        if self.steps < 1 or not 0.0 <= self.eta < math.inf:
            raise ValueError(f"steps {self.steps} must be at least 1 and eta {self.eta} at least 0")

    @property
    def num_drawn(self) -> int:
        """Leading steps that draw noise; the others go to the mean. 0 is a deterministic sampler.

        A step that draws has a log-probability, unless the sampler remembers: then its Gaussian
        does not follow from the state alone.
        """
        return 0

    def timesteps(self, num_steps: int) -> np.ndarray:
        """Return the times (K,) int64, ascending, that are kept out of `num_steps` >= K: here
        rounded even spacing with both ends.
        """
        spacing = (num_steps - 1) / (self.steps - 1) if self.steps > 1 else 1.0
        return np.array([round(i * spacing) for i in range(self.steps)])

    def kept_steps(self, schedule: Schedule) -> np.ndarray:
        """Return the steps (K,) int64, ascending, of a training schedule that the chain goes
        through: here `timesteps`, which know its length alone.
        """
        return self.timesteps(schedule.num_steps)

    @abstractmethod
    def constants(self, kept: Schedule) -> Any:
        """Return the constants of all steps: a NamedTuple of arrays (K,), ascending in time.

        Args:
            kept: the training schedule, respaced to `kept_steps`.
        """

    @abstractmethod
    def transition(
        self, predict: PredictFn, x: jax.Array, step: Any, *, memory: Memory = ()
    ) -> Transition:
        """Return the Gaussian of the next state.

        Args:
            predict: (x, noise level) -> x_0, eps and variance values; may be called several times,
                also at states between two of the chain. NaN for crystals that are not finite.
            x: (R, T, L) the state.
            step: one step's `constants`, scalars.
            memory: of the step before.
        """


NOISE_IN_SPACING = 0.7
"""Weight of noise against time in `spaced_in_noise`."""


def spaced_in_noise(steps: int, schedule: Schedule) -> np.ndarray:
    """Return `steps` steps (K,) of a schedule that end at its last, evenly spaced in a mean of time
    and of the share of noise, spread / (signal + spread), both from 0 to 1.

    The chain starts from pure noise where training had it, and its last step, to clean latents, is
    as long as the others ("trailing", Lin et al. 2024). On a straight line time is the share of
    noise. The linear schedule hurries through the small noise levels: of four steps even in time
    the last starts at a spread of 0.69, and the latents come out a quarter too small. Even in noise
    the first step is so long that they come out a sixth too large, since x_0 hardly follows from
    eps there.
    """
    signal, spread = np.sqrt(schedule.alphas_cumprod), np.sqrt(1.0 - schedule.alphas_cumprod)
    noise = spread / (signal + spread)
    time = (np.arange(schedule.num_steps) + 1) / schedule.num_steps
    position = NOISE_IN_SPACING * noise / noise[-1] + (1.0 - NOISE_IN_SPACING) * time
    order = np.arange(steps)
    nearest = np.abs(position[:, None] - (order + 1) / steps).argmin(0)
    distinct = np.maximum.accumulate(nearest - order) + order
    return np.minimum(distinct, schedule.num_steps - steps + order)


def step_constants(schedule: Schedule, sampler: Sampler) -> Any:
    """Return the constants of all steps in sampling order, the noisiest first: (K,) each, float32
    (times int32).

    Raises:
        ValueError: more steps than the schedule has.
    """
    if sampler.steps > schedule.num_steps:
        raise ValueError(f"a sampler takes 1 to {schedule.num_steps} steps, not {sampler.steps}")
    kept = schedule.respace(sampler.kept_steps(schedule))

    def in_order(values: np.ndarray) -> np.ndarray:
        is_time = np.issubdtype(values.dtype, np.integer)
        return np.asarray(values[::-1], np.int32 if is_time else np.float32)

    return jax.tree.map(in_order, sampler.constants(kept))


def log_probability(transition: Transition, state: jax.Array, rows: Rows) -> jax.Array:
    """Mean over a crystal's atoms and L of the log density of `state` (R, T, L): (R, S). The std
    must not be 0.
    """
    std = jnp.broadcast_to(transition.std, state.shape)
    density = -0.5 * ((state - transition.mean) / std) ** 2 - jnp.log(std) - 0.5 * np.log(2 * np.pi)
    means = mean_over_crystal(rows, slot_matrix(rows), density.mean(-1, keepdims=True))
    return means[..., 0]
