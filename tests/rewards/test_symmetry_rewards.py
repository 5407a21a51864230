"""Space groups of known crystals, and cells on which a search could crash or never end."""

import csv
import gzip
import math
import pickle
from functools import partial

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from chemeleon2_jax.crystals.structures import structure_from_cif
from chemeleon2_jax.rewards import symmetry as module
from chemeleon2_jax.rewards.symmetry import (
    find_space_group,
    parse_space_groups,
    space_group,
    symmetry,
)
from tests.rewards.crystals import (
    DIAMOND,
    DISORDERED,
    FLAT,
    OVERLAPPING,
    PEROVSKITE,
    ROCK_SALT,
    TRICLINIC,
)

CRYSTALS = [ROCK_SALT, DIAMOND, PEROVSKITE, TRICLINIC]
QUARTZ = Structure.from_spacegroup(
    "P3_121",
    Lattice.hexagonal(4.91, 5.40),
    ["Si", "O"],
    [[0.47, 0, 1 / 3], [0.41, 0.27, 0.12 + 1 / 3]],
)


def cell(matrix, types=("Fe",), frac_coords=((0, 0, 0),)):
    return Structure(Lattice(matrix), types, frac_coords)


def test_space_group():
    assert [find_space_group(one, symprec=0.1) for one in CRYSTALS] == [225, 227, 221, 1]
    assert space_group(CRYSTALS, targets="225,227") == [1.0, 1.0, 0.0, 0.0]
    assert space_group(CRYSTALS, targets="1,195-225") == [1.0, 0.0, 1.0, 1.0]
    assert space_group(CRYSTALS, targets=221) == [0.0, 0.0, 1.0, 0.0]


def test_symmetry():
    assert symmetry(CRYSTALS) == pytest.approx([1.0, 1.0, 1.0, 0.0])
    tetragonal = PEROVSKITE.copy()
    tetragonal.lattice = Lattice.tetragonal(3.9, 4.2)  # 4/mmm
    orthorhombic = PEROVSKITE.copy()
    orthorhombic.lattice = Lattice.orthorhombic(3.9, 4.2, 4.6)  # mmm
    expected = [math.log(n) / math.log(48) for n in (16, 8, 6)]
    assert symmetry([tetragonal, orthorhombic, QUARTZ]) == pytest.approx(expected)


def test_the_tolerance_counts():
    shifted = PEROVSKITE.copy()
    shifted.translate_sites([1], [0, 0, 0.03 / 3.905], to_unit_cell=False)
    assert find_space_group(shifted, symprec=0.1) == 221
    assert find_space_group(shifted, symprec=0.01) == 99
    assert space_group([shifted], targets="99", symprec=0.01) == [1.0]
    assert symmetry([shifted], symprec=0.01) == pytest.approx([3 / math.log2(48)])


@pytest.mark.parametrize("scaling", [[1, 1, 2], [1, 2, 3], [[1, 0, 0], [30, 1, 0], [-70, 12, 1]]])
def test_the_choice_of_cell_does_not_count(scaling):
    other = ROCK_SALT.make_supercell(scaling, in_place=False)
    assert find_space_group(other, symprec=0.1) == 225
    assert symmetry([other]) == pytest.approx([1.0])


def test_handedness():
    swapped = Structure(
        Lattice(QUARTZ.lattice.matrix[[1, 0, 2]]), QUARTZ.species, QUARTZ.frac_coords[:, [1, 0, 2]]
    )  # the same crystal in a left-handed cell
    mirrored = Structure(
        Lattice(QUARTZ.lattice.matrix * [1, 1, -1]), QUARTZ.species, QUARTZ.frac_coords
    )
    found = [find_space_group(one, symprec=0.1) for one in (QUARTZ, swapped, mirrored)]
    assert found == [152, 152, 154]


@pytest.mark.parametrize(
    ("crystal", "reason"),
    [
        (OVERLAPPING, "too close: atoms 0.0001 angstrom apart"),
        (cell(np.diag([3.0, 3.0, 1e-3])), "too close: atoms 0.001 angstrom apart"),
        (FLAT, "cell has no volume"),
        # moyo never returns from this one.
        (cell(np.full((3, 3), 4.0) + np.diag([0, 1e-6, 1e-3])), "no volume|too close"),
        (cell(np.full((3, 3), np.nan)), "lattice is not finite"),
        (cell(np.eye(3) * 4, frac_coords=[[0, np.nan, 0]]), "coordinates are not finite"),
        (DISORDERED, "partial occupancy"),
    ],
)
def test_unusable_crystals_have_no_score(crystal, reason):
    for function in (symmetry, partial(space_group, targets="1-230")):
        with pytest.raises(ValueError, match=reason):
            function([crystal])


@pytest.mark.parametrize(
    "crystal",
    [
        cell(np.diag([3.0, 17.0, 3000.0])),  # moyo never returns at this tolerance
        cell(np.diag([0.6, 6.0, 30.0])),  # nor here
        cell(np.eye(3) * 1e4, ["Fe", "H"], [[0, 0, 0], [0.1, 0.2, 0.3]]),
        cell(np.diag([1e4, 3.0, 3.0]), ["Fe", "H"], [[0, 0, 0], [0.1, 0.2, 0.3]]),
        cell([[4, 0, 0], [4e4, 4, 0], [3e4, -5e4, 4]]),
        cell([[4, 0, 0], [4, 0.6, 0], [0, 4, 0.6]]),
    ],
)
def test_odd_cells_are_judged(crystal):
    assert 1 <= find_space_group(crystal, symprec=0.1) <= 230


@pytest.mark.parametrize("kind", [ValueError, type("PanicException", (BaseException,), {})])
def test_a_search_that_fails_costs_its_crystal(monkeypatch, kind):
    def fail(cell, *, symprec):
        raise kind("odd")

    monkeypatch.setattr(module.moyopy, "MoyoDataset", fail)
    with pytest.raises(ValueError, match="no space group found: odd"):
        symmetry([ROCK_SALT])


def test_an_interrupt_is_no_failed_search(monkeypatch):
    def interrupt(cell, *, symprec):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.moyopy, "MoyoDataset", interrupt)
    with pytest.raises(KeyboardInterrupt):
        symmetry([ROCK_SALT])


def test_moyo_keeps_its_notes_to_itself(caplog):
    moved = cell(
        [[2.1, 0, 0], [1.05, 7.1, 0], [0, 0, 8.9]],
        ["C", "C"],
        [[0.505, 0.243, 0.625], [0.364, 0.612, 0.262]],
    )
    assert find_space_group(moved, symprec=0.1) == 12
    assert caplog.records == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("225", {225}),
        (227, {227}),
        (" 1, 3 - 5,230 ", {1, 3, 4, 5, 230}),
        ("195-230", set(range(195, 231))),
    ],
)
def test_parse_space_groups(text, expected):
    assert parse_space_groups(text) == expected


@pytest.mark.parametrize("targets", ["", "0", "231", "5-3", "Fm-3m", "1,,2", "1-", "-1", 0, -3])
def test_wrong_targets_are_found_without_a_crystal(targets):
    with pytest.raises(ValueError, match="give numbers of space groups"):
        space_group([], targets=targets)


@pytest.mark.parametrize("targets", [None, 2.5, True])
def test_targets_of_a_wrong_type_are_found_without_a_crystal(targets):
    with pytest.raises(ValueError, match=r"targets is .*; it must be a text"):
        space_group([], targets=targets)


@pytest.mark.parametrize("symprec", [0.0, -0.1, 0.5, math.nan, "0.1"])
def test_wrong_tolerances_are_found_without_a_crystal(symprec):
    with pytest.raises(ValueError, match="symprec is"):
        symmetry([], symprec=symprec)
    with pytest.raises(ValueError, match="symprec is"):
        space_group([], targets="1", symprec=symprec)


def test_no_crystals():
    assert symmetry([]) == []
    assert space_group([], targets="1") == []


def test_they_travel_to_workers():
    for function in (partial(symmetry, symprec=0.05), partial(space_group, targets="227")):
        assert pickle.loads(pickle.dumps(function))([DIAMOND]) == [1.0]


def test_real_crystals(shared_dir):
    path = shared_dir / "data" / "mp-20-bt" / "test.csv.gz"
    if not path.exists():
        pytest.skip(f"needs {path}")
    with gzip.open(path, "rt") as file:
        rows = [row for row, _ in zip(csv.DictReader(file), range(200), strict=False)]
    crystals = [structure_from_cif(row["cif"]) for row in rows]
    found = [find_space_group(crystal, symprec=0.1) for crystal in crystals]
    agree = [a == int(row["spacegroup.number"]) for a, row in zip(found, rows, strict=True)]
    assert np.mean(agree) >= 0.99
