"""Several rewards as one number for each crystal of a rollout.

For each component: raw values; the floor where a crystal has none; normalised; weighted; summed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from absl import logging

from chemeleon2_jax.common.errors import RewardError
from chemeleon2_jax.common.scores import Scores
from chemeleon2_jax.crystals.geometry import Geometry, measure
from chemeleon2_jax.metrics.structure import covalent_check, validity_check
from chemeleon2_jax.rewards.components import NOT_JUDGED, Component, Crystal
from chemeleon2_jax.rewards.normalise import EPSILON, normalise
from chemeleon2_jax.workers import Background, WorkerPool

REQUIREMENTS = ("", "valid", "covalent")
"""What a crystal must be to be judged: anything, or what passes a check of `metrics.structure`."""

_ATTEMPTS, _ATTEMPT_S = 100, 0.05  # to end what is being judged

_CHUNK_SIZE = 16  # measurements take a millisecond


@dataclass(frozen=True)
class Weighted:
    """A component in a sum.

    Attributes:
        component: the reward.
        weight: of its normalised values.
        normalisation: see `normalise`; "" takes the values as they are.
        floor: raw value of a crystal that has none; None is worse than the worst that a crystal
            of the rollout got, by the range of what they got (by 1 where all got the same). So is
            one that would be better than the best: crystals are not to be broken for it.
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
        floor: what crystals without a value got.
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
        return _most_common([reason for reason in self.scores.reasons if reason != NOT_JUDGED])


@dataclass(frozen=True)
class Rewards:
    """The rewards of a rollout.

    Attributes:
        total: (G,) weighted sum of the normalised values, itself normalised.
        raw: (G,) weighted sum of the raw values, with floors.
        components: by name.
        refused: for each crystal, None, or why it was not judged at all.
        valid: (G,) bool, crystals that `metrics.structure.validity_check` passes.
        problem: None, or why these rewards tell nothing: no crystal may be judged, or a component
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
        values = {
            "reward": float(self.total.mean()),
            "raw_reward": float(self.raw.mean()),
            "refused": float(sum(reason is not None for reason in self.refused)),
            "valid_share": float(self.valid.mean()),
        }
        for name, judged in self.components.items():
            failures = judged.failures
            known = judged.scores.values[np.isfinite(judged.scores.values)]
            known = known if len(known) else np.array([judged.floor])
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

    def start(self, floors: Mapping[str, float] | None = None) -> Evaluation:
        """Begin with a rollout; `floors` are taken instead of the components' own."""
        return Evaluation(self, floors or {})

    def __call__(
        self, crystals: Sequence[Crystal], floors: Mapping[str, float] | None = None
    ) -> Rewards:
        """Judge crystals that are all there.

        Raises:
            RewardError: they tell nothing; see `Rewards.problem`.
        """
        with self.start(floors) as evaluation:
            evaluation.add(crystals)
            rewards = evaluation.result()
        if rewards.problem is not None:
            raise RewardError(rewards.problem)
        return rewards


class Evaluation:
    """The rewards of one rollout, computed in the background as its chunks come.

    Leaving its context by an exception, such as Ctrl-C, does not wait for what is being judged.
    """

    def __init__(self, reward: RewardFunction, floors: Mapping[str, float]) -> None:
        self._reward, self._floors = reward, floors
        self._thread = Background()
        self._chunks: list[Future[_Prepared]] = []

    def __enter__(self) -> Evaluation:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.stop()
        if kind is None:
            return
        # Again and again: the thread may be between two maps. What is no map is soon done.
        for _attempt in range(_ATTEMPTS):
            self._reward.pool.cancel()
            if self._thread.join(_ATTEMPT_S):
                break

    def add(self, crystals: Sequence[Crystal]) -> None:
        """Hand over the next crystals; returns at once."""
        given = list(crystals)
        self._chunks.append(self._thread.submit(lambda: _prepare(self._reward, given)))

    def result(self) -> Rewards:
        """Wait for all crystals and return their rewards.

        Raises:
            RewardError: a component cannot judge at all: its function cannot be run.
        """
        future = self._thread.submit(lambda: _finish(self._reward, self._chunks, self._floors))
        return future.result()


@dataclass(frozen=True)
class _Prepared:
    refused: list[str | None]
    valid: list[bool]
    entries: dict[str, list[Any]]


def _prepare(reward: RewardFunction, crystals: list[Crystal]) -> _Prepared:
    outcomes = reward.pool.map(measure, crystals, chunk_size=_CHUNK_SIZE)
    geometries = [outcome.value or Geometry(error=outcome.error) for outcome in outcomes]
    valid = validity_check(geometries)
    reasons: list[str | None] = [geometry.error for geometry in geometries]
    if reward.require == "valid":
        reasons = list(valid.reasons)
    elif reward.require == "covalent":
        covalent = covalent_check(geometries).reasons
        reasons = [a or b for a, b in zip(valid.reasons, covalent, strict=True)]
    judged = [c if why is None else None for c, why in zip(crystals, reasons, strict=True)]
    entries = {
        name: weighted.component.prepare(judged, reward.pool)
        for name, weighted in reward.components.items()
    }
    return _Prepared(reasons, valid.passed.tolist(), entries)


def _finish(
    reward: RewardFunction, chunks: Sequence[Future[_Prepared]], floors: Mapping[str, float]
) -> Rewards:
    parts = [chunk.result() for chunk in chunks]
    refused = tuple(reason for part in parts for reason in part.refused)
    problem = None
    if all(reason is not None for reason in refused):
        problem = (
            f"none of {len(refused)} crystals may be judged: {_most_common(refused)}. Train the "
            "model that is to be fine-tuned for longer, or change rl_module.reward_fn.require"
        )
    components = {}
    for name, weighted in reward.components.items():
        entries = [entry for part in parts for entry in part.entries[name]]
        scores = _without_refused(weighted.component.score(entries, reward.pool), refused)
        judged = _judge(name, weighted, scores, floors.get(name), reward.eps)
        if problem is None and not np.isfinite(scores.values).any():
            count = sum(why is None for why in refused)
            problem = (
                f"the reward {name!r} failed for all {count} crystals that it was to judge: "
                f"{judged.reasons}"
            )
        components[name] = judged
    raw = np.sum([w.weight * components[n].filled for n, w in reward.components.items()], axis=0)
    total = np.sum(
        [w.weight * components[n].normalised for n, w in reward.components.items()], axis=0
    )
    valid = np.array([passed for part in parts for passed in part.valid], bool)
    total = normalise(total, reward.normalisation, eps=reward.eps)
    return Rewards(total, raw, components, refused, valid, problem)


def _without_refused(scores: Scores, refused: Sequence[str | None]) -> Scores:
    """Give crystals that were not judged that as their reason."""
    reasons = [
        reason if why is None else NOT_JUDGED
        for reason, why in zip(scores.reasons, refused, strict=True)
    ]
    return Scores.of(scores.values, reasons)


def _judge(
    name: str, weighted: Weighted, scores: Scores, frozen: float | None, eps: float
) -> Judged:
    """Put the floor in; `frozen` is the one that came of it at an earlier rollout."""
    known = scores.values[np.isfinite(scores.values)]
    floor = weighted.floor if frozen is None else frozen
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


@cache
def _warn_of_floor(name: str, floor: float) -> None:
    """Warn, once."""
    logging.warning(
        "rl_module.reward_fn.%s.floor is %g, which is better than the best crystal of a rollout: "
        "where it is, crystals without a value get less than the worst instead. Give another floor",
        *(name, floor),
    )


def _most_common(reasons: Sequence[str | None]) -> str:
    """The three most frequent reasons, with their numbers."""
    counts = Counter(reason for reason in reasons if reason is not None).most_common(3)
    return "; ".join(f"{reason} ({count})" for reason, count in counts)
