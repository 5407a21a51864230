"""Several rewards as one number for each crystal of a rollout.

For each component: raw values; the floor where a crystal has none; normalised; weighted; summed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from absl import logging

from chemeleon2_jax.common.scores import Scores
from chemeleon2_jax.rewards.component import NOT_JUDGED, Component
from chemeleon2_jax.rewards.normalise import normalise


@dataclass(frozen=True)
class Weighted:
    """A component in a sum.

    Attributes:
        component: the reward.
        weight: of its normalised values.
        normalisation: see `normalise`; "" takes the values as they are.
        floor: raw value of a crystal that has none. None is the worst value of the rollout, less
            the range of its values (1 where all are the same). A floor that is better than the best
            value counts as None: no crystal is to be broken for it.
    """

    component: Component
    weight: float = 1.0
    normalisation: str = ""
    floor: float | None = None


@dataclass(frozen=True)
class Judged:
    """One component's values for the crystals of a rollout.

    Attributes:
        scores: raw values and reasons.
        filled: (G,) raw values, with the floor where there is none.
        normalised: (G,) of `filled`.
        floor: the value of crystals that have none.
    """

    scores: Scores
    filled: np.ndarray
    normalised: np.ndarray
    floor: float

    @property
    def failures(self) -> dict[str, int]:
        """Number of crystals that it failed for, by kind of reason."""
        return {k: n for k, n in self.scores.failures.items() if k != NOT_JUDGED}

    @property
    def reasons(self) -> str:
        """The most frequent reasons in full, with their numbers."""
        return list_most_common([reason for reason in self.scores.reasons if reason != NOT_JUDGED])

    def summary(self) -> dict[str, float]:
        """Mean and extremes of the raw values that there are, and the failures."""
        known = self.scores.values[np.isfinite(self.scores.values)]
        known = known if len(known) else np.array([self.floor])
        failures = self.failures
        return {
            "mean": float(known.mean()),
            "min": float(known.min()),
            "max": float(known.max()),
            "normalised": float(self.normalised.mean()),
            "failures": float(sum(failures.values())),
            **{f"failures/{kind}": float(count) for kind, count in failures.items()},
        }


@dataclass(frozen=True)
class Rewards:
    """The rewards of a rollout.

    Attributes:
        total: (G,) weighted sum of the normalised values, itself normalised.
        raw: (G,) weighted sum of the raw values, with floors.
        components: by name.
        refused: for each crystal, None, or why it was not judged at all.
        valid: (G,) bool, crystals that `metrics.structure.validity_check` passes.
        problem: None, or why these rewards are of no use: no crystal may be judged, or a component
            failed for all that were.
    """

    total: np.ndarray
    raw: np.ndarray
    components: Mapping[str, Judged]
    refused: tuple[str | None, ...]
    valid: np.ndarray
    problem: str | None = None

    def summary(self) -> dict[str, float]:
        """Means and extremes by name; raw ones are of the crystals that have a value."""
        return {
            "reward": float(self.total.mean()),
            "raw_reward": float(self.raw.mean()),
            "refused": float(sum(reason is not None for reason in self.refused)),
            "valid_share": float(self.valid.mean()),
            **{
                f"{name}_{key}": value
                for name, judged in self.components.items()
                for key, value in judged.summary().items()
            },
        }


def judge(
    name: str, weighted: Weighted, scores: Scores, *, frozen_floor: float | None, eps: float
) -> Judged:
    """Fill in the floor and normalise.

    Args:
        name: of the reward, for a warning.
        weighted: the component, its floor and normalisation.
        scores: raw values (G,) and reasons.
        frozen_floor: the floor that an earlier rollout ended up with, which counts again.
        eps: see `normalise`.
    """
    known = scores.values[np.isfinite(scores.values)]
    floor = weighted.floor if frozen_floor is None else frozen_floor
    if len(known):
        sign = -1.0 if weighted.weight < 0 else 1.0
        automatic = sign * float((sign * known).min() - (np.ptp(known) or 1.0))
        if floor is None:
            floor = automatic
        elif sign * floor > (sign * known).max():
            _warn_of_floor(name, floor)
            floor = automatic
    floor = 0.0 if floor is None else floor
    filled = np.where(np.isfinite(scores.values), scores.values, floor)
    return Judged(scores, filled, normalise(filled, weighted.normalisation, eps=eps), floor)


def list_most_common(reasons: Sequence[str | None]) -> str:
    """Return the three most frequent reasons, with their numbers."""
    counts = Counter(reason for reason in reasons if reason is not None).most_common(3)
    return "; ".join(f"{reason} ({count})" for reason, count in counts)


@cache
def _warn_of_floor(name: str, floor: float) -> None:
    """Warn, once."""
    logging.warning(
        "rl_module.reward_fn.%s.floor is %g, better than the best crystal of a rollout: crystals "
        "without a value get less than the worst one instead. Give another floor",
        *(name, floor),
    )
