"""UniPC (Zhao et al. 2023): a predictor and a corrector of second order, one evaluation a step.

With signal a, spread b and lambda = log(a / b), the probability-flow ODE is linear in x but for the
prediction of x_0. From one level to the next, h = lambda' - lambda apart,

    x' = b' / b x + a' integral of exp(s - h) x_0(lambda + s) over s from 0 to h

The predictor (UniP-2) puts a line through the last two predictions of x_0 in place of x_0(lambda).
At the predicted x' the model predicts once more, and the corrector (UniC-2) repeats the step with
the parabola through all three; the next predictor starts from the corrected x' and takes the same
prediction. The paper's coefficients are those integrals, which its B(h) leaves as they are where
they are solved for exactly:

    integral of exp(s - h) s^k / h^k:   w_0 = 1 - exp(-h),   w_k = 1 - k w_(k-1) / h

The first step has one prediction before it, and its corrector two. The last step, to b' = 0, where
no model was trained, goes to x_0.
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
    """Factors of the corrected state and of the next one; each of `*_starts` is that of x_0 here,
    one and two steps before.
    """

    t: Any
    bar: Any
    corrected_state: Any
    corrected_before: Any
    corrected_starts: tuple[Any, Any, Any]
    next_state: Any
    next_starts: tuple[Any, Any]


@dataclass(frozen=True)
class UniPC(Sampler):
    """See above."""

    name = "unipc"
    num_remembered = 3  # corrected state of the step before; x_0 of the last two steps

    eta: float = 0.0

    def kept_steps(self, schedule: Schedule) -> np.ndarray:
        """Return even spacing in the share of noise, up to the last step."""
        return spaced_in_noise(self.steps, schedule)

    def constants(self, kept: Schedule) -> _Step:
        """Return the factors of each step, in float64 before they are cast: h cancels."""
        signal, spread = np.sqrt(kept.alphas_cumprod), np.sqrt(1.0 - kept.alphas_cumprod)
        log_ratio = np.log(signal / spread)
        count = len(signal)
        corrected, following = np.zeros((3, count)), np.zeros((2, count))
        # Ascending in time: the next, less noisy level is the one before.
        for k in range(count - 1):
            step = log_ratio[k + 1], log_ratio[k]
            corrected[:, k][: count - k] = signal[k] * _weights(log_ratio[k : k + 3], *step)
            following[:, k + 1][: count - k - 1] = signal[k] * _weights(
                log_ratio[k + 1 : k + 3], *step
            )
        following[0, 0] = 1.0
        shrink = spread[:-1] / spread[1:]
        is_first = np.arange(count) == count - 1
        return _Step(
            t=kept.timesteps,
            bar=kept.alphas_cumprod,
            corrected_state=is_first.astype(np.float64),
            corrected_before=np.append(shrink, 0.0),
            corrected_starts=(corrected[0], corrected[1], corrected[2]),
            next_state=np.append(0.0, shrink),
            next_starts=(following[0], following[1]),
        )

    def transition(
        self, predict: PredictFn, x: jax.Array, step: Any, *, memory: Memory = ()
    ) -> Transition:
        """Correct the state, and predict the next one; nothing is drawn."""
        before, start_before, start_earlier = memory
        start = predict(x, Level.of(step.t, step.bar)).start
        now, last, earlier = step.corrected_starts
        corrected = step.corrected_state * x + step.corrected_before * before
        corrected += now * start + last * start_before + earlier * start_earlier
        now, last = step.next_starts
        following = step.next_state * corrected + now * start + last * start_before
        return Transition(following, memory=(corrected, start, start_before))


def _weights(points: np.ndarray, begin: float, end: float) -> np.ndarray:
    """Return the integral of exp(lambda - end) times each Lagrange polynomial through `points` (P,)
    over lambda from `begin` to `end`: (P,).
    """
    length = end - begin
    moments = [-np.expm1(-length)]
    for power in range(1, len(points)):
        moments.append(1.0 - power * moments[-1] / length)
    # The weights integrate each power of (lambda - begin) / h as its moment.
    powers = np.vander((points - begin) / length, increasing=True)  # (P, P)
    return np.linalg.solve(powers.T, np.array(moments))
