"""How well an autoencoder reconstructs crystals: match rate and RMS displacement.

pymatgen's StructureMatcher takes milliseconds for most pairs and minutes for some, so pairs are
matched in worker processes with a time limit for each. A pair that is not matched in time, or fails
for another reason, counts as not matched, and the reason is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core.structure import Structure

from chemeleon2_jax.crystals.arrays import CrystalArrays
from chemeleon2_jax.crystals.structures import structure_from_arrays
from chemeleon2_jax.data.structure_files import NOT_BUILT
from chemeleon2_jax.metrics.matching import Tolerances
from chemeleon2_jax.workers import WorkerPool

Pair = tuple[CrystalArrays | None, CrystalArrays]
"""A generated crystal, None if it could not be built, and its reference."""

_Answer = tuple[bool, float | None, str | None]  # fits, normalised RMS displacement, reason

NO_MATCH = "no match"

_CHUNK_SIZE = 4  # pairs take milliseconds


STRICT_AND_LOOSE: Mapping[str, Tolerances] = MappingProxyType(
    {"match_rate": Tolerances(), "match_rate_loose": Tolerances(0.3, 0.5, 10.0)}
)
"""StructureMatcher's defaults, and the looser tolerances usual in structure prediction."""


@dataclass(frozen=True)
class MatchResult:
    """The outcome of each pair.

    There are two definitions of a match. StructureMatcher's ``fit`` requires every atom within the
    site tolerance; that is ``rate``. Its ``get_rms_dist``, which most benchmarks of structure
    prediction use, requires the root mean square within it; that is ``rate_by_rms``, never smaller.

    Attributes:
        fits: for each pair, whether every atom is within the tolerance.
        rms: for each pair, the root mean square displacement of its atoms over (V / N) ** (1/3),
            without a unit; None where it is beyond the tolerance or no atoms correspond.
        reasons: for each pair, None where it fits, or why it does not: "no match",
            "no match: ...", "not built: ...", "timeout after 3 s", "ValueError: ...",
            "worker died (...)".
    """

    fits: tuple[bool, ...]
    rms: tuple[float | None, ...]
    reasons: tuple[str | None, ...]

    @property
    def rate(self) -> float:
        """Share of all pairs in which every atom is within the tolerance; 0 without pairs."""
        return sum(self.fits) / len(self.fits) if self.fits else 0.0

    @property
    def rate_by_rms(self) -> float:
        """Share of all pairs whose RMS displacement is within the tolerance; 0 without pairs."""
        return sum(value is not None for value in self.rms) / len(self.rms) if self.rms else 0.0

    @property
    def mean_rms(self) -> float | None:
        """Mean normalised RMS displacement of the pairs that have one; None without such pairs."""
        matched = [value for value in self.rms if value is not None]
        return float(np.mean(matched)) if matched else None

    @property
    def num_timeouts(self) -> int:
        """Number of pairs that exceeded the time limit."""
        return sum(reason is not None and reason.startswith("timeout") for reason in self.reasons)

    @property
    def counts(self) -> dict[str, int]:
        """Number of pairs that do not fit, by kind of reason (the text before a colon)."""
        kinds = [reason.partition(":")[0] for reason in self.reasons if reason is not None]
        return dict(Counter(kinds).most_common())


def match_rates(
    pairs: Sequence[Pair],
    pool: WorkerPool,
    *,
    tolerances: Mapping[str, Tolerances] = STRICT_AND_LOOSE,
    timeout_s: float = 3.0,
    on_done: Callable[[int], None] | None = None,
) -> dict[str, MatchResult]:
    """Match every generated crystal to its reference, with several tolerances at once.

    Args:
        pairs: (generated or None, reference), each (atom_types, frac_coords, lattice).
        pool: processes to match in.
        tolerances: name -> tolerances.
        timeout_s: limit for one pair with one set of tolerances, in seconds.
        on_done: called with the number of matchings just finished (pairs times tolerances in
            all).

    Returns:
        name -> result, for the names in ``tolerances``.
    """
    work = [(pair, name) for pair in pairs for name in tolerances]
    outcomes = pool.map(
        partial(_match, tolerances=dict(tolerances)),
        work,
        timeout_s=timeout_s,
        chunk_size=_CHUNK_SIZE,
        on_done=on_done,
    )
    answers = [o.value if o.error is None else (False, None, o.error) for o in outcomes]
    results = {}
    for start, name in enumerate(tolerances):
        of_name = answers[start :: len(tolerances)]
        fits, rms, reasons = zip(*of_name, strict=True) if of_name else ((), (), ())
        results[name] = MatchResult(fits, rms, reasons)
    return results


def _match(work: tuple[Pair, str], *, tolerances: Mapping[str, Tolerances]) -> _Answer:
    """Match one pair, in a worker."""
    (generated, reference), name = work
    if generated is None:
        return False, None, NOT_BUILT
    try:
        structure = structure_from_arrays(*generated)
    except ValueError as error:
        return False, None, f"{NOT_BUILT}: {error}"
    try:
        target = structure_from_arrays(*reference)
    except ValueError as error:
        return False, None, f"reference {NOT_BUILT}: {error}"
    # Different formulas never match, and the matcher would take long to find out.
    if structure.composition.reduced_composition != target.composition.reduced_composition:
        return False, None, f"{NO_MATCH}: another formula"
    return _compare(structure, target, tolerances[name])


def _compare(structure: Structure, target: Structure, tolerances: Tolerances) -> _Answer:
    matcher = StructureMatcher(
        ltol=tolerances.ltol, stol=tolerances.stol, angle_tol=tolerances.angle_tol
    )
    displacements = matcher.get_rms_dist(target, structure)
    if displacements is None:  # then it does not fit either: the largest is not below the RMS
        return False, None, NO_MATCH
    rms, largest = float(displacements[0]), float(displacements[1])
    # The correspondence of the smallest RMS need not have the smallest largest displacement.
    if largest < tolerances.stol or matcher.fit(target, structure):
        return True, rms, None
    return False, rms, f"{NO_MATCH}: an atom is displaced by more than the tolerance"
