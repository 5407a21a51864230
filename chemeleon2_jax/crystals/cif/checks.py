"""What a CIF declares about its crystal, to compare with what was read."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass

from chemeleon2_jax.crystals.cif.elements import ATOMIC_NUMBERS, ISOTOPES
from chemeleon2_jax.crystals.cif.expansion import Atoms
from chemeleon2_jax.crystals.cif.numbers import read_number
from chemeleon2_jax.crystals.cif.sites import Sites
from chemeleon2_jax.crystals.cif.syntax import Block

_FORMULA_TAGS = ("_chemical_formula_sum", "_chemical_formula_iupac")
_AMOUNT = re.compile(r"([A-Z][a-z]?|[A-Z]{2})\s*(\d*\.?\d*)\s*")


@dataclass(frozen=True)
class Declared:
    """The declared contents.

    Attributes:
        formula: symbol -> amount; None if there is none that can be read.
        digits: decimals of the amounts.
        units: formula units in the cell; None where not declared.
        notes: a formula that cannot be read.
    """

    formula: dict[str, float] | None
    digits: int = 0
    units: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def symbols(self) -> frozenset[str]:
        """Symbols of the formula."""
        return frozenset(self.formula or ())


def read_declared(block: Block) -> Declared:
    """Return formula and number of formula units of a block, where they can be read."""
    written = block.first(*_FORMULA_TAGS)
    formula, digits = _read_formula(written)
    notes = (f"declared formula {written[:40]!r} cannot be read: not compared",)
    units = None
    text = block.first("_cell_formula_units_z")
    if text:
        try:
            units = read_number(text, label="Z")[0]
        except ValueError:
            units = None
    return Declared(
        formula,
        digits,
        units if units and 0 < units < 1e6 else None,
        notes if written and formula is None else (),
    )


def _read_formula(text: str) -> tuple[dict[str, float] | None, int]:
    """Return the amounts of "C6 H12 O6", or None, and their decimals."""
    amounts: dict[str, float] = {}
    digits = position = 0
    text = text.strip()
    while position < len(text):
        match = _AMOUNT.match(text, position)
        if match is None:
            return None, 0
        symbol, amount = match[1].capitalize(), match[2]
        if symbol not in ATOMIC_NUMBERS or amount == ".":
            return None, 0
        symbol = "H" if symbol in ISOTOPES else symbol
        amounts[symbol] = amounts.get(symbol, 0.0) + (float(amount) if amount else 1.0)
        digits = max(digits, len(amount.partition(".")[2]))
        position = match.end()
    amounts = {symbol: amount for symbol, amount in amounts.items() if amount > 0}
    return amounts or None, digits


def compare(declared: Declared, sites: Sites, atoms: Atoms, *, num_operations: int) -> list[str]:
    """Return how the atoms of a cell disagree with formula, Z and multiplicities."""
    doubts = []
    read = Counter(sites.symbols[site] for site in atoms.site.tolist())
    if declared.formula is not None:
        doubts += _compare_formula(declared, read)
    wrong = [
        f"{label} {count} (declared {expected})"
        for label, count, expected in zip(
            sites.labels, atoms.counts.tolist(), sites.multiplicities, strict=True
        )
        # Some programs write the order of the site's symmetry, or count the primitive cell.
        if count and expected and count != expected and count * expected != num_operations
    ]
    if wrong:
        doubts.append(f"multiplicities of sites: {', '.join(wrong[:4])}")
    return doubts


def _compare_formula(declared: Declared, read: Counter[str]) -> list[str]:
    formula = declared.formula or {}
    shown = f"read {_text(read)}, declared {_text(formula)}"
    units = sum(read.values()) / sum(formula.values())
    whole = max(round(units), 1)
    # Amounts are rounded to their digits.
    limit = 0.6 * 10.0**-declared.digits if declared.digits else 1e-6
    if any(
        abs(read[symbol] - whole * formula.get(symbol, 0.0)) > whole * limit
        for symbol in {*read, *formula}
    ):
        return [f"formula: {shown}"]
    expected = declared.units
    # pymatgen writes the contents of the cell as the formula, and their common divisor as Z.
    divisor = math.gcd(*read.values())
    if expected and whole != expected and not (whole == 1 and divisor % expected == 0):
        return [f"number of formula units: {shown} with Z = {expected:g}"]
    return []


def _text(amounts: dict[str, float] | Counter[str]) -> str:
    return " ".join(f"{symbol}{amount:g}" for symbol, amount in sorted(amounts.items()))
