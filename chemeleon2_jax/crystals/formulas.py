"""Formulas and chemical systems as people write them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from pymatgen.core import Composition, DummySpecies, Element

from chemeleon2_jax.crystals.arrays import MAX_ATOMIC_NUMBER


def read_composition(value: Any) -> Composition:
    """Return a formula ("Ba1Cr1F6"), or a mapping of elements to amounts, as a Composition.

    Raises:
        ValueError: no formula, or an element beyond Z = 99.
    """
    example = 'give a formula such as "Ba1Cr1F6"'
    if not isinstance(value, str | Mapping):
        raise ValueError(f"not a composition; {example}")
    try:
        composition = Composition(value)
    # pymatgen lets through whatever a malformed formula trips.
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"not a formula ({error}); {example}") from error
    amounts = composition.as_dict()
    if not amounts or not all(math.isfinite(n) and n > 0 for n in amounts.values()):
        raise ValueError(f"not a formula of positive numbers of atoms; {example}")
    for element in composition.elements:
        if isinstance(element, DummySpecies) or not 1 <= element.Z <= MAX_ATOMIC_NUMBER:
            raise ValueError(f"{element.symbol} is no element up to Z = {MAX_ATOMIC_NUMBER}")
    return composition


def read_chemical_system(value: Any) -> list[int]:
    """Return the atomic numbers of a chemical system ("Ba-Cr-F").

    Raises:
        ValueError: not a text, or an element that is unknown or beyond Z = 99.
    """
    if not isinstance(value, str):
        raise ValueError('not a text; give elements such as "Ba-Cr-F"')
    numbers = []
    for symbol in value.split("-"):
        if not Element.is_valid_symbol(symbol.strip()):
            raise ValueError(f'{symbol!r} is no element; give elements such as "Ba-Cr-F"')
        number = Element(symbol.strip()).Z
        if number > MAX_ATOMIC_NUMBER:
            raise ValueError(f"{symbol} is beyond Z = {MAX_ATOMIC_NUMBER}")
        numbers.append(number)
    return numbers


def write_formula(atom_types: np.ndarray) -> str:
    """Return the formula of atoms, atomic numbers (n,), as in "Ba1Cr1F6"."""
    numbers, counts = np.unique(atom_types, return_counts=True)
    symbols = [Element.from_Z(int(number)).symbol for number in numbers]
    return "".join(f"{symbol}{count}" for symbol, count in zip(symbols, counts, strict=True))


def write_chemical_system(atom_types: np.ndarray) -> str:
    """Return the elements of atoms, atomic numbers (n,), as in "Ba-Cr-F"."""
    return "-".join(sorted(Element.from_Z(int(number)).symbol for number in np.unique(atom_types)))
