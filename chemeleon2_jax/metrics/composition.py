"""Can the elements of a crystal balance their charges? SMACT's test of compositions.

Davies et al., Chem 1, 617 (2016), with the oxidation states that occur in the ICSD of 2024.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Any

from pymatgen.core import Composition, Element

from chemeleon2_jax.crystals.geometry import as_arrays
from chemeleon2_jax.data.structure_files import NOT_BUILT
from chemeleon2_jax.metrics.matching import Formula, reduced_formula
from chemeleon2_jax.metrics.structure import Check

OXIDATION_STATES = "icsd24"
"""SMACT's set of oxidation states, that of the original; SMACT's own default is another."""

MAX_COMBINATIONS = 100_000
"""The most combinations of oxidation states to try; each takes microseconds."""

NO_STATES = "no oxidation states"
NOT_BALANCED = "oxidation states do not balance"


def composition_check(
    structures: Iterable[Any], *, max_combinations: int = MAX_COMBINATIONS
) -> Check:
    """Check that some oxidation states balance, with anions more electronegative than cations.

    SMACT's defaults hold: any single element is valid, and so are alloys of metals alone; all atoms
    of an element have the same oxidation state. Other compositions with an element without known
    oxidation states (He, Ne, Ar, Pm, At, Rn, Fr, Ra, Es) fail.

    Args:
        structures: structures, (atom_types, frac_coords, lattice) triples, or None (not built).
        max_combinations: of oxidation states; a composition with more is not checked.
    """
    verdicts = [_judge(structure, max_combinations) for structure in structures]
    return Check.of([fault for _, fault in verdicts], [error for error, _ in verdicts])


def _judge(structure: Any, max_combinations: int) -> tuple[str | None, str | None]:
    """Return why a composition could not be checked, and why it is not valid."""
    if structure is None:
        return NOT_BUILT, None
    try:
        formula = reduced_formula(as_arrays(structure)[0])
        symbols = [Element.from_Z(number).symbol for number, _ in formula]
    except (TypeError, ValueError) as error:
        return f"not a crystal: {error}", None
    combinations = math.prod(len(_oxidation_states(symbol)) for symbol in symbols)
    if combinations > max_combinations and not _is_alloy(symbols):
        return (
            f"not checked: {combinations} combinations of oxidation states of "
            f"{len(symbols)} elements, the limit is {max_combinations}"
        ), None
    return None, _find_fault(formula)


@lru_cache(maxsize=100_000)
def _find_fault(formula: Formula) -> str | None:
    """Return why a reduced formula is not valid, or None."""
    # Takes half a second, which importers of this module and worker processes need not spend.
    from smact.screening import smact_validity

    counts = {Element.from_Z(number).symbol: count for number, count in formula}
    if smact_validity(Composition(counts), oxidation_states_set=OXIDATION_STATES):
        return None
    unknown = [symbol for symbol in counts if not _oxidation_states(symbol)]
    return f"{NO_STATES}: {', '.join(unknown)}" if unknown else NOT_BALANCED


@cache
def _oxidation_states(symbol: str) -> tuple[int, ...]:
    import smact

    return tuple(smact.Element(symbol).oxidation_states_icsd24 or ())


def _is_alloy(symbols: Iterable[str]) -> bool:
    """Whether SMACT passes these elements without trying oxidation states."""
    import smact

    return set(symbols) <= set(smact.metals)
