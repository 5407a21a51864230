"""The rewards of a rollout, computed in the background while the device draws the next crystals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chemeleon2_jax.common import hosts
from chemeleon2_jax.common.errors import RewardError
from chemeleon2_jax.common.scores import Scores
from chemeleon2_jax.crystals.geometry import Geometry, measure
from chemeleon2_jax.metrics.structure import covalent_check, validity_check
from chemeleon2_jax.rewards.combine import Judged, Rewards, Weighted, judge, list_most_common
from chemeleon2_jax.rewards.component import NOT_JUDGED, Crystal
from chemeleon2_jax.rewards.normalise import EPSILON, normalise
from chemeleon2_jax.workers import Background, WorkerPool

REQUIREMENTS = ("", "valid", "covalent")
"""Which crystals are judged: all that can be measured, or those that pass a check of
`metrics.structure`; covalent ones pass both."""

_ATTEMPTS, _ATTEMPT_S = 100, 0.05  # to cancel the work that is under way

_CHUNK_SIZE = 16  # measurements take a millisecond


@dataclass(frozen=True)
class RewardFunction:
    """Weighted rewards, and the requirement that a crystal has to meet to be judged.

    Attributes:
        components: by name.
        normalisation: of the weighted sum.
        require: one of REQUIREMENTS; crystals that fail it get every component's floor.
        eps: see `normalise`.
        pool: worker processes.
    """

    components: Mapping[str, Weighted]
    normalisation: str = ""
    require: str = "valid"
    eps: float = EPSILON
    pool: WorkerPool = field(default_factory=WorkerPool)

    def __post_init__(self) -> None:
        """Check the components and the requirement."""
        if not self.components:
            raise RewardError("there is no reward: name one or several components")
        if self.require not in REQUIREMENTS:
            names = ", ".join(repr(name) for name in REQUIREMENTS)
            raise RewardError(f"require is {self.require!r}; it is one of {names}")

    def start(self, floors: Mapping[str, float] | None = None) -> Evaluation:
        """Begin with a rollout; `floors` are used instead of the components' own."""
        return Evaluation(self, floors or {})

    def __call__(
        self, crystals: Sequence[Crystal], floors: Mapping[str, float] | None = None
    ) -> Rewards:
        """Judge the crystals of a whole rollout.

        Raises:
            RewardError: the rewards are of no use; see `Rewards.problem`.
        """
        with self.start(floors) as evaluation:
            evaluation.add(crystals)
            rewards = evaluation.result()
        if rewards.problem is not None:
            raise RewardError(rewards.problem)
        return rewards


class Evaluation:
    """The rewards of one rollout, computed in a thread as its chunks come.

    Several processes divide the crystals of each chunk among them; the first one compares all.
    Leaving its context by an exception, such as Ctrl-C, does not wait for the work under way.
    """

    def __init__(self, reward: RewardFunction, floors: Mapping[str, float]) -> None:
        self._reward, self._floors = reward, floors
        self._thread = Background()
        self._chunks: list[Future[_Chunk]] = []

    def __enter__(self) -> Evaluation:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.stop()
        if kind is None:
            return
        # Repeated, as the thread may be between two maps of the pool. All else ends soon.
        for _attempt in range(_ATTEMPTS):
            self._reward.pool.cancel()
            if self._thread.join(_ATTEMPT_S):
                break

    def add(self, crystals: Sequence[Crystal]) -> None:
        """Add the next crystals; returns at once."""
        first, end = hosts.share(len(crystals))
        own = list(crystals[first:end])
        self._chunks.append(self._thread.submit(lambda: _prepare(self._reward, own)))

    def result(self) -> Rewards:
        """Wait for all crystals and return their rewards, the same in every process.

        Raises:
            RewardError: a component cannot judge at all: its function cannot be run.
        """
        of_processes = hosts.gather_to_first([future.result() for future in self._chunks])
        # Chunk by chunk, the shares of all processes: the order of the crystals.
        chunks = [share for shares in zip(*of_processes, strict=True) for share in shares]
        return hosts.from_first(
            lambda: self._thread.submit(
                lambda: _finish(self._reward, chunks, self._floors)
            ).result()
        )


@dataclass(frozen=True)
class _Chunk:
    """Some crystals of a rollout: why they are refused, whether they are valid, and the entries
    that each component prepared.
    """

    refused: list[str | None]
    valid: list[bool]
    entries: dict[str, list[Any]]


def _prepare(reward: RewardFunction, crystals: list[Crystal]) -> _Chunk:
    if not crystals:  # more processes than crystals
        return _Chunk([], [], {name: [] for name in reward.components})
    outcomes = reward.pool.map(measure, crystals, chunk_size=_CHUNK_SIZE)
    geometries = [outcome.value or Geometry(error=outcome.error) for outcome in outcomes]
    valid = validity_check(geometries)
    refused = [geometry.error for geometry in geometries]
    if reward.require:
        refused = list(valid.reasons)
    if reward.require == "covalent":
        covalent = covalent_check(geometries).reasons
        refused = [a or b for a, b in zip(valid.reasons, covalent, strict=True)]
    judged = [c if why is None else None for c, why in zip(crystals, refused, strict=True)]
    entries = {
        name: weighted.component.prepare(judged, reward.pool)
        for name, weighted in reward.components.items()
    }
    return _Chunk(refused, valid.passed.tolist(), entries)


def _finish(
    reward: RewardFunction, chunks: Sequence[_Chunk], floors: Mapping[str, float]
) -> Rewards:
    refused = tuple(reason for chunk in chunks for reason in chunk.refused)
    judged = {}
    for name, weighted in reward.components.items():
        entries = [entry for chunk in chunks for entry in chunk.entries[name]]
        scores = _without_refused(weighted.component.score(entries, reward.pool), refused)
        judged[name] = judge(name, weighted, scores, frozen_floor=floors.get(name), eps=reward.eps)
    weights = {name: weighted.weight for name, weighted in reward.components.items()}
    raw = np.sum([weight * judged[name].filled for name, weight in weights.items()], axis=0)
    total = np.sum([weight * judged[name].normalised for name, weight in weights.items()], axis=0)
    return Rewards(
        normalise(total, reward.normalisation, eps=reward.eps),
        raw,
        judged,
        refused,
        np.array([passed for chunk in chunks for passed in chunk.valid], bool),
        _find_problem(judged, refused),
    )


def _without_refused(scores: Scores, refused: Sequence[str | None]) -> Scores:
    """Give crystals that were refused NOT_JUDGED as their reason."""
    reasons = [
        reason if why is None else NOT_JUDGED
        for reason, why in zip(scores.reasons, refused, strict=True)
    ]
    return Scores.of(scores.values, reasons)


def _find_problem(judged: Mapping[str, Judged], refused: Sequence[str | None]) -> str | None:
    """Return why the rewards of a rollout are of no use, or None."""
    if all(reason is not None for reason in refused):
        return (
            f"none of {len(refused)} crystals may be judged: {list_most_common(refused)}. Train "
            "the model to fine-tune for longer, or change rl_module.reward_fn.require"
        )
    for name, component in judged.items():
        if not np.isfinite(component.scores.values).any():
            count = sum(why is None for why in refused)
            return (
                f"the reward {name!r} failed for all {count} crystals that it was to judge: "
                f"{component.reasons}"
            )
    return None
