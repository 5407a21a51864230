"""Rewards for densities and possible distances: functions of Structures, as a user writes them."""

from __future__ import annotations

from collections.abc import Sequence

from pymatgen.core import Structure

from chemeleon2_jax.crystals.geometry import Geometry, as_arrays, measure
from chemeleon2_jax.crystals.geometry import mass_density as density_of
from chemeleon2_jax.metrics.structure import MIN_VOLUME_PER_ATOM, covalent_check, validity_check
from chemeleon2_jax.rewards.options import check_flag, check_positive


def atomic_density(structures: Sequence[Structure], *, target: float = 0.0) -> list[float]:
    """Score the number of atoms in a cubic angstrom, or minus its distance from a target.

    Without a target the densest crystals win, and overlapping atoms are the densest: combine it
    with :func:`structural_validity`.

    Args:
        structures: the crystals.
        target: atoms / A^3; 0 is as many as possible

    Raises:
        ValueError: an impossible target; a crystal that cannot be measured, or with no more than
            0.1 cubic angstrom an atom (the score would grow without bounds).
    """
    target = check_positive(target, "target", or_zero=True)
    return [_score(1.0 / _measure(crystal).volume_per_atom, target) for crystal in structures]


def mass_density(structures: Sequence[Structure], *, target: float = 0.0) -> list[float]:
    """Score the mass density in g/cm3, or minus its distance from a target.

    Without a target the densest crystals win, as with :func:`atomic_density`.

    Args:
        structures: the crystals.
        target: g/cm3; 0 is as much as possible

    Raises:
        ValueError: as :func:`atomic_density`.
    """
    target = check_positive(target, "target", or_zero=True)
    scores = []
    for crystal in structures:
        volume_per_atom = _measure(crystal).volume_per_atom
        density = density_of(as_arrays(crystal)[0], volume_per_atom)
        scores.append(_score(density, target))
    return scores


def volume(
    structures: Sequence[Structure], *, target: float = 0.0, per_atom: bool = True
) -> list[float]:
    """Score minus the distance of the volume from a target.

    Args:
        structures: the crystals.
        target: A^3
        per_atom: the volume of an atom; else that of the cell as it is, twice as large for a
            doubled cell

    Raises:
        ValueError: an impossible target; a crystal that cannot be measured, or with no more than
            0.1 cubic angstrom an atom.
    """
    target = check_positive(target, "target")
    per_atom = check_flag(per_atom, "per_atom")
    return [
        -abs(_measure(crystal).volume_per_atom * (1 if per_atom else len(crystal)) - target)
        for crystal in structures
    ]


def structural_validity(structures: Sequence[Structure], *, covalent: bool = True) -> list[float]:
    """Score 1 for crystals with possible distances and volumes, else 0.

    Atoms are more than 0.5 angstrom apart and have more than 0.1 cubic angstrom each
    (:func:`chemeleon2_jax.metrics.structure.validity_check`). A crystal that cannot be measured,
    such as a flat cell, scores 0.

    Args:
        structures: the crystals.
        covalent: require all pairs of atoms to be farther apart than 0.7 of the sum of their
            covalent radii too (:func:`chemeleon2_jax.metrics.structure.covalent_check`); without
            it many crystals with random coordinates pass

    Raises:
        ValueError: `covalent` is neither true nor false.
    """
    covalent = check_flag(covalent, "covalent")
    geometries = [measure(crystal) for crystal in structures]
    passed = validity_check(geometries).passed
    if covalent:
        passed = passed & covalent_check(geometries).passed
    return [float(one) for one in passed]


def _score(value: float, target: float) -> float:
    return -abs(value - target) if target else value


def _measure(crystal: Structure) -> Geometry:
    """Measure a crystal.

    Raises:
        ValueError: it cannot be measured, or has almost no volume.
    """
    geometry = measure(crystal)
    if geometry.error is not None:
        raise ValueError(geometry.error)
    if geometry.volume_per_atom <= MIN_VOLUME_PER_ATOM:
        raise ValueError(f"volume: {geometry.volume_per_atom:.3g} cubic angstrom an atom")
    return geometry
