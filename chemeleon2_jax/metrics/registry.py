"""The metrics that `evaluate` knows, by name: one value for each crystal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

from chemeleon2_jax.common.suggest import suggest
from chemeleon2_jax.crystals.arrays import CrystalArrays
from chemeleon2_jax.crystals.geometry import Geometry, mass_density, measure
from chemeleon2_jax.metrics.composition import composition_check
from chemeleon2_jax.metrics.matching import Cell, reduce_cells
from chemeleon2_jax.metrics.reconstruction import Tolerances
from chemeleon2_jax.metrics.structure import Check, covalent_check, validity_check
from chemeleon2_jax.metrics.uniqueness import Comparison, References, find_novel, find_unique
from chemeleon2_jax.workers import WorkerPool

Values = Sequence[bool | float | None]
Reasons = Sequence[str | None]


@dataclass(frozen=True)
class Column:
    """What a metric says of G crystals.

    Attributes:
        values: whether each passes, or its number; None where that is not known.
        reasons: None, or why it does not pass or is not known.
    """

    values: Values
    reasons: Reasons


@dataclass(frozen=True)
class Subject:
    """Crystals to be judged. What several metrics need is computed once, by the first of them.

    Attributes:
        crystals: G crystals; None where there is none.
        references: what is known already, where it is given.
        reference_names: their names, in their order.
        pool: processes to work in.
        tolerances: of StructureMatcher.
        timeout_s: limit for one comparison, in seconds.
    """

    crystals: Sequence[CrystalArrays | None]
    references: References | None
    reference_names: Sequence[str]
    pool: WorkerPool
    tolerances: Tolerances
    timeout_s: float

    @cached_property
    def geometries(self) -> list[Geometry]:
        """Distances and volumes."""
        return [measure(crystal) for crystal in self.crystals]

    @cached_property
    def cells(self) -> list[Cell]:
        """The crystals made ready to be compared."""
        return reduce_cells(self.crystals, self.pool, timeout_s=self.timeout_s)

    @cached_property
    def unique(self) -> Comparison:
        """The crystals compared with each other."""
        return find_unique(
            self.cells, self.pool, tolerances=self.tolerances, timeout_s=self.timeout_s
        )

    @cached_property
    def novel(self) -> Comparison:
        """The crystals compared with the references."""
        assert self.references is not None  # `choose_metrics` saw to it
        return find_novel(
            self.cells,
            self.references,
            self.pool,
            tolerances=self.tolerances,
            timeout_s=self.timeout_s,
        )


@dataclass(frozen=True)
class Metric:
    """One column of the table.

    Attributes:
        about: what it tells, for people.
        compute: from crystals to a column.
        unit: of a number; None where the values are yes or no.
        needs_reference: cannot be computed without one.
    """

    about: str
    compute: Callable[[Subject], Column]
    unit: str | None = None
    needs_reference: bool = False


def choose_metrics(names: Sequence[str] | None, *, has_reference: bool) -> list[str]:
    """Return the metrics that are wanted, each once.

    Args:
        names: in the order of the table; None or nothing is all that can be computed.
        has_reference: whether there are crystals to compare with.

    Raises:
        ValueError: an unknown name, with the nearest, or one that needs a reference.
    """
    if not names:
        return [n for n, metric in METRICS.items() if has_reference or not metric.needs_reference]
    for name in names:
        if name not in METRICS:
            raise ValueError(f"no metric {name!r}: {suggest(name, METRICS)}")
        if METRICS[name].needs_reference and not has_reference:
            raise ValueError(f"metric {name!r} needs a reference to compare with")
    return list(dict.fromkeys(names))


def _column(check: Check, errors: Reasons) -> Column:
    """Tell what did not pass from what could not be checked."""
    values = [
        bool(passed) if error is None else None
        for passed, error in zip(check.passed, errors, strict=True)
    ]
    return Column(values, check.reasons)


def _unique(subject: Subject) -> Column:
    return _column(subject.unique, subject.unique.errors)


def _novel(subject: Subject) -> Column:
    found = subject.novel
    reasons = [
        reason if match is None else f"same as reference: {subject.reference_names[match]}"
        for match, reason in zip(found.matches, found.reasons, strict=True)
    ]
    return Column(_column(found, found.errors).values, reasons)


def _unique_novel(subject: Subject) -> Column:
    pairs = list(zip(_rows(_unique(subject)), _rows(_novel(subject)), strict=True))
    values, reasons = [], []
    for (is_unique, why_not_unique), (is_novel, why_not_novel) in pairs:
        # One no decides, whatever became of the other comparison.
        known = None if None in (is_unique, is_novel) else True
        values.append(False if False in (is_unique, is_novel) else known)
        reasons.append(why_not_novel if is_novel is False else why_not_unique or why_not_novel)
    return Column(values, reasons)


def _rows(column: Column) -> list[tuple[bool | float | None, str | None]]:
    return list(zip(column.values, column.reasons, strict=True))


def _geometric(check: Callable[[Sequence[Geometry]], Check]) -> Callable[[Subject], Column]:
    def compute(subject: Subject) -> Column:
        errors = [geometry.error for geometry in subject.geometries]
        return _column(check(subject.geometries), errors)

    return compute


def _composition_valid(subject: Subject) -> Column:
    check = composition_check(subject.crystals)
    return _column(check, check.errors)


def _atomic_density(subject: Subject) -> Column:
    """Atoms per cubic angstrom."""
    values = [
        1.0 / geometry.volume_per_atom if geometry.error is None else None
        for geometry in subject.geometries
    ]
    return Column(values, [geometry.error for geometry in subject.geometries])


def _density(subject: Subject) -> Column:
    """Grams per cubic centimetre."""
    atoms = _atomic_density(subject)
    values: list[float | None] = []
    for crystal, per_volume in zip(subject.crystals, atoms.values, strict=True):
        if crystal is None or per_volume is None:
            values.append(None)
            continue
        values.append(mass_density(crystal[0], 1.0 / per_volume))
    return Column(values, atoms.reasons)


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "unique": Metric("first of those that are the same", _unique),
        "novel": Metric("same as no reference", _novel, needs_reference=True),
        "unique_novel": Metric("both", _unique_novel, needs_reference=True),
        "valid": Metric("distances and volume possible", _geometric(validity_check)),
        "covalent": Metric("no pair closer than covalent radii allow", _geometric(covalent_check)),
        "composition_valid": Metric("oxidation states balance (SMACT)", _composition_valid),
        "density": Metric("mass over volume", _density, unit="g/cm3"),
        "atomic_density": Metric("atoms over volume", _atomic_density, unit="1/A3"),
    }
)
"""All metrics in the order of the table. Another one is a line here."""
