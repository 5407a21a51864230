"""Crystals as arrays, and the geometry of their cells.

A lattice is a (3, 3) matrix whose rows are the cell vectors in angstrom. Angles are in radians;
fractional coordinates are wrapped to [0, 1) only where a function says so. The geometry works on
numpy and on JAX arrays alike.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np

MAX_ATOMIC_NUMBER = 99
NUM_ATOM_CLASSES = 100  # atomic numbers 1..99, and 0 for a masked atom

# One crystal: atomic numbers (n,), fractional coordinates (n, 3), lattice (3, 3) in angstrom.
CrystalArrays = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Crystals:
    """Many crystals in flat arrays: G crystals with A atoms in all (13 bytes an atom, 40 a
    crystal).

    Attributes:
        num_atoms: (G,) int32.
        atom_types: (A,) int8, atomic numbers 1..99.
        frac_coords: (A, 3) float32.
        lattices: (G, 3, 3) float32, rows are cell vectors in angstrom.
        material_ids: (G,) bytes.
        targets: property name -> (G,) float32, NaN where unknown.
    """

    num_atoms: np.ndarray
    atom_types: np.ndarray
    frac_coords: np.ndarray
    lattices: np.ndarray
    material_ids: np.ndarray
    targets: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.num_atoms)

    @cached_property
    def offsets(self) -> np.ndarray:
        """(G + 1,) int64: crystal i owns atoms offsets[i] to offsets[i + 1]."""
        return np.concatenate([[0], np.cumsum(self.num_atoms, dtype=np.int64)])

    def crystal(self, index: int) -> CrystalArrays:
        """Return (atom_types (n,), frac_coords (n, 3), lattice (3, 3)) of one crystal."""
        atoms = slice(self.offsets[index], self.offsets[index + 1])
        return self.atom_types[atoms], self.frac_coords[atoms], self.lattices[index]

    def take(self, indices: Sequence[int] | np.ndarray) -> Crystals:
        """Return the crystals at `indices`, in that order."""
        indices = np.asarray(indices, dtype=np.int64)
        atoms = self.atom_indices(indices)
        return Crystals(
            num_atoms=self.num_atoms[indices],
            atom_types=self.atom_types[atoms],
            frac_coords=self.frac_coords[atoms],
            lattices=self.lattices[indices],
            material_ids=self.material_ids[indices],
            targets={name: values[indices] for name, values in self.targets.items()},
        )

    def atom_indices(self, indices: np.ndarray) -> np.ndarray:
        """Return flat indices of the atoms of the crystals at `indices`, crystal after crystal."""
        sizes = self.num_atoms[indices].astype(np.int64)
        starts = np.cumsum(sizes) - sizes
        return np.repeat(self.offsets[indices] - starts, sizes) + np.arange(sizes.sum())

    @staticmethod
    def from_list(
        crystals: Iterable[tuple[Any, Any, Any]],
        *,
        material_ids: Sequence[str | bytes] | None = None,
        targets: Mapping[str, Any] | None = None,
    ) -> Crystals:
        """Build from (atom_types, frac_coords, lattice) triples; ids default to the position."""
        triples = list(crystals)
        sizes = np.array([len(types) for types, _, _ in triples], np.int32)
        ids = [str(i) for i in range(len(triples))] if material_ids is None else material_ids
        encoded = [i if isinstance(i, bytes) else str(i).encode() for i in ids]

        def join(arrays: list[Any], shape: tuple[int, ...], dtype: Any) -> np.ndarray:
            shaped = [np.asarray(a, dtype).reshape(-1, *shape) for a in arrays]
            return np.concatenate(shaped) if shaped else np.zeros((0, *shape), dtype)

        return Crystals(
            num_atoms=sizes,
            atom_types=join([types for types, _, _ in triples], (), np.int8),
            frac_coords=join([frac for _, frac, _ in triples], (3,), np.float32),
            lattices=join([lattice for _, _, lattice in triples], (3, 3), np.float32),
            material_ids=np.array(encoded, dtype=bytes),
            targets={k: np.asarray(v, np.float32) for k, v in (targets or {}).items()},
        )

    @staticmethod
    def concatenate(collections: Sequence[Crystals]) -> Crystals:
        """Join collections; targets that some of them lack are dropped."""
        names = [n for n in collections[0].targets if all(n in c.targets for c in collections)]
        return Crystals(
            num_atoms=np.concatenate([c.num_atoms for c in collections]),
            atom_types=np.concatenate([c.atom_types for c in collections]),
            frac_coords=np.concatenate([c.frac_coords for c in collections]),
            lattices=np.concatenate([c.lattices for c in collections]),
            material_ids=np.concatenate([c.material_ids for c in collections]),
            targets={n: np.concatenate([c.targets[n] for c in collections]) for n in names},
        )


def _array_module(array: Any) -> ModuleType:
    """Return numpy for numpy arrays and plain numbers, jax.numpy for JAX arrays and tracers."""
    if isinstance(array, np.ndarray | np.generic | list | tuple | int | float):
        return np
    return sys.modules["jax.numpy"]


def lattice_from_parameters(lengths: Any, angles: Any) -> Any:
    """Return the lattice (..., 3, 3) with cell lengths (..., 3) in angstrom and angles (..., 3) in
    radians.

    Standard orientation of pymatgen's `Lattice.from_parameters`: c along z, a in the xz plane. The
    cosine of gamma* is clipped to [-1, 1], so that impossible angles give finite numbers.
    """
    xp = _array_module(lengths)
    lengths, angles = xp.asarray(lengths), xp.asarray(angles)
    a, b, c = lengths[..., 0], lengths[..., 1], lengths[..., 2]
    cos, sin = xp.cos(angles), xp.sin(angles)
    cos_alpha, cos_beta, cos_gamma = cos[..., 0], cos[..., 1], cos[..., 2]
    sin_alpha, sin_beta = sin[..., 0], sin[..., 1]
    cos_gamma_star = xp.clip((cos_alpha * cos_beta - cos_gamma) / (sin_alpha * sin_beta), -1.0, 1.0)
    sin_gamma_star = xp.sqrt(1.0 - cos_gamma_star**2)
    zero = xp.zeros_like(a)
    vector_a = xp.stack([a * sin_beta, zero, a * cos_beta], -1)
    vector_b = xp.stack(
        [-b * sin_alpha * cos_gamma_star, b * sin_alpha * sin_gamma_star, b * cos_alpha], -1
    )
    vector_c = xp.stack([zero, zero, c], -1)
    return xp.stack([vector_a, vector_b, vector_c], -2)


def lattice_parameters(lattice: Any) -> tuple[Any, Any]:
    """Return cell lengths (..., 3) in angstrom and angles (..., 3) in radians of lattices (..., 3,
    3).
    """
    xp = _array_module(lattice)
    lengths = xp.sqrt(xp.sum(lattice**2, -1))
    unit = lattice / lengths[..., None]
    pairs = ((1, 2), (0, 2), (0, 1))  # alpha is between b and c, and so on
    cosines = xp.stack([xp.sum(unit[..., i, :] * unit[..., j, :], -1) for i, j in pairs], -1)
    return lengths, xp.arccos(xp.clip(cosines, -1.0, 1.0))


def scale_lengths(lengths: Any, num_atoms: Any) -> Any:
    """Divide lengths (..., 3) by the cube root of the number of atoms (...), which makes them
    comparable between crystals.
    """
    return lengths / _cube_root(num_atoms)


def unscale_lengths(lengths_scaled: Any, num_atoms: Any) -> Any:
    """Undo `scale_lengths`; angstrom."""
    return lengths_scaled * _cube_root(num_atoms)


def _cube_root(num_atoms: Any) -> Any:
    xp = _array_module(num_atoms)
    atoms = xp.asarray(num_atoms)
    # An empty slot of a row counts as one atom, so that nothing divides by zero.
    return xp.maximum(atoms, 1).astype(xp.float32)[..., None] ** (1.0 / 3.0)


def wrap(frac_coords: Any) -> Any:
    """Return fractional coordinates in [0, 1).

    A tiny negative float32 rounds to exactly 1.0 under `% 1`, hence the second step.
    """
    xp = _array_module(frac_coords)
    wrapped = frac_coords % 1.0
    return xp.where(wrapped >= 1.0, xp.zeros_like(wrapped), wrapped)
