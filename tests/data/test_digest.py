from dataclasses import replace

import numpy as np
import pytest

from chemeleon2_jax.crystals.arrays import Crystals
from chemeleon2_jax.data.digest import describe_difference, digest_crystals
from tests.tiny import make_crystals


@pytest.fixture(scope="module")
def crystals():
    arrays = [
        (np.array(s.atomic_numbers), s.frac_coords, s.lattice.matrix) for s in make_crystals()
    ]
    made = Crystals.from_list(arrays)
    gaps = np.linspace(0, 3, len(made), dtype=np.float32)
    return replace(made, targets={"gap": gaps})


def changed(values, index, by):
    values = values.copy()
    values[index] += by
    return values


def difference(one, other):
    return describe_difference(digest_crystals(one), digest_crystals(other))


def test_the_same_contents_have_no_difference(crystals):
    assert difference(crystals, crystals.take(np.arange(len(crystals)))) == ""


def test_last_digits_do_not_count(crystals):
    noise = np.float32(3e-7)
    moved = replace(
        crystals,
        frac_coords=crystals.frac_coords - noise,  # below 0: another cell's copy of the atom
        lattices=crystals.lattices * (1 + noise),
    )
    assert difference(crystals, moved) == ""


def test_what_differs_is_said(crystals):
    same = "41 crystals as before, but other"
    frac = changed(crystals.frac_coords, (7, 1), 0.01)
    cells = changed(crystals.lattices, (2, 0, 0), 0.001)
    gaps = changed(crystals.targets["gap"], 3, 0.01)
    for message, other in [
        ("40 crystals, not 41", crystals.take(np.arange(40))),
        (f"{same} ids", replace(crystals, material_ids=crystals.material_ids[::-1])),
        (
            f"{same} elements",
            replace(crystals, atom_types=changed(crystals.atom_types, 5, 1)),
        ),
        (f"{same} cells or positions", replace(crystals, frac_coords=frac)),
        (f"{same} cells or positions", replace(crystals, lattices=cells)),
        (f"{same} values of gap", replace(crystals, targets={"gap": gaps})),
    ]:
        assert difference(crystals, other) == message


def test_more_columns_are_no_difference(crystals):
    assert difference(replace(crystals, targets={}), crystals) == ""
    assert difference(crystals, replace(crystals, targets={})) == ""
