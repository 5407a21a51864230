"""Rewards for the elements of a crystal: functions of Structures, as a user writes them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from pymatgen.core import Element, Structure

from chemeleon2_jax.crystals.arrays import MAX_ATOMIC_NUMBER
from chemeleon2_jax.crystals.geometry import as_arrays
from chemeleon2_jax.metrics import composition as metrics_composition
from chemeleon2_jax.rewards.options import check_flag, check_positive, check_text


def allowed_elements(
    structures: Sequence[Structure], *, allowed: str = "", required: str = "", graded: bool = False
) -> list[float]:
    """Score 1 for crystals of allowed elements that hold all required ones, else 0.

    Args:
        structures: the crystals.
        allowed: symbols between commas or dashes, as in "Li,Fe,P,O"; '' allows all elements
        required: symbols that must all be present; '' requires none
        graded: score the share of atoms of allowed elements times the share of required elements
            that are present, so that a crystal that is nearly right counts too

    Raises:
        ValueError: an unknown symbol, neither allowed nor required elements, a required element
            that is not allowed; a crystal with a site that is not one element.
    """
    may_have = parse_elements(check_text(allowed, "allowed"))
    must_have = parse_elements(check_text(required, "required"))
    graded = check_flag(graded, "graded")
    if not may_have and not must_have:
        raise ValueError("allowed and required are both empty: every crystal would score 1")
    if may_have and not must_have <= may_have:
        missing = ", ".join(Element.from_Z(z).symbol for z in sorted(must_have - may_have))
        raise ValueError(f"required elements are not among the allowed ones: {missing}")
    scores = []
    for structure in structures:
        types = as_arrays(structure)[0]
        score = float(np.isin(types, list(may_have)).mean()) if may_have else 1.0
        if must_have:
            score *= len(must_have & set(types.tolist())) / len(must_have)
        scores.append(score if graded else float(score == 1.0))
    return scores


def number_of_elements(structures: Sequence[Structure], *, target: int = 3) -> list[float]:
    """Score minus the difference between a crystal's number of distinct elements and the target.

    Args:
        structures: the crystals.
        target: number of elements, 1..99

    Raises:
        ValueError: an impossible target; a crystal with a site that is not one element.
    """
    number = check_positive(target, "target")
    if number != int(number) or number > MAX_ATOMIC_NUMBER:
        raise ValueError(
            f"target is {target!r}; it must be a number of elements, 1..{MAX_ATOMIC_NUMBER}"
        )
    return [-abs(len(np.unique(as_arrays(structure)[0])) - number) for structure in structures]


def composition_validity(structures: Sequence[Structure]) -> list[float]:
    """Score 1 for crystals whose elements can balance their charges, else 0: SMACT's test.

    Args:
        structures: the crystals.

    Raises:
        ValueError: a composition that cannot be checked, such as one of too many elements.
    """
    check = metrics_composition.composition_check(structures)
    for error in check.errors:
        if error is not None:
            raise ValueError(error)
    return [float(one) for one in check.passed]


def parse_elements(text: str) -> frozenset[int]:
    """Return the atomic numbers of symbols between commas or dashes; none for a blank text.

    Raises:
        ValueError: a symbol that is no element up to Z = 99.
    """
    if not text.strip():
        return frozenset()
    return frozenset(_atomic_number(symbol.strip(), text) for symbol in re.split("[,-]", text))


def _atomic_number(symbol: str, text: str) -> int:
    if not Element.is_valid_symbol(symbol):
        near = symbol.capitalize()
        hint = f"did you mean {near}?" if Element.is_valid_symbol(near) else "give symbols: Na,Cl"
        raise ValueError(f"{symbol!r} in {text!r} is no element; {hint}")
    number = Element(symbol).Z
    if number > MAX_ATOMIC_NUMBER:
        raise ValueError(f"{symbol} in {text!r} is beyond Z = {MAX_ATOMIC_NUMBER}")
    return number
