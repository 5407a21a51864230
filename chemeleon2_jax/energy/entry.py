"""An entry of a phase diagram: a known compound with its energy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pymatgen.core import Composition, DummySpecies


@dataclass(frozen=True)
class Entry:
    """A known compound.

    Attributes:
        fractions: share of each atomic number; they sum to 1.
        energy: eV/atom, without the correction.
        correction: eV/atom, to add for the corrected scale; 0 for an entry without one, None for a
            kind of entry that does not hold its correction apart.
    """

    fractions: Mapping[int, float]
    energy: float
    correction: float | None = None


def parse_composition(value: Any) -> tuple[dict[int, float], float]:
    """Return the fractions by atomic number of a formula or {element: amount}, and the atoms.

    Raises:
        ValueError: `value` is no composition.
    """
    try:
        composition = Composition(value)
        amounts = [(element, float(amount)) for element, amount in composition.items()]
        if any(isinstance(element, DummySpecies) for element, _ in amounts):
            raise ValueError("not an element")
        num_atoms = math.fsum(amount for _, amount in amounts)
        if not (num_atoms > 0 and math.isfinite(num_atoms)):
            raise ValueError("no atoms")
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{value!r:.80} is no composition: {error}") from error
    fractions: dict[int, float] = {}
    for element, amount in amounts:
        if amount > 0:
            fractions[element.Z] = fractions.get(element.Z, 0.0) + amount / num_atoms
    return fractions, num_atoms
