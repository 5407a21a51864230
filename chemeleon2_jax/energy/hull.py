"""Energies of crystals above the convex hull of known compounds.

The energy of the hull at a composition is the lowest energy of a mixture of known compounds: a
linear programme over the compounds of its elements. That equals pymatgen's ``PhaseDiagram``,
without building a hull for each chemical system.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from pymatgen.core import Element

from chemeleon2_jax.common.errors import EnergyError
from chemeleon2_jax.common.scores import Scores, check_values
from chemeleon2_jax.crystals.geometry import as_arrays
from chemeleon2_jax.energy.entries import entry_of, read_entries
from chemeleon2_jax.energy.entry import Entry
from chemeleon2_jax.energy.results import Energies

_MISSING = "missing elements: "
_MAX_SYSTEMS = 10_000  # chemical systems kept in memory, some 10 kB each
_SCALE = {True: "Materials Project's corrected (MP2020) scale", False: "the uncorrected scale"}


class Hull:
    """The convex hull of known compounds.

    Attributes:
        corrected: scale of its energies; the default one if ``has_both_scales``.
        has_both_scales: its entries hold their corrections apart, so that energies of either scale
            can be compared with it.
        elements: atomic numbers of the elements with an energy.
    """

    def __init__(self, entries: Iterable[Any], *, corrected: bool | None = None) -> None:
        """Take pymatgen's entries, rows with `formula` and `energy_per_atom`, or
        :class:`~chemeleon2_jax.energy.entry.Entry`.

        Args:
            entries: of one file or phase diagram.
            corrected: their scale; required, unless they hold corrections of their own and are
                thus on both scales.

        Raises:
            EnergyError: there are no entries, one cannot be read, or their scale is not stated.
        """
        known = []
        for index, entry in enumerate(entries):
            try:
                known.append(entry_of(entry))
            except ValueError as error:
                raise EnergyError(f"entry {index}: {error}") from error
        if not known:
            raise EnergyError("a hull needs entries, and there are none")
        added = [entry.correction for entry in known]
        self.has_both_scales = None not in added and any(added)
        if corrected is None and not self.has_both_scales:
            raise EnergyError(
                "state the scale of the hull's energies: corrected=True for Materials "
                "Project's corrected energies (MP2020), corrected=False for uncorrected ones"
            )
        self.corrected = True if corrected is None else corrected
        self._entries: dict[frozenset[int], list[Entry]] = {}
        for entry in known:
            self._entries.setdefault(frozenset(entry.fractions), []).append(entry)
        self.elements = frozenset(z for key in self._entries if len(key) == 1 for z in key)
        self._systems: dict[tuple[frozenset[int], bool], tuple[np.ndarray, np.ndarray]] = {}

    def e_above_hull(self, structures: Sequence[Any], energies: Energies) -> Scores:
        """Return energies above the hull in eV/atom, negative below it.

        Args:
            structures: structures, (atom_types, frac_coords, lattice) triples, or None.
            energies: of the structures.

        Raises:
            EnergyError: energies and hull are on different scales.
        """
        self.check_scale(energies.corrected)
        values: list[float | None] = []
        reasons = list(energies.reasons)
        for index, structure in enumerate(structures):
            value = None
            if reasons[index] is None:
                counts = np.bincount(as_arrays(structure)[0])
                fractions = {int(z): counts[z] / counts.sum() for z in np.flatnonzero(counts)}
                try:
                    hull = self.energy(fractions, corrected=energies.corrected)
                    value = float(energies.values[index]) - hull
                except EnergyError as error:
                    reasons[index] = str(error)
            values.append(value)
        self._warn_of_missing(reasons)
        return Scores(*check_values(values, reasons))

    def _warn_of_missing(self, reasons: Sequence[str | None]) -> None:
        missing = [reason for reason in reasons if reason and reason.startswith(_MISSING)]
        if missing:
            logging.warning(
                "%d of %d crystals have elements without an energy in the hull (%s): entries of "
                "compounds alone are no hull. Add references of the elements by the same model: "
                "chemeleon2_jax.energy.elements.elemental_entries",
                *(len(missing), len(reasons), missing[0].removeprefix(_MISSING)),
            )

    def check_scale(self, corrected: bool) -> None:
        """Check that energies of a scale can be compared with the hull.

        Raises:
            EnergyError: they cannot; says what to do.
        """
        if corrected == self.corrected or self.has_both_scales:
            return
        advice = (
            "Correct the energies (chemeleon2_jax.energy.correction.correct_energies), take a model"
            if self.corrected
            else "Take a model"
        )
        raise EnergyError(
            f"the energies are on {_SCALE[corrected]}, but the hull is on "
            f"{_SCALE[self.corrected]}: their difference would be off by up to an eV/atom. "
            f"{advice} of the hull's scale, or a hull of the model's"
        )

    def energy(self, fractions: dict[int, float], *, corrected: bool | None = None) -> float:
        """Return the energy of the hull in eV/atom.

        Args:
            fractions: share of each atomic number; they sum to 1.
            corrected: scale; None is the hull's own.

        Raises:
            EnergyError: "missing elements: Xx, Yy", the elements without an energy.
        """
        missing = sorted(set(fractions) - self.elements)
        if missing:
            symbols = ", ".join(Element.from_Z(z).symbol for z in missing)
            raise EnergyError(f"{_MISSING}{symbols}")
        order = sorted(fractions)
        scale = self.corrected if corrected is None else corrected
        compositions, energies = self._system(frozenset(order), scale)
        target = np.array([fractions[z] for z in order])
        return _lowest_mixture(compositions, energies, target)

    def _system(self, elements: frozenset[int], corrected: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return compositions (k, m) and energies (m,) of the compounds in a chemical system."""
        key = (elements, corrected)
        if key not in self._systems:
            if len(self._systems) >= _MAX_SYSTEMS:
                self._systems.clear()
            order = sorted(elements)
            lowest: dict[tuple[float, ...], float] = {}
            for entry in self._within(elements):
                point = tuple(round(entry.fractions.get(z, 0.0), 10) for z in order)
                energy = self._energy_of(entry, corrected)
                lowest[point] = min(energy, lowest.get(point, np.inf))
            self._systems[key] = np.array(list(lowest)).T, np.array(list(lowest.values()))
        return self._systems[key]

    def _within(self, elements: frozenset[int]) -> Iterable[Entry]:
        if 2 ** len(elements) > len(self._entries):
            keys = [key for key in self._entries if key <= elements]
        else:
            sizes = range(1, len(elements) + 1)
            subsets = (c for n in sizes for c in combinations(sorted(elements), n))
            keys = [key for key in map(frozenset, subsets) if key in self._entries]
        return (entry for key in keys for entry in self._entries[key])

    def _energy_of(self, entry: Entry, corrected: bool) -> float:
        """Return the energy of an entry, with its own correction on the corrected scale."""
        return entry.energy + (entry.correction or 0.0 if corrected else 0.0)


def _lowest_mixture(compositions: np.ndarray, energies: np.ndarray, target: np.ndarray) -> float:
    """Return the lowest energy in eV/atom of a mixture of compounds with a given composition.

    Args:
        compositions: (k, m) fractions of k elements in m compounds.
        energies: (m,) eV/atom.
        target: (k,) fractions.
    """
    from scipy.optimize import linprog

    if len(target) == 1:
        return float(energies.min())
    result = linprog(energies, A_eq=compositions, b_eq=target, bounds=(0, None), method="highs")
    if result.fun is None:
        raise EnergyError(f"no hull energy: {result.message}")
    return float(result.fun)


def read_hull(path: str | Path, *, corrected: bool | None = None) -> Hull:
    """Read a hull from a file of entries (see :func:`~chemeleon2_jax.energy.entries.read_entries`).

    Args:
        path: of the file.
        corrected: scale of its energies; None if the file states it, or holds corrections.

    Raises:
        EnergyError: it cannot be read, or its scale is not stated or differs from `corrected`.
    """
    content = read_entries(path)
    if None not in (corrected, content.corrected) and corrected != content.corrected:
        raise EnergyError(
            f"{path} states corrected = {content.corrected}, but corrected={corrected} was given"
        )
    try:
        stated = content.corrected if corrected is None else corrected
        return Hull(content.entries, corrected=stated)
    except EnergyError as error:
        raise EnergyError(f"{path}: {error}") from error
