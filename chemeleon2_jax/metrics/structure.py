"""Whether a crystal is physically possible: checks of distances and volumes.

Compare a pass rate with that of the same cells with random coordinates
(`crystals.geometry.randomise_coordinates`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chemeleon2_jax.crystals.arrays import CrystalArrays
from chemeleon2_jax.crystals.geometry import MIN_DISTANCE, Geometry, measure
from chemeleon2_jax.workers import WorkerPool

MIN_VOLUME_PER_ATOM = 0.1
"""Cubic angstrom; a denser crystal is invalid."""

COVALENT_FACTOR = 0.7
"""Share of the sum of covalent radii that two atoms keep between them."""


_MANY_ATOMS = 500
_TIMEOUT_S = 30.0  # of a crystal; thousands of atoms take a fraction of a second


@dataclass(frozen=True)
class Check:
    """The outcome of one check for many crystals.

    Attributes:
        passed: (G,) bool; False too where a crystal could not be checked.
        reasons: for each crystal, None or why it failed.
        errors: for each crystal, None, or why it could not be checked.
    """

    passed: np.ndarray
    reasons: tuple[str | None, ...]
    errors: tuple[str | None, ...]

    @staticmethod
    def of(faults: Sequence[str | None], errors: Sequence[str | None]) -> Check:
        """Build from why crystals fail, or could not be checked."""
        reasons = tuple(error or fault for fault, error in zip(faults, errors, strict=True))
        passed = np.array([reason is None for reason in reasons], bool)
        return Check(passed, reasons, tuple(errors))

    @property
    def share(self) -> float:
        """Share of all crystals that passed; 0 without crystals."""
        return float(self.passed.mean()) if len(self.passed) else 0.0


def validity_check(structures: Iterable[Any]) -> Check:
    """Check that atoms are more than 0.5 angstrom apart, with more than 0.1 cubic angstrom each.

    A weak test: many crystals with random coordinates pass; see :func:`covalent_check`.

    Args:
        structures: pymatgen structures, (atom_types, frac_coords, lattice) triples, or their
            :class:`Geometry`; None (not built) fails.
    """

    def judge(geometry: Geometry) -> str | None:
        if geometry.volume_per_atom <= MIN_VOLUME_PER_ATOM:
            return f"volume {geometry.volume_per_atom:.3g} cubic angstrom an atom"
        if geometry.min_distance <= MIN_DISTANCE:
            return f"atoms {geometry.min_distance:.3g} angstrom apart"
        return None

    return _check(structures, judge)


def covalent_check(structures: Iterable[Any]) -> Check:
    """Check that all pairs of atoms are farther apart than 0.7 times the sum of their radii.

    The radii are Cordero's covalent radii. Most real crystals pass, and few of the same cells with
    random coordinates.

    Args:
        structures: as for :func:`validity_check`.
    """

    def judge(geometry: Geometry) -> str | None:
        if geometry.min_covalent_ratio > COVALENT_FACTOR:
            return None
        return f"atoms {geometry.min_covalent_ratio:.3f} of the sum of covalent radii apart"

    return _check(structures, judge)


def measure_all(
    crystals: Sequence[CrystalArrays | None], pool: WorkerPool | None = None
) -> list[Geometry]:
    """Measure crystals; the large ones in worker processes, with a time limit."""
    large = [i for i, c in enumerate(crystals) if c is not None and len(c[0]) > _MANY_ATOMS]
    outcomes = (pool or WorkerPool(0)).map(
        measure, [crystals[index] for index in large], timeout_s=_TIMEOUT_S
    )
    measured = {
        index: Geometry(error=outcome.error) if outcome.error else outcome.value
        for index, outcome in zip(large, outcomes, strict=True)
    }
    return [measured.get(index) or measure(crystal) for index, crystal in enumerate(crystals)]


def _check(structures: Iterable[Any], judge: Callable[[Geometry], str | None]) -> Check:
    geometries = [s if isinstance(s, Geometry) else measure(s) for s in structures]
    return Check.of(
        [None if geometry.error else judge(geometry) for geometry in geometries],
        [geometry.error for geometry in geometries],
    )
