"""Rewards of elements on crystals whose composition is known."""

import pickle
from functools import partial

import pytest
from pymatgen.core import Lattice, Structure

from chemeleon2_jax.rewards.composition import (
    allowed_elements,
    composition_validity,
    number_of_elements,
    parse_elements,
)
from tests.rewards.crystals import DIAMOND, DISORDERED, PEROVSKITE, ROCK_SALT, TRICLINIC

CRYSTALS = [ROCK_SALT, DIAMOND, PEROVSKITE, TRICLINIC]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"allowed": "Na,Cl,C"}, [1.0, 1.0, 0.0, 0.0]),
        ({"required": "O"}, [0.0, 0.0, 1.0, 0.0]),
        ({"required": "O-Ti"}, [0.0, 0.0, 1.0, 0.0]),
        ({"allowed": "Sr,Ti,O,C", "required": "C"}, [0.0, 1.0, 0.0, 0.0]),
        ({"allowed": "Na, O, K", "graded": True}, [0.5, 0.0, 3 / 5, 1 / 3]),
        ({"required": "O-Ti-Na", "graded": True}, [1 / 3, 0.0, 2 / 3, 0.0]),
        ({"allowed": "O,Ti,Na", "required": "O,Na", "graded": True}, [0.25, 0.0, 0.4, 0.0]),
    ],
)
def test_allowed_elements(options, expected):
    assert allowed_elements(CRYSTALS, **options) == pytest.approx(expected)
    assert allowed_elements([], **options) == []


def test_number_of_elements():
    assert number_of_elements(CRYSTALS, target=2) == [0.0, -1.0, -1.0, -1.0]
    assert number_of_elements(CRYSTALS, target=4.0) == [-2.0, -3.0, -1.0, -1.0]
    assert number_of_elements([], target=99) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "both empty"),
        ({"allowed": " ", "required": ""}, "both empty"),
        ({"allowed": "Na,Xx"}, "'Xx' in 'Na,Xx' is no element; give symbols"),
        ({"required": "fe"}, "'fe' in 'fe' is no element; did you mean Fe"),
        ({"allowed": "Na,,Cl"}, "'' in 'Na,,Cl' is no element"),
        ({"allowed": "Fm"}, "Fm in 'Fm' is beyond Z = 99"),
        ({"allowed": "Na,Cl", "required": "Cl,O,K"}, "not among the allowed ones: O, K"),
        ({"allowed": 11}, "allowed is 11; it must be a text"),
        ({"required": None}, "required is None"),
        ({"allowed": "Na", "graded": "no"}, "graded is 'no'"),
    ],
)
def test_wrong_elements_are_found_without_a_crystal(options, message):
    with pytest.raises(ValueError, match=message):
        allowed_elements([], **options)


@pytest.mark.parametrize("target", [0, -1, 2.5, 100, "2", True])
def test_wrong_numbers_are_found_without_a_crystal(target):
    with pytest.raises(ValueError, match="target is"):
        number_of_elements([], target=target)


def test_a_disordered_crystal_has_no_score():
    with pytest.raises(ValueError, match="partial occupancy"):
        allowed_elements([DISORDERED], allowed="Na,K")
    with pytest.raises(ValueError, match="partial occupancy"):
        number_of_elements([DISORDERED], target=2)


def test_parse_elements():
    assert parse_elements("Ba-Cr-F") == parse_elements(" F, Cr,Ba,F ") == {56, 24, 9}
    assert parse_elements("") == frozenset()


def test_they_travel_to_workers():
    function = partial(allowed_elements, allowed="C")
    assert pickle.loads(pickle.dumps(function))([DIAMOND]) == [1.0]
    function = partial(number_of_elements, target=1)
    assert pickle.loads(pickle.dumps(function))([DIAMOND]) == [0.0]


def test_composition_validity():
    salt = Structure(Lattice.cubic(5.64), ["Na", "Cl"], [[0] * 3, [0.5] * 3])
    assert composition_validity([salt]) == [1.0]
    odd = Structure(Lattice.cubic(5.64), ["Na", "Na", "Cl"], [[0] * 3, [0.5] * 3, [0.25] * 3])
    assert composition_validity([odd, salt]) == [0.0, 1.0]
    assert composition_validity([]) == []
    many = ["Fe", "Mn", "Cr", "V", "Re", "Os", "Ru", "S", "Se", "N", "P", "O"]
    places = [[i / len(many)] * 3 for i in range(len(many))]
    with pytest.raises(ValueError, match="not checked"):
        composition_validity([Structure(Lattice.cubic(12.0), many, places)])
