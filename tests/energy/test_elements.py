"""References of the elements, and the hull that they complete."""

import numpy as np
import pytest

from chemeleon2_jax.common.errors import EnergyError
from chemeleon2_jax.common.scores import Scores
from chemeleon2_jax.energy.elements import elemental_crystals, elemental_entries
from chemeleon2_jax.energy.hull import Hull
from chemeleon2_jax.energy.results import Energies, Relaxed


class Bonds:
    """An energy model that counts neighbours within 1.15 bond lengths: close packing wins."""

    name, corrected, elements = "bonds", False, None

    def relax(self, structures, *, steps, fmax=0.05):
        assert steps > 0
        energies = [self._energy(structure) for structure in structures]
        reasons = [None if np.isfinite(e) else "unknown element" for e in energies]
        count = len(energies)
        return Relaxed(
            tuple(structures),
            Energies(np.array(energies), tuple(reasons), False),
            np.ones(count, bool),
            np.full(count, steps),
        )

    def _energy(self, structure):
        if structure.elements[0].symbol == "Xe":
            return np.nan
        sites = structure.get_all_neighbors(8.0)
        bond = min(neighbour.nn_distance for of_site in sites for neighbour in of_site)
        close = [n for of_site in sites for n in of_site if n.nn_distance < 1.15 * bond]
        return -len(close) / len(structure)


def test_prototypes_have_their_coordination():
    energies = [Bonds()._energy(crystal) for crystal in elemental_crystals("Cu")]
    # Body-centred: 8 neighbours; 6 more are 1.1547 bonds away.
    assert energies == [-12.0, -8.0, -12.0, -4.0, -6.0, -1.0]
    with pytest.raises(ValueError, match="'Zz' is no element"):
        elemental_crystals("Zz")


def test_they_complete_a_hull_of_compounds():
    compounds = [{"formula": "LiF", "energy_per_atom": -13.0}]
    structures = elemental_crystals("Li")[:1]
    energies = Energies(np.array([-11.5]), (None,), False)
    alone = Hull(compounds, corrected=False).e_above_hull(structures, energies)
    assert isinstance(alone, Scores)
    assert alone.reasons == ("missing elements: Li",)
    entries = elemental_entries(Bonds(), ["Li", "F", "Li"])
    assert [entry.energy for entry in entries] == [-12.0, -12.0]
    hull = Hull([*compounds, *entries], corrected=False)
    assert hull.e_above_hull(structures, energies).values == pytest.approx([0.5])
    assert hull.energy({3: 0.75, 9: 0.25}) == pytest.approx(-12.5)


def test_an_element_without_energy_is_an_error():
    with pytest.raises(EnergyError, match="bonds gives no energy for any crystal of Xe"):
        elemental_entries(Bonds(), ["Li", "Xe"])
    assert elemental_entries(Bonds(), []) == []


def test_results_print_in_a_line():
    relaxed = Bonds().relax(elemental_crystals("Cu"), steps=3)
    assert repr(relaxed) == ("Relaxed(6 crystals, 6 with energy, 6 converged, lowest -12 eV/atom)")
