"""A number for each of many crystals, or the reason for its absence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Scores:
    """Raw values of a reward or an energy model for G crystals.

    Attributes:
        values: (G,) float64, NaN for a crystal without value.
        reasons: (G,) None, or why a crystal has no value, as "kind: detail".
    """

    values: np.ndarray
    reasons: tuple[str | None, ...]

    def __post_init__(self) -> None:
        """Check that each crystal has either a value or a reason."""
        has_value = [reason is None for reason in self.reasons]
        if not np.array_equal(np.isfinite(self.values), has_value):
            raise ValueError("a crystal needs either a finite value or a reason for having none")

    @property
    def failures(self) -> dict[str, int]:
        """Number of crystals without a value, by kind of reason."""
        kinds = [reason.partition(":")[0] for reason in self.reasons if reason is not None]
        return dict(Counter(kinds).most_common())

    @staticmethod
    def of(values: Sequence[float | None] | np.ndarray, reasons: Sequence[str | None]) -> Scores:
        """Build from unchecked values; see `check_values`."""
        return Scores(*check_values(values, reasons))


def check_values(
    values: Sequence[float | None] | np.ndarray, reasons: Sequence[str | None]
) -> tuple[np.ndarray, tuple[str | None, ...]]:
    """Return values (G,), NaN for crystals with a reason, and reasons (G,).

    A value that is missing or not finite gets that as its reason.
    """
    checked, why = np.full(len(values), np.nan), list(reasons)
    for index, (value, reason) in enumerate(zip(values, reasons, strict=True)):
        if reason is None and value is not None and np.isfinite(value):
            checked[index] = value
        else:
            why[index] = reason or ("no value" if value is None else f"not finite: {value}")
    return checked, tuple(why)
