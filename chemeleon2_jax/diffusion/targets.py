"""What a model predicts, by name: how x_0 and eps follow from it, and what it learns from them.

Every noise level is x_t = signal x_0 + spread eps. A target is a second combination of x_0 and eps,
so that both follow from it and x_t. A new target is an entry of `TARGETS`. It is arithmetic alone,
free of JAX: checks of a config read the names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

Array = Any


class Target(NamedTuple):
    """A target of the denoiser. Arrays are (R, T, L), or broadcast to it.

    Attributes:
        of: (x_0, eps, signal, spread) -> the target, what the prediction is compared with.
        read: (prediction, x_t, signal, spread) -> (x_0, eps).
    """

    of: Callable[[Array, Array, Array, Array], Array]
    read: Callable[[Array, Array, Array, Array], tuple[Array, Array]]


def _read_flow(flow: Array, x: Array, signal: Array, spread: Array) -> tuple[Array, Array]:
    start = (x - spread * flow) / (signal + spread)
    return start, start + flow


TARGETS = {
    "eps": Target(
        of=lambda start, eps, signal, spread: eps,
        read=lambda eps, x, signal, spread: ((x - spread * eps) / signal, eps),
    ),
    "x_0": Target(
        of=lambda start, eps, signal, spread: start,
        read=lambda start, x, signal, spread: (start, (x - signal * start) / spread),
    ),
    # Salimans and Ho 2022: orthogonal to x_t, so that neither end of the chain divides by zero.
    "v": Target(
        of=lambda start, eps, signal, spread: signal * eps - spread * start,
        read=lambda v, x, signal, spread: (signal * x - spread * v, signal * v + spread * x),
    ),
    # The velocity of the straight line between x_0 and eps (Liu et al. 2023, Lipman et al. 2023).
    # It does not depend on how x_t is scaled: see `schedule.straight_line_betas`.
    "flow": Target(
        of=lambda start, eps, signal, spread: eps - start,
        read=_read_flow,
    ),
}
