"""Rewards for crystals that bring the distribution of a rollout nearer to that of a reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chemeleon2_jax.common.scores import Scores
from chemeleon2_jax.metrics.distribution import leave_one_out_mmd
from chemeleon2_jax.rewards.component import Component, Context, Crystal
from chemeleon2_jax.workers import WorkerPool

NO_FEATURES = "no features"
FEWEST = 3
"""Crystals with features that a score needs."""


def build_composition(context: Context) -> Component:
    """Score what a crystal's elements add to the rollout; see :func:`diversity`."""
    return _build(context, context.models.features.composition_features)


def build_structure(context: Context) -> Component:
    """Score what a crystal's structure adds to the rollout; see :func:`diversity`."""
    return _build(context, context.models.features.structure_features)


def _build(context: Context, features_fn: Callable[[Sequence[Crystal]], np.ndarray]) -> Component:
    crystals = context.crystals
    known = [crystals.crystal(row) for row in range(len(crystals))]
    return Diversity(features_fn, features_fn(known))


@dataclass(frozen=True)
class Diversity:
    """:func:`diversity` of a rollout.

    Attributes:
        features_fn: crystals -> (G, d), NaN where there is no crystal.
        reference: (N, d).
    """

    features_fn: Callable[[Sequence[Crystal]], np.ndarray]
    reference: np.ndarray

    def prepare(self, crystals: Sequence[Crystal], pool: WorkerPool) -> list[Any]:
        """Compute the features."""
        del pool
        return list(self.features_fn(crystals))

    def score(self, prepared: Sequence[Any], pool: WorkerPool) -> Scores:
        """Compare the crystals with the reference, with and without each."""
        del pool
        return diversity(np.stack(prepared), self.reference)


def diversity(features: np.ndarray, reference: np.ndarray) -> Scores:
    """Score each crystal by how much farther from the reference the set would be without it.

    The score is the growth of the squared MMD with a polynomial kernel when the crystal is left
    out: positive for a kind of crystal that the generated set has too few of.

    Args:
        features: (G, d), a row of NaN for a crystal that has none; it counts in no other's score.
        reference: (N, d), all finite.

    Raises:
        ValueError: widths differ, or the reference is empty or not finite.
    """
    features = np.asarray(features, np.float64)
    reasons: list[str | None] = [
        None if known else NO_FEATURES for known in np.isfinite(features).all(1)
    ]
    known = np.array([reason is None for reason in reasons], bool)
    values = np.full(len(features), np.nan)
    if known.sum() >= FEWEST:
        values[known] = leave_one_out_mmd(features[known], reference)
    else:
        few = f"fewer than {FEWEST} crystals have features"
        reasons = [reason or few for reason in reasons]
    return Scores.of(values, reasons)
