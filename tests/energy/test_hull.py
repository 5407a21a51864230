"""Energies above the hull, against values worked out by hand and pymatgen's phase diagram."""

import json

import numpy as np
import pytest
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition, Element
from pymatgen.entries.computed_entries import ComputedEntry

from chemeleon2_jax.common.errors import EnergyError
from chemeleon2_jax.common.scores import check_values
from chemeleon2_jax.energy.entry import Entry
from chemeleon2_jax.energy.hull import Hull, read_hull
from chemeleon2_jax.energy.results import Energies
from tests.energy.cells import fcc, rocksalt

# eV/atom
KNOWN = {"Na": -1.3, "Cl": -1.8, "NaCl": -3.4, "NaCl3": -2.0, "Cu": -4.1, "Na2": -1.2}


def hull_of(known=None, **options):
    entries = [
        PDEntry(Composition(formula), energy * Composition(formula).num_atoms)
        for formula, energy in (known or KNOWN).items()
    ]
    return Hull(entries, **({"corrected": True} | options))


def energies_of(values, reasons=None, *, corrected=True):
    return Energies(*check_values(values, reasons or [None] * len(values)), corrected)


def test_by_hand():
    structures = [
        rocksalt(),  # NaCl itself
        rocksalt(),  # below the hull
        fcc("Cu", 3.6),
        rocksalt("Na", "Cu"),  # no compound: half of each element
        fcc("Na", 5.3),  # of two entries the lower
    ]
    above = hull_of().e_above_hull(structures, energies_of([-3.3, -3.5, -4.0, -2.5, -1.25]))
    expected = [0.1, -0.1, 0.1, -2.5 + (1.3 + 4.1) / 2, 0.05]
    np.testing.assert_allclose(above.values, expected, atol=1e-9)
    assert above.reasons == (None,) * 5


def test_a_mixture_of_a_compound_and_an_element():
    # NaCl3 is above the line from NaCl to Cl: half of the atoms are in NaCl, half in Cl.
    energy = hull_of().energy({11: 0.25, 17: 0.75})
    assert energy == pytest.approx((-3.4 - 1.8) / 2)


def test_missing_elements_cost_their_crystals():
    structures = [rocksalt("Li", "F"), rocksalt(), None, rocksalt("Na", "F")]
    energies = energies_of([-4.0, -3.4, None, -4.0], [None, None, "not built", None])
    above = hull_of().e_above_hull(structures, energies)
    assert above.reasons == (
        "missing elements: Li, F",
        None,
        "not built",
        "missing elements: F",
    )
    np.testing.assert_array_equal(np.isnan(above.values), [True, False, True, True])
    assert above.failures == {"missing elements": 2, "not built": 1}


def test_an_element_that_is_only_in_compounds_is_missing():
    hull = hull_of({"Na": -1.3, "NaCl": -3.4})
    with pytest.raises(EnergyError, match=r"^missing elements: Cl$"):
        hull.energy({11: 0.5, 17: 0.5})


def test_against_pymatgen():
    """Random entries of up to four elements out of five."""
    rng = np.random.default_rng(0)
    symbols = ["Li", "Mg", "Fe", "O", "F"]
    entries = [PDEntry(Composition(symbol), float(rng.normal())) for symbol in symbols]
    for _ in range(120):
        some = rng.choice(symbols, rng.integers(2, 5), replace=False)
        composition = Composition({symbol: int(rng.integers(1, 5)) for symbol in some})
        entries.append(PDEntry(composition, float(rng.normal(-1)) * composition.num_atoms))
    hull, diagram = Hull(entries, corrected=False), PhaseDiagram(entries)
    stable = 0
    for _ in range(60):
        some = rng.choice(symbols, rng.integers(1, 6), replace=False)
        amounts = rng.integers(1, 6, len(some))
        composition = Composition(dict(zip(some, map(int, amounts), strict=True)))
        fractions = {e.Z: composition.get_atomic_fraction(e) for e in composition}
        expected = diagram.get_hull_energy_per_atom(composition)
        assert hull.energy(fractions) == pytest.approx(expected, abs=1e-7)
        stable += len(diagram.get_decomposition(composition)) == 1
    assert stable < 60


def test_many_elements():
    """Both searches of a chemical system find the same compounds."""
    known = {Element.from_Z(z).symbol: 0.0 for z in range(19, 35)}
    hull = hull_of({**known, "CaSe": -3.0})
    fractions = dict.fromkeys(range(19, 35), 1 / 16)
    assert hull.energy(fractions) == pytest.approx(-3.0 * 2 / 16)


@pytest.mark.parametrize("corrected", [False, True])
def test_scales_must_match(corrected):
    hull = hull_of(corrected=corrected)
    energies = energies_of([-3.3], corrected=not corrected)
    with pytest.raises(EnergyError, match="off by up to an eV/atom") as caught:
        hull.e_above_hull([rocksalt()], energies)
    assert ("correct_energies" in str(caught.value)) is corrected
    hull.e_above_hull([rocksalt()], energies_of([-3.3], corrected=corrected))


def test_entries_with_corrections_have_both_scales():
    entries = [ComputedEntry("Na", -1.3), ComputedEntry("Cl", -1.8, correction=-0.6)]
    entries.append(ComputedEntry("NaCl", -6.0, correction=-0.8))
    hull = Hull(entries)
    assert (hull.corrected, hull.has_both_scales) == (True, True)
    structures = [rocksalt(), fcc("Cl", 5.0)]
    above = hull.e_above_hull(structures, energies_of([-3.3, -2.0]))
    np.testing.assert_allclose(above.values, [0.1, 0.4])
    above = hull.e_above_hull(structures, energies_of([-3.3, -2.0], corrected=False))
    np.testing.assert_allclose(above.values, [-0.3, -0.2])
    assert Hull(entries, corrected=False).corrected is False


def test_the_scale_must_be_stated():
    with pytest.raises(EnergyError, match=r"state the scale of .*: corrected=True"):
        hull_of(corrected=None)
    with pytest.raises(EnergyError, match="state the scale"):
        Hull([ComputedEntry("Na", -1.3)])
    # One kind of entry holds corrections, the other does not.
    with pytest.raises(EnergyError, match="state the scale"):
        Hull([ComputedEntry("Cl", -1.3, correction=-0.6), PDEntry("Na", -1.3)])


@pytest.mark.parametrize(
    ("entries", "message"),
    [([], "there are none"), ([Entry({11: 1.0}, -1.3), "NaCl"], "entry 1: a str is no entry")],
)
def test_a_hull_of_nothing(entries, message):
    with pytest.raises(EnergyError, match=message):
        Hull(entries, corrected=True)


def test_read_from_a_file(tmp_path):
    path = tmp_path / "hull.json"
    rows = [{"formula": "Na", "energy_per_atom": -1.3}]
    path.write_text(json.dumps({"corrected": False, "entries": rows}))
    assert read_hull(path).corrected is False
    assert read_hull(path, corrected=False).energy({11: 1.0}) == -1.3
    with pytest.raises(EnergyError, match="states corrected = False, but corrected=True"):
        read_hull(path, corrected=True)
    path.write_text(json.dumps(rows))
    assert read_hull(path, corrected=True).corrected is True
    with pytest.raises(EnergyError, match=r"hull\.json: state the scale"):
        read_hull(path)
