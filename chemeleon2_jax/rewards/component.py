"""The contract of a reward: `prepare` a chunk of crystals, then `score` the whole rollout.

Chunks come while the device draws the next one. Work on single crystals belongs into `prepare`,
comparisons of crystals into `score`. Crystals are (atom_types, frac_coords, lattice) triples, or
None for a crystal that is not judged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from chemeleon2_jax.common.scores import Scores
from chemeleon2_jax.crystals.arrays import CrystalArrays, Crystals
from chemeleon2_jax.metrics.metric import FeatureModel
from chemeleon2_jax.workers import WorkerPool

NOT_JUDGED = "not judged"
"""Reason of a crystal that no reward was computed for."""

Crystal = CrystalArrays | None


class Component(Protocol):
    """One reward."""

    def prepare(self, crystals: Sequence[Crystal], pool: WorkerPool) -> list[Any]:
        """Do the work that needs one crystal alone; return one entry a crystal."""
        ...

    def score(self, prepared: Sequence[Any], pool: WorkerPool) -> Scores:
        """Score all crystals of a rollout, from the entries of `prepare` in order."""
        ...


@dataclass(frozen=True)
class PerChunk:
    """A reward that judges each crystal alone, but many at once, in this process: a model on the
    device, or one that uses the pool itself.

    Attributes:
        function: (crystals, pool) -> Scores.
    """

    function: Callable[[Sequence[Crystal], WorkerPool], Scores]

    def prepare(self, crystals: Sequence[Crystal], pool: WorkerPool) -> list[Any]:
        """Return (value, reason) of each crystal."""
        scores = self.function(crystals, pool)
        return list(zip(scores.values.tolist(), scores.reasons, strict=True))

    def score(self, prepared: Sequence[Any], pool: WorkerPool) -> Scores:
        """Collect values and reasons."""
        del pool
        return Scores.of([value for value, _ in prepared], [reason for _, reason in prepared])


@dataclass(frozen=True)
class Models:
    """What rewards take from trained models.

    Attributes:
        features: gives vectors of crystals.
        predict_fn: path -> (its targets, (crystals) -> {target: (G,)}), NaN where a crystal is
            None.
    """

    features: FeatureModel
    predict_fn: Callable[
        [str], tuple[tuple[str, ...], Callable[[Sequence[Crystal]], Mapping[str, np.ndarray]]]
    ]


@dataclass(frozen=True)
class Context:
    """What a component is built from, beside its options.

    Attributes:
        models: trained models.
        crystals_fn: loads the reference crystals; called once, if a reward needs them.
        pool: worker processes.
        timeout_s: limit for one crystal, in seconds.
    """

    models: Models
    crystals_fn: Callable[[], Crystals]
    pool: WorkerPool
    timeout_s: float = 30.0

    @cached_property
    def crystals(self) -> Crystals:
        """The reference crystals."""
        return self.crystals_fn()
