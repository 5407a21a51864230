"""Rewards for crystals that bring the distribution of a rollout nearer to that of a reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chemeleon2_jax.common.scores import Scores
from chemeleon2_jax.crystals.arrays import MAX_ATOMIC_NUMBER
from chemeleon2_jax.crystals.geometry import as_arrays
from chemeleon2_jax.metrics.distribution import leave_one_out_mmd
from chemeleon2_jax.rewards.component import Component, Context, Crystal
from chemeleon2_jax.workers import WorkerPool

NO_FEATURES = "no features"
FEWEST = 3
"""Crystals with features that a score needs."""


def build_composition(context: Context) -> Component:
    """Score what a crystal's elements add to the rollout; see :func:`diversity`."""

    def features(crystals: Sequence[Crystal]) -> np.ndarray:
        return composition_features(crystals, context.models.type_embedding)

    return Diversity(features, features(context.crystal_list))


def build_structure(context: Context) -> Component:
    """Score what a crystal's structure adds to the rollout; see :func:`diversity`."""

    def features(crystals: Sequence[Crystal]) -> np.ndarray:
        return structure_features(context.models.encode_fn(crystals), context.models.latent_dim)

    return Diversity(features, features(context.crystal_list))


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
    """Score each crystal by how much farther the others would be from the reference without it.

    That is the growth of the squared MMD with a polynomial kernel when the crystal is left out:
    positive for a kind of crystal that the generated set has too few of. Features are those of the
    composition (:func:`composition_features`) or of the structure (:func:`structure_features`).

    Args:
        features: (G, d), a row of NaN for a crystal that has none (it counts in no other's score).
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


def composition_features(structures: Sequence[Any], embedding: np.ndarray) -> np.ndarray:
    """Return the mean embedding of each crystal's elements, (G, d); NaN where there is no crystal.

    Args:
        structures: structures, (atom_types, frac_coords, lattice) triples, or None (not built).
        embedding: (100, d), the VAE encoder's, by atomic number.

    Raises:
        ValueError: a structure with a site that is not one element.
    """
    table = np.asarray(embedding, np.float64)
    features = np.full((len(structures), table.shape[1]), np.nan)
    for index, structure in enumerate(structures):
        if structure is None:
            continue
        types = as_arrays(structure)[0]
        if len(types) and types.min() >= 1 and types.max() <= MAX_ATOMIC_NUMBER:
            features[index] = table[types].mean(0)
    return features


def structure_features(means: Sequence[np.ndarray | None], latent_dim: int) -> np.ndarray:
    """Return the mean over each crystal's atoms of its posterior means, (G, L).

    Args:
        means: (n, L) for each crystal, as the VAE's ``encode`` gives them; None where there is no
            crystal, which gets NaN.
        latent_dim: L.
    """
    features = np.full((len(means), latent_dim), np.nan)
    for index, atoms in enumerate(means):
        if atoms is not None and len(atoms):
            features[index] = np.mean(atoms, 0, dtype=np.float64)
    return features
