"""What a metric is: a function of the crystals under evaluation, for each of them or for the set.

A metric is such a function and a line in `registry`. Its docstring holds the definition and the
source; the first line of it is what `evaluate` prints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from chemeleon2_jax.crystals.arrays import CrystalArrays
from chemeleon2_jax.data.references import Reference
from chemeleon2_jax.metrics.matching import Tolerances
from chemeleon2_jax.metrics.structure import Check
from chemeleon2_jax.workers import WorkerPool

T = TypeVar("T")

Value = bool | float | str | None
Kind = Literal["check", "number", "label"]


class FeatureModel(Protocol):
    """A model that sees crystals as vectors, such as a VAE: (G, d), NaN where a crystal is None."""

    def structure_features(self, crystals: Sequence[CrystalArrays | None]) -> np.ndarray:
        """Return vectors of the structures."""
        ...

    def composition_features(self, crystals: Sequence[CrystalArrays | None]) -> np.ndarray:
        """Return vectors of the compositions."""
        ...


@dataclass(frozen=True)
class Subject:
    """The crystals under evaluation, and everything that a metric may need.

    Attributes:
        crystals: G crystals; None where there is none.
        pool: processes to work in.
        tolerances: of StructureMatcher.
        timeout_s: limit for one comparison, in seconds.
        reference: known crystals, if they are given.
        feature_model: gives features, if it is given.
        unique_rule: of `uniqueness.UNIQUE_RULES`.
    """

    crystals: Sequence[CrystalArrays | None]
    pool: WorkerPool
    tolerances: Tolerances
    timeout_s: float
    reference: Reference | None = None
    feature_model: FeatureModel | None = None
    unique_rule: str = "first"
    _results: dict[Callable[[Subject], Any], Any] = field(default_factory=dict, repr=False)

    def once(self, compute: Callable[[Subject], T]) -> T:
        """Return compute(self), computed by the first metric that asks for it."""
        if compute not in self._results:
            self._results[compute] = compute(self)
        result: T = self._results[compute]
        return result


@dataclass(frozen=True)
class Column:
    """One value for each of G crystals.

    Attributes:
        values: whether it passes, its number or its label; None where that is not known.
        reasons: None, or why it does not pass or is not known.
    """

    values: Sequence[Value]
    reasons: Sequence[str | None]

    def numbers(self) -> np.ndarray:
        """Return numbers (G,), NaN where there is none."""
        return np.array(self.values, np.float64)

    @staticmethod
    def of_check(check: Check) -> Column:
        """Tell crystals that do not pass from those that could not be checked."""
        pairs = zip(check.passed, check.errors, strict=True)
        values = [bool(passed) if error is None else None for passed, error in pairs]
        return Column(values, check.reasons)


@dataclass(frozen=True)
class SetScore:
    """One value of the whole set.

    Attributes:
        value: the number.
        count: crystals that it is of.
    """

    value: float
    count: int


@dataclass(frozen=True)
class CrystalMetric:
    """A column of the table.

    Attributes:
        compute: the function.
        kind: of its values: whether a crystal passes, a number, or a text.
        unit: of a number; "" is none.
        needs: names in `registry.NEEDS`; without them it cannot be computed.
        settings: constants of its definition, which the summary states.
    """

    compute: Callable[[Subject], Column]
    kind: Kind = "check"
    unit: str = ""
    needs: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SetMetric:
    """A number of the whole set.

    Attributes:
        compute: the function; where there is no value it raises a ValueError that says why.
        unit: "" is none.
        needs: names in `registry.NEEDS`; without them it cannot be computed.
        settings: constants of its definition, which the summary states.
    """

    compute: Callable[[Subject], SetScore]
    unit: str = ""
    needs: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


Metric = CrystalMetric | SetMetric


def describe(metric: Metric) -> str:
    """Return what a metric tells, in a line: the first one of its docstring."""
    return (metric.compute.__doc__ or "").partition("\n")[0].rstrip(".")
