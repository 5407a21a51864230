"""Rewards for symmetry: functions of Structures, as a user writes them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache

import moyopy
from pymatgen.core import Structure

from chemeleon2_jax.crystals.geometry import MIN_DISTANCE
from chemeleon2_jax.crystals.symmetry import find_space_group
from chemeleon2_jax.rewards.options import check_positive, check_text

NUM_SPACE_GROUPS = 230
LARGEST_ORDER = 48
"""Operations of the point group m-3m; no crystal has more."""


def space_group(
    structures: Sequence[Structure], *, targets: str | int = "", symprec: float = 0.1
) -> list[float]:
    """Score 1 for crystals whose space group is one of the targets, else 0.

    Args:
        structures: the crystals.
        targets: numbers and ranges of numbers, 1..230, between commas, as in "166,195-230"
        symprec: tolerance of atomic positions, in angstrom

    Raises:
        ValueError: wrong targets or tolerance; a crystal whose space group is not found
            (:func:`find_space_group`).
    """
    numbers = parse_space_groups(targets)
    _check_symprec(symprec)
    return [float(find_space_group(one, symprec=symprec) in numbers) for one in structures]


def symmetry(structures: Sequence[Structure], *, symprec: float = 0.1) -> list[float]:
    """Score the number of operations of the point group, from 0 for P1 to 1 for cubic m-3m.

    The score is log2(operations) / log2(48): 0.18 for a mirror alone, 0.54 for mmm, 0.72 for 4/mmm;
    each further generator of order two adds 0.18.

    Args:
        structures: the crystals.
        symprec: tolerance of atomic positions, in angstrom

    Raises:
        ValueError: a wrong tolerance; a crystal whose space group is not found
            (:func:`find_space_group`).
    """
    _check_symprec(symprec)
    orders = [_point_group_order(find_space_group(one, symprec=symprec)) for one in structures]
    return [math.log2(order) / math.log2(LARGEST_ORDER) for order in orders]


def parse_space_groups(targets: str | int) -> frozenset[int]:
    """Return the numbers in a text such as "166,195-230".

    Raises:
        ValueError: no number, or one that is no space group's.
    """
    # A single number of a command line is no text.
    is_number = isinstance(targets, int) and not isinstance(targets, bool)
    text = str(targets) if is_number else check_text(targets, "targets")
    numbers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\s*-\s*(\d+))?", part.strip(), re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last <= NUM_SPACE_GROUPS:
            raise ValueError(
                f"targets has {part.strip()!r}; give numbers of space groups, 1..230, or ranges of "
                'them, as in "166,195-230"'
            )
        numbers.update(range(first, last + 1))
    return frozenset(numbers)


def _check_symprec(symprec: float) -> None:
    if check_positive(symprec, "symprec") >= MIN_DISTANCE:
        raise ValueError(
            f"symprec is {symprec!r}; it must be below {MIN_DISTANCE} angstrom, the least distance "
            "of atoms"
        )


@cache
def _point_group_order(number: int) -> int:
    """Number of operations of a space group's point group, in a primitive cell of any setting."""
    return len(moyopy.operations_from_number(number, primitive=True))
