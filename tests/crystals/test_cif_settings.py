"""Crystals in every setting of every space group, written in many ways, read as they were made."""

import itertools

import gemmi
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pymatgen.core import Element, Lattice

from chemeleon2_jax.crystals.cif.reader import read_cif

GROUPS = list(gemmi.spacegroup_table())
NAMES = [group.xhm() for group in GROUPS]
GENERAL = (0.1213, 0.2871, 0.4367)
_PARAMETERS = (7.1, 8.3, 9.7, 82.0, 97.0, 104.0)


def cell_of(group) -> tuple[float, ...]:
    """A cell with the group's symmetry: the mean of a metric over its rotations."""
    lattice = Lattice.from_parameters(*_PARAMETERS).matrix
    rotations = [np.array(op.rot) / 24 for op in group.operations().sym_ops]
    metric = np.mean([r.T @ lattice @ lattice.T @ r for r in rotations], axis=0)
    lengths = np.sqrt(np.diag(metric))
    pairs = ((1, 2), (0, 2), (0, 1))
    cosines = [metric[i, j] / lengths[i] / lengths[j] for i, j in pairs]
    return (*lengths, *np.degrees(np.arccos(cosines)))


def images(group, positions) -> set[tuple]:
    """All atoms by gemmi's operations in exact fractions of 1/10000."""
    atoms = set()
    for (symbol, position), op in itertools.product(positions, group.operations()):
        moved = (np.array(op.rot) @ position + np.array(op.tran)) / 24 % 1
        atoms.add((symbol, *(round(x * 10_000) % 10_000 for x in moved)))
    return atoms


def found(crystal) -> set[tuple]:
    types, frac_coords, _ = crystal.arrays
    return {
        (Element.from_Z(int(z)).symbol, *(round(x * 10_000) % 10_000 for x in position))
        for z, position in zip(types, frac_coords, strict=True)
    }


def write(cell, positions, symmetry, *, digits=6, order=0, upper=False) -> str:
    """A CIF; `order` is one of the 24 orders of its parts."""
    tags = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    rows = "".join(
        f"{symbol}{i} {symbol} " + " ".join(f"{x:.{digits}f}" for x in position) + "\n"
        for i, (symbol, position) in enumerate(positions)
    )
    columns = ("label", "type_symbol", "fract_x", "fract_y", "fract_z")
    parts = [
        "".join(f"_cell_{tag} {value:.6f}\n" for tag, value in zip(tags, cell, strict=True)),
        symmetry,
        "loop_\n" + "".join(f"_atom_site_{name}\n" for name in columns) + rows,
        "_publ_section_title\n;\ndata_of a crystal\n;\n",
    ]
    text = "data_x\n" + "".join(list(itertools.permutations(parts))[order])
    if upper:
        text = text.replace("_cell", "_CELL").replace("loop_", "LOOP_").replace("data_x", "DATA_X")
    return text


def list_operations(group) -> str:
    rows = "".join(f"'{op.triplet()}'\n" for op in group.operations())
    return f"loop_\n_space_group_symop_operation_xyz\n{rows}"


FORMS = {
    "name": lambda g: f"_space_group_name_H-M_alt '{g.xhm()}'\n",
    "lower case": lambda g: f"_symmetry_space_group_name_H-M '{g.xhm().lower()}'\n",
    "without spaces": lambda g: f"_symmetry_space_group_name_H-M '{g.xhm().replace(' ', '')}'\n",
    "Hall": lambda g: f"_space_group_name_Hall\n;{g.hall}\n;\n",
    "operations": list_operations,
    "both": lambda g: list_operations(g) + f"_symmetry_space_group_name_H-M '{g.xhm()}'\n",
}


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    form=st.sampled_from(sorted(FORMS)),
    digits=st.integers(4, 9),
    order=st.integers(0, 23),
    upper=st.booleans(),
)
@example(name="R -3 c:H", form="name", digits=4, order=0, upper=True)
@example(name="F d -3 m:1", form="Hall", digits=4, order=7, upper=False)
@example(name="B 1 2 1", form="operations", digits=8, order=23, upper=False)
def test_a_crystal_is_read_as_it_was_made(name, form, digits, order, upper) -> None:
    group = GROUPS[NAMES.index(name)]
    positions = [("Na", (0, 0, 0)), ("Cl", GENERAL)]
    text = write(
        cell_of(group), positions, FORMS[form](group), digits=digits, order=order, upper=upper
    )
    (crystal,) = read_cif(text)
    assert crystal.reason is None
    assert not [doubt for doubt in crystal.doubts if "angstrom apart" not in doubt]
    expected = images(group, positions)
    assert found(crystal) == expected
    assert len(crystal.arrays[0]) == len(expected)


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(NAMES), special=st.sampled_from([(1 / 3, 2 / 3, 0), (1 / 8,) * 3]))
def test_few_digits_give_no_more_atoms(name, special) -> None:
    """A special position with three digits is the same crystal as with nine."""
    group = GROUPS[NAMES.index(name)]
    symmetry = FORMS["name"](group)
    counts = []
    for digits in (3, 9):
        (crystal,) = read_cif(write(cell_of(group), [("Fe", special)], symmetry, digits=digits))
        counts.append(len(crystal.arrays[0]))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("number", range(1, 231))
def test_a_standard_setting_by_its_short_name(number) -> None:
    """Without its setting a group of two origins is refused, unless the formula tells."""
    group = gemmi.get_spacegroup_reference_setting(number)
    positions = [("Na", (0, 0, 0)), ("Cl", GENERAL)]
    name = f"_symmetry_space_group_name_H-M '{group.short_name()}'\n"
    (crystal,) = read_cif(write(cell_of(group), positions, name))
    if group.ext == "2":
        assert crystal.reason.startswith(f"unknown symmetry: its setting is {group.hm}:1 or")
    else:
        assert found(crystal) == images(group, positions)
