"""Feature vectors of crystals from a VAE, to compare sets of crystals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from chemeleon2_jax.crystals.arrays import MAX_ATOMIC_NUMBER, CrystalArrays, Crystals, wrap


def map_crystals(
    function: Callable[[Crystals], Sequence[Any]], crystals: Sequence[CrystalArrays | None]
) -> list[Any]:
    """Call a function with all crystals that are not None; return None for the others.

    Coordinates are wrapped into the cell, where encoders expect them; a decoder's may lie outside.
    """
    results: list[Any] = [None] * len(crystals)
    indices = [index for index, crystal in enumerate(crystals) if crystal is not None]
    if indices:
        present = Crystals.from_list(
            (types, wrap(frac_coords), lattice)
            for types, frac_coords, lattice in filter(None, crystals)
        )
        for index, result in zip(indices, function(present), strict=True):
            results[index] = result
    return results


def average_latents(means: Sequence[np.ndarray | None], latent_dim: int) -> np.ndarray:
    """Return the mean over each crystal's atoms of its posterior means, (G, L).

    Args:
        means: (n, L) for each crystal, as the VAE's `encode` returns them; None where there is no
            crystal: its features are NaN.
        latent_dim: L.
    """
    features = np.full((len(means), latent_dim), np.nan)
    for index, atoms in enumerate(means):
        if atoms is not None and len(atoms):
            features[index] = np.mean(atoms, 0, dtype=np.float64)
    return features


def average_embeddings(
    crystals: Sequence[CrystalArrays | None], embedding: np.ndarray
) -> np.ndarray:
    """Return the mean embedding of each crystal's elements, (G, d); NaN where there is no crystal.

    Args:
        crystals: (atom_types, frac_coords, lattice), or None.
        embedding: (100, d), the VAE encoder's, by atomic number.
    """
    table = np.asarray(embedding, np.float64)
    features = np.full((len(crystals), table.shape[1]), np.nan)
    for index, crystal in enumerate(crystals):
        if crystal is None:
            continue
        types = np.asarray(crystal[0])
        if len(types) and types.min() >= 1 and types.max() <= MAX_ATOMIC_NUMBER:
            features[index] = table[types].mean(0)
    return features
