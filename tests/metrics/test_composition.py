"""Compositions whose charges balance or not, and those with too many combinations."""

import subprocess
import sys

import numpy as np
import pytest
from pymatgen.core import Composition, Lattice, Structure

from chemeleon2_jax.metrics import composition
from chemeleon2_jax.metrics.composition import (
    MAX_COMBINATIONS,
    NOT_BALANCED,
    composition_check,
)


def crystal(formula):
    """Atoms somewhere: only their elements count."""
    elements = [e for e, n in Composition(formula).items() for _ in range(int(n))]
    sites = np.random.default_rng(0).random((len(elements), 3))
    return Structure(Lattice.cubic(9.0), elements, sites)


@pytest.mark.parametrize(
    ("formula", "reason"),
    [
        ("NaCl", None),
        ("Na4Cl4", None),
        ("CaTiO3", None),
        ("NaCl2", NOT_BALANCED),
        ("Na2O9", NOT_BALANCED),
        ("Fe", None),  # one element
        ("He", None),  # whichever it is
        ("CuZn", None),  # alloys
        ("NaK", None),
        ("HeNe", "no oxidation states: He, Ne"),
        ("EsCl3", "no oxidation states: Es"),
        ("PmO2", "no oxidation states: Pm"),
    ],
)
def test_validity(formula, reason):
    check = composition_check([crystal(formula)])
    assert check.reasons == (reason,)
    assert check.errors == (None,)
    assert check.passed.tolist() == [reason is None]


def test_not_a_crystal_is_an_error():
    disordered = Structure(Lattice.cubic(4.0), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])
    empty = ([], np.zeros((0, 3)), np.eye(3))
    unknown = ([120], np.zeros((1, 3)), np.eye(3))
    check = composition_check([crystal("NaCl"), None, disordered, empty, unknown])
    assert check.passed.tolist() == [True, False, False, False, False]
    assert check.errors[:2] == (None, "not built")
    assert check.errors[2].startswith("not a crystal: partial occupancy")
    assert check.errors[3] == "not a crystal: no atom"
    assert check.errors[4].startswith("not a crystal: ")
    assert check.share == 0.2
    assert composition_check([]).passed.shape == (0,)


MANY_STATES = "NCPSMnAsTeOsBiSiGe"


def test_too_many_combinations_are_not_tried():
    """All of these would take minutes."""
    check = composition_check([crystal(MANY_STATES), crystal("NaCl")])
    assert check.passed.tolist() == [False, True]
    assert check.errors[1] is None
    assert check.errors[0] == check.reasons[0]
    assert check.errors[0].startswith("not checked: ")
    assert check.errors[0].endswith(f"of 11 elements, the limit is {MAX_COMBINATIONS}")
    assert composition_check([crystal("NaCl")], max_combinations=1).errors[0] is not None


def test_alloys_have_no_limit():
    metals = "CrFeMnCoNiMoRuReOsNb"
    assert composition_check([crystal(metals)], max_combinations=1).passed.tolist() == [True]


def test_a_formula_is_judged_once():
    composition._find_fault.cache_clear()
    check = composition_check([crystal("NaCl"), crystal("Na3Cl3"), crystal("NaCl2")])
    assert check.passed.tolist() == [True, True, False]
    assert composition._find_fault.cache_info().misses == 2


def test_smact_is_imported_when_it_is_needed():
    code = (
        "import sys, chemeleon2_jax.metrics.composition\n"
        "assert not [m for m in sys.modules if m.startswith('smact')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
