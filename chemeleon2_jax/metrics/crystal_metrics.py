"""Metrics of one crystal at a time: uniqueness and novelty, plausibility, densities."""

from __future__ import annotations

from chemeleon2_jax.crystals.geometry import Geometry, mass_density, measure
from chemeleon2_jax.metrics.composition import composition_check
from chemeleon2_jax.metrics.matching import Cell, reduce_cells
from chemeleon2_jax.metrics.metric import Column, Subject, Value
from chemeleon2_jax.metrics.structure import covalent_check, validity_check
from chemeleon2_jax.metrics.uniqueness import References, find_novel, find_unique


def unique(subject: Subject) -> Column:
    """First of the crystals that StructureMatcher fits to each other.

    See :func:`~chemeleon2_jax.metrics.uniqueness.find_unique`.
    """
    comparison = find_unique(
        subject.once(_cells),
        subject.pool,
        tolerances=subject.tolerances,
        timeout_s=subject.timeout_s,
    )
    return Column.of_check(comparison)


def novel(subject: Subject) -> Column:
    """StructureMatcher fits no crystal of the reference.

    See :func:`~chemeleon2_jax.metrics.uniqueness.find_novel`.
    """
    assert subject.reference is not None  # `choose_metrics` saw to it
    comparison = find_novel(
        subject.once(_cells),
        References(subject.reference.crystals),
        subject.pool,
        tolerances=subject.tolerances,
        timeout_s=subject.timeout_s,
    )
    names = subject.reference.names
    reasons = [
        reason if match is None else f"same as reference: {names[match]}"
        for match, reason in zip(comparison.matches, comparison.reasons, strict=True)
    ]
    return Column(Column.of_check(comparison).values, reasons)


def unique_novel(subject: Subject) -> Column:
    """Both unique and novel."""
    values: list[Value] = []
    reasons = []
    for (is_unique, why_not_unique), (is_novel, why_not_novel) in zip(
        _rows(subject.once(unique)), _rows(subject.once(novel)), strict=True
    ):
        # One no decides, even if the other comparison failed.
        known = None if None in (is_unique, is_novel) else True
        values.append(False if False in (is_unique, is_novel) else known)
        reasons.append(why_not_novel if is_novel is False else why_not_unique or why_not_novel)
    return Column(values, reasons)


def valid(subject: Subject) -> Column:
    """Distances and volume possible.

    See :func:`~chemeleon2_jax.metrics.structure.validity_check`.
    """
    return Column.of_check(validity_check(subject.once(_geometries)))


def covalent(subject: Subject) -> Column:
    """No pair closer than covalent radii allow.

    See :func:`~chemeleon2_jax.metrics.structure.covalent_check`.
    """
    return Column.of_check(covalent_check(subject.once(_geometries)))


def composition_valid(subject: Subject) -> Column:
    """Oxidation states balance (SMACT).

    See :func:`~chemeleon2_jax.metrics.composition.composition_check`.
    """
    return Column.of_check(composition_check(subject.crystals))


def density(subject: Subject) -> Column:
    """Mass over volume."""
    atoms = subject.once(atomic_density)
    values = [
        None if crystal is None else mass_density(crystal[0], 1.0 / per_volume)
        for crystal, per_volume in zip(subject.crystals, atoms.numbers().tolist(), strict=True)
    ]
    return Column(values, atoms.reasons)


def atomic_density(subject: Subject) -> Column:
    """Atoms over volume."""
    geometries = subject.once(_geometries)
    values = [None if g.error is not None else 1.0 / g.volume_per_atom for g in geometries]
    return Column(values, [geometry.error for geometry in geometries])


def _cells(subject: Subject) -> list[Cell]:
    """The crystals, reduced for comparisons."""
    return reduce_cells(subject.crystals, subject.pool, timeout_s=subject.timeout_s)


def _geometries(subject: Subject) -> list[Geometry]:
    """Distances and volumes of the crystals."""
    return [measure(crystal) for crystal in subject.crystals]


def _rows(column: Column) -> list[tuple[Value, str | None]]:
    return list(zip(column.values, column.reasons, strict=True))
