"""Several rewards as one number for each crystal of a rollout.

For each component: raw values; the floor where a crystal has none; normalised; weighted; summed.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chemeleon2_jax.errors import RewardError
from chemeleon2_jax.metrics.scores import Scores
from chemeleon2_jax.metrics.structure import Geometry, covalent_share, measure, validity
from chemeleon2_jax.rewards.components import NOT_JUDGED, Component, Crystal
from chemeleon2_jax.rewards.normalise import EPSILON, normalise
from chemeleon2_jax.workers import WorkerPool

log = logging.getLogger(__name__)

REQUIREMENTS = ("", "valid", "covalent")
"""What a crystal must be to be judged: anything, or what passes a check of `metrics.structure`."""

_CHUNK_SIZE = 16  # measurements take a millisecond


@dataclass(frozen=True)
class Weighted:
    """A component in a sum.

    Attributes:
        component: the reward.
        weight: of its normalised values.
        normalisation: see `normalise`; "" takes the values as they are.
        floor: raw value of a crystal that has none; None is the lowest that a crystal of the
            rollout got, less the range of what they got (less 1 where all got the same).
    """

    component: Component
    weight: float = 1.0
    normalisation: str = ""
    floor: float | None = None


@dataclass(frozen=True)
class Judged:
    """What became of one component for the crystals of a rollout.

    Attributes:
        scores: raw values and reasons.
        filled: (G,) raw values, with the floor where there is none.
        normalised: (G,) of `filled`.
    """

    scores: Scores
    filled: np.ndarray
    normalised: np.ndarray

    @property
    def failures(self) -> dict[str, int]:
        """Number of crystals that it failed for, by kind of reason."""
        return {k: n for k, n in self.scores.failures.items() if k != NOT_JUDGED}


@dataclass(frozen=True)
class Rewards:
    """The rewards of a rollout.

    Attributes:
        total: (G,) weighted sum of the normalised values, itself normalised.
        raw: (G,) weighted sum of the raw values, with floors.
        components: by name.
        refused: for each crystal, None, or why it was not judged at all.
        valid: (G,) bool, crystals that `metrics.structure.validity` passes.
    """

    total: np.ndarray
    raw: np.ndarray
    components: Mapping[str, Judged]
    refused: tuple[str | None, ...]
    valid: np.ndarray

    def summary(self) -> dict[str, float]:
        """Means and extremes by name; raw ones are of the crystals that have a value."""
        values = {
            "reward": float(self.total.mean()),
            "raw_reward": float(self.raw.mean()),
            "refused": float(sum(reason is not None for reason in self.refused)),
            "valid_share": float(self.valid.mean()),
        }
        for name, judged in self.components.items():
            failures = judged.failures
            known = judged.scores.values[np.isfinite(judged.scores.values)]
            values |= {
                f"{name}_mean": float(known.mean()),
                f"{name}_min": float(known.min()),
                f"{name}_max": float(known.max()),
                f"{name}_normalised": float(judged.normalised.mean()),
                f"{name}_failures": float(sum(failures.values())),
            }
            values |= {f"{name}_failures/{kind}": float(n) for kind, n in failures.items()}
        return values


@dataclass(frozen=True)
class RewardFunction:
    """Weighted rewards, and what a crystal must be to be judged.

    Attributes:
        components: by name.
        normalisation: of the weighted sum.
        require: one of REQUIREMENTS; what fails gets every component's floor.
        eps: see `normalise`.
        pool: worker processes.
    """

    components: Mapping[str, Weighted]
    normalisation: str = ""
    require: str = "valid"
    eps: float = EPSILON
    pool: WorkerPool = field(default_factory=WorkerPool)

    def __post_init__(self) -> None:
        """Check names and numbers."""
        if not self.components:
            raise RewardError("there is no reward: name one or several components")
        if self.require not in REQUIREMENTS:
            names = ", ".join(repr(name) for name in REQUIREMENTS)
            raise RewardError(f"require is {self.require!r}; it is one of {names}")

    def start(self) -> Evaluation:
        """Begin with a rollout."""
        return Evaluation(self)

    def __call__(self, crystals: Sequence[Crystal]) -> Rewards:
        """Judge crystals that are all there.

        Raises:
            RewardError: see `Evaluation.result`.
        """
        with self.start() as evaluation:
            evaluation.add(crystals)
            return evaluation.result()


class Evaluation:
    """The rewards of one rollout, computed in the background as its chunks come."""

    def __init__(self, reward: RewardFunction) -> None:
        self._reward = reward
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rewards")
        self._chunks: list[Future[_Prepared]] = []

    def __enter__(self) -> Evaluation:
        return self

    def __exit__(self, *exception: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def add(self, crystals: Sequence[Crystal]) -> None:
        """Hand over the next crystals; returns at once."""
        self._chunks.append(self._thread.submit(_prepare, self._reward, list(crystals)))

    def result(self) -> Rewards:
        """Wait for all crystals and return their rewards.

        Raises:
            RewardError: no crystal may be judged, or a component failed for all of those that were.
        """
        return self._thread.submit(_finish, self._reward, self._chunks).result()


@dataclass(frozen=True)
class _Prepared:
    refused: list[str | None]
    valid: list[bool]
    entries: dict[str, list[Any]]


def _prepare(reward: RewardFunction, crystals: list[Crystal]) -> _Prepared:
    outcomes = reward.pool.map(measure, crystals, chunk_size=_CHUNK_SIZE)
    geometries = [outcome.value or Geometry(error=outcome.error) for outcome in outcomes]
    valid = validity(geometries)
    reasons: list[str | None] = [geometry.error for geometry in geometries]
    if reward.require == "valid":
        reasons = list(valid.reasons)
    elif reward.require == "covalent":
        covalent = covalent_share(geometries).reasons
        reasons = [a or b for a, b in zip(valid.reasons, covalent, strict=True)]
    judged = [c if why is None else None for c, why in zip(crystals, reasons, strict=True)]
    entries = {
        name: weighted.component.prepare(judged, reward.pool)
        for name, weighted in reward.components.items()
    }
    return _Prepared(reasons, valid.passed.tolist(), entries)


def _finish(reward: RewardFunction, chunks: Sequence[Future[_Prepared]]) -> Rewards:
    parts = [chunk.result() for chunk in chunks]
    refused = tuple(reason for part in parts for reason in part.refused)
    if all(reason is not None for reason in refused):
        raise RewardError(
            f"none of {len(refused)} crystals may be judged: {_most_common(refused)}. Train the "
            "model that is to be fine-tuned for longer, or change rl_module.reward_fn.require"
        )
    components = {}
    for name, weighted in reward.components.items():
        entries = [entry for part in parts for entry in part.entries[name]]
        scores = _without_refused(weighted.component.score(entries, reward.pool), refused)
        components[name] = _judge(name, weighted, scores, refused, reward.eps)
    raw = np.sum([w.weight * components[n].filled for n, w in reward.components.items()], axis=0)
    total = np.sum(
        [w.weight * components[n].normalised for n, w in reward.components.items()], axis=0
    )
    valid = np.array([passed for part in parts for passed in part.valid], bool)
    total = normalise(total, reward.normalisation, eps=reward.eps)
    return Rewards(total, raw, components, refused, valid)


def _without_refused(scores: Scores, refused: Sequence[str | None]) -> Scores:
    """Give crystals that were not judged that as their reason."""
    reasons = [
        reason if why is None else NOT_JUDGED
        for reason, why in zip(scores.reasons, refused, strict=True)
    ]
    return Scores.of(scores.values, reasons)


def _judge(
    name: str, weighted: Weighted, scores: Scores, refused: Sequence[str | None], eps: float
) -> Judged:
    known = scores.values[np.isfinite(scores.values)]
    if not len(known):
        reasons = [r for r, why in zip(scores.reasons, refused, strict=True) if why is None]
        raise RewardError(
            f"the reward {name!r} failed for all {len(reasons)} crystals that it was to judge: "
            f"{_most_common(reasons)}"
        )
    floor = weighted.floor
    if floor is None:
        floor = float(known.min() - (np.ptp(known) or 1.0))
    filled = np.where(np.isfinite(scores.values), scores.values, floor)
    return Judged(scores, filled, normalise(filled, weighted.normalisation, eps=eps))


def _most_common(reasons: Sequence[str | None]) -> str:
    """The three most frequent reasons, with their numbers."""
    counts = Counter(reason for reason in reasons if reason is not None).most_common(3)
    return "; ".join(f"{reason} ({count})" for reason, count in counts)
