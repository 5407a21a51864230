"""Metrics of one crystal at a time: uniqueness and novelty, plausibility, densities."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from chemeleon2_jax.crystals.geometry import Geometry, mass_density
from chemeleon2_jax.crystals.symmetry import space_group_label
from chemeleon2_jax.data.structure_files import NOT_BUILT
from chemeleon2_jax.metrics.composition import composition_check
from chemeleon2_jax.metrics.matching import Cell, Formula, is_shared, reduce_cells
from chemeleon2_jax.metrics.metric import Column, Subject, Value
from chemeleon2_jax.metrics.structure import covalent_check, measure_all, validity_check
from chemeleon2_jax.metrics.uniqueness import References, find_novel, find_unique

SYMPREC = 0.1
"""Angstrom; tolerance of atomic positions for a space group, as Materials Project's."""

_CHUNK_SIZE = 16


def unique(subject: Subject) -> Column:
    """First of the crystals that StructureMatcher fits to each other.

    See :func:`~chemeleon2_jax.metrics.uniqueness.find_unique`.
    """
    comparison = find_unique(
        subject.once(_cells),
        subject.pool,
        tolerances=subject.tolerances,
        timeout_s=subject.timeout_s,
        rule=subject.unique_rule,
    )
    return Column.of_check(comparison)


def novel(subject: Subject) -> Column:
    """StructureMatcher fits no crystal of the reference.

    See :func:`~chemeleon2_jax.metrics.uniqueness.find_novel`.
    """
    assert subject.reference is not None  # `choose_metrics` saw to it
    comparison = find_novel(
        subject.once(_cells),
        subject.once(_references),
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
    return _all_of([subject.once(novel), subject.once(unique)])


def valid_unique_novel(subject: Subject) -> Column:
    """Valid, unique and novel: crystals of noise are hardly ever all three.

    Valid are distances (`valid`, and `covalent`, which crystals of random coordinates hardly ever
    pass) and composition (`composition_valid`).
    """
    parts = (covalent, valid, composition_valid, novel, unique)
    return _all_of([subject.once(part) for part in parts])


def _all_of(columns: Sequence[Column]) -> Column:
    """Return whether a crystal passes all of some checks; one no decides, even if others failed."""
    values: list[Value] = []
    reasons: list[str | None] = []
    for pairs in zip(*(_rows(column) for column in columns), strict=True):
        known = None if any(value is None for value, _ in pairs) else True
        wanted = False if any(value is False for value, _ in pairs) else known
        values.append(wanted)
        deciding = [why for value, why in pairs if value is wanted and why]
        reasons.append(deciding[0] if wanted is False else deciding[-1] if deciding else None)
    return Column(values, reasons)


def space_group(subject: Subject) -> Column:
    """Space group, within 0.1 angstrom."""
    present = [index for index, crystal in enumerate(subject.crystals) if crystal is not None]
    outcomes = subject.pool.map(
        partial(space_group_label, symprec=SYMPREC),
        [subject.crystals[index] for index in present],
        timeout_s=subject.timeout_s,
        chunk_size=_CHUNK_SIZE,
    )
    values: list[Value] = [None] * len(subject.crystals)
    reasons: list[str | None] = [NOT_BUILT] * len(subject.crystals)
    for index, outcome in zip(present, outcomes, strict=True):
        values[index], reasons[index] = outcome.value, outcome.error
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
    """The crystals, reduced where a comparison needs it."""
    is_among_others = is_shared(subject.crystals)
    known = None if subject.reference is None else subject.once(_references)

    def is_needed(formula: Formula) -> bool:
        return is_among_others(formula) or (known is not None and bool(known.rows(formula)))

    return reduce_cells(
        subject.crystals, subject.pool, timeout_s=subject.timeout_s, is_needed=is_needed
    )


def _references(subject: Subject) -> References:
    """The reference by formula."""
    assert subject.reference is not None
    return References(subject.reference.crystals)


def _geometries(subject: Subject) -> list[Geometry]:
    """Distances and volumes of the crystals."""
    return measure_all(subject.crystals, subject.pool)


def _rows(column: Column) -> list[tuple[Value, str | None]]:
    return list(zip(column.values, column.reasons, strict=True))
