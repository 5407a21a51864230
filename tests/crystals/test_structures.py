"""Structures to arrays and back, CIFs, and errors."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from chemeleon2_jax.crystals.arrays import Crystals, lattice_from_parameters
from chemeleon2_jax.crystals.structures import (
    arrays_from_structure,
    crystals_to_structures,
    reduce_structure,
    structure_from_arrays,
    structure_from_cif,
    structures_to_crystals,
)

ROCK_SALT = Structure.from_spacegroup(
    "Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
)


def cif_of(structure: Structure) -> str:
    return structure.to(fmt="cif")


def test_round_trip_keeps_the_arrays() -> None:
    types, frac, lattice = arrays_from_structure(ROCK_SALT)
    assert types.dtype == np.int8
    structure = structure_from_arrays(types, frac, lattice)
    assert structure == ROCK_SALT
    np.testing.assert_array_equal(structure.lattice.matrix, lattice)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3),
    st.lists(st.floats(2.0, 20.0), min_size=3, max_size=3),
    st.lists(st.floats(60.0, 118.0), min_size=3, max_size=3),
)
def test_fractional_coordinates_are_wrapped(frac, lengths, angles) -> None:
    lattice = lattice_from_parameters(np.array(lengths), np.radians(angles))
    structure = structure_from_arrays(np.array([6]), np.array([frac], np.float32), lattice)
    assert (structure.frac_coords >= 0).all()
    assert (structure.frac_coords < 1).all()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"lattice": np.full((3, 3), np.nan)}, "lattice is not finite"),
        ({"lattice": np.diag([0.0, 4.0, 4.0])}, "length is not positive"),
        ({"lattice": np.diag([4.0, 4.0, 1e30])}, "length is beyond"),
        ({"lattice": np.array([[4.0, 0, 0], [0, 4, 0], [4, 4, 0]])}, "impossible angles"),
        ({"frac_coords": np.array([[0.0, np.inf, 0]])}, "coordinates are not finite"),
        ({"atom_types": np.array([0])}, "atomic number 0"),
        ({"atom_types": np.array([100])}, "atomic number 100"),
        ({"atom_types": np.array([], int), "frac_coords": np.zeros((0, 3))}, "no atom"),
        ({"frac_coords": np.zeros((2, 3))}, "shapes"),
    ],
)
def test_impossible_arrays_are_refused_with_a_reason(change, reason) -> None:
    arrays = {
        "atom_types": np.array([6]),
        "frac_coords": np.zeros((1, 3)),
        "lattice": 4.0 * np.eye(3),
    }
    with pytest.raises(ValueError, match=reason):
        structure_from_arrays(**(arrays | change))


def test_impossible_angles_of_a_decoder_are_refused() -> None:
    # Impossible angles: the clipped cosine gives a flat cell.
    lattice = lattice_from_parameters(
        np.array([4.0, 4.0, 4.0], np.float32), np.radians([30, 30, 120])
    )
    with pytest.raises(ValueError, match="impossible angles"):
        structure_from_arrays(np.array([6]), np.zeros((1, 3)), lattice)


def test_small_cells_in_single_precision_are_not_flat() -> None:
    structure_from_arrays(np.array([1]), np.zeros((1, 3)), 0.2 * np.eye(3, dtype=np.float32))
    with pytest.raises(ValueError, match="too thin"):  # and not "impossible angles"
        structure_from_arrays(np.array([1]), np.zeros((1, 3)), 1e-3 * np.eye(3, dtype=np.float32))


def test_reduction_is_niggli_in_standard_orientation() -> None:
    supercell = ROCK_SALT.get_primitive_structure()
    supercell.make_supercell([[1, 1, 0], [0, 1, 0], [0, 3, 1]])
    reduced = reduce_structure(supercell)
    a, _, c = reduced.lattice.matrix
    np.testing.assert_allclose([a[1], c[0], c[1]], 0, atol=1e-12)
    assert StructureMatcher().fit(reduced, ROCK_SALT)
    np.testing.assert_allclose(reduced.lattice.abc, 5.64 / np.sqrt(2), rtol=1e-6)
    expected = supercell.get_reduced_structure()
    np.testing.assert_array_equal(reduced.frac_coords, expected.frac_coords)
    np.testing.assert_array_equal(
        reduced.lattice.matrix, Lattice.from_parameters(*expected.lattice.parameters).matrix
    )


def test_cif_is_parsed_silently() -> None:
    text = cif_of(ROCK_SALT).replace("0.50000000", "0.49999")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(structure_from_cif(text)) == 8


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "unparsable CIF: empty"),
        ("not a CIF", "unparsable CIF"),
        ("data_x\n_cell_length_a 4\n", "unparsable CIF"),
        (cif_of(ROCK_SALT).replace("_cell_length_b   5.64", "_cell_length_b   ?"), "unparsable"),
        (cif_of(Structure(Lattice.cubic(4), [{"Fe": 0.5, "Ni": 0.5}], [[0, 0, 0]])), "partial occ"),
        (cif_of(Structure(Lattice.cubic(4), [{"Fe": 0.5}], [[0, 0, 0]])), "partial occupancy"),
        (cif_of(Structure(Lattice.cubic(4), ["Fm"], [[0, 0, 0]])), "element above Z = 99: Fm"),
        (cif_of(Structure(Lattice.cubic(4), ["X"], [[0, 0, 0]])), "not an element"),
    ],
)
def test_bad_cifs_are_refused_with_a_reason(text, reason) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        structure_from_cif(text)
    assert "\n" not in str(caught.value)


def test_einsteinium_is_the_last_element() -> None:
    structure = structure_from_cif(cif_of(Structure(Lattice.cubic(4), ["Es"], [[0, 0, 0]])))
    assert structures_to_crystals([structure]).atom_types.tolist() == [99]


def test_lists_of_structures() -> None:
    silicon = Structure.from_spacegroup("Fd-3m", Lattice.cubic(5.43), ["Si"], [[0, 0, 0]])
    crystals = structures_to_crystals([ROCK_SALT, silicon])
    assert crystals.num_atoms.tolist() == [8, 8]
    back = crystals_to_structures(crystals)
    assert [s.reduced_formula for s in back] == ["NaCl", "Si"]
    np.testing.assert_allclose(back[0].frac_coords, ROCK_SALT.frac_coords, atol=1e-6)
    assert len(structures_to_crystals([])) == 0


def test_standard_cells_on_request() -> None:
    turned = ROCK_SALT.get_primitive_structure()
    turned.make_supercell([[1, 1, 0], [0, 1, 0], [0, 0, 1]])
    crystals = structures_to_crystals([turned], standardize=True)
    reduced = reduce_structure(turned)
    np.testing.assert_allclose(crystals.lattices[0], reduced.lattice.matrix, atol=1e-5)
    np.testing.assert_allclose(crystals.frac_coords, reduced.frac_coords, atol=1e-6)
    unchanged = structures_to_crystals([turned])
    np.testing.assert_allclose(unchanged.lattices[0], turned.lattice.matrix, atol=1e-5)


def test_a_structure_that_its_cif_contradicts_is_read_with_a_warning() -> None:
    text = cif_of(ROCK_SALT).replace("'Na4 Cl4'", "'Na4 Cl5'")
    with pytest.warns(UserWarning, match="formula: read Cl4 Na4, declared Cl5 Na4"):
        assert len(structure_from_cif(text)) == 8


def test_errors_of_lists_name_the_position() -> None:
    disordered = Structure(Lattice.cubic(4), [{"Fe": 0.5, "Ni": 0.5}], [[0, 0, 0]])
    with pytest.raises(ValueError, match="structure 1: partial occupancy"):
        structures_to_crystals([ROCK_SALT, disordered])
    flat = Crystals.from_list([([6], np.zeros((1, 3)), np.zeros((3, 3)))])
    with pytest.raises(ValueError, match="crystal 0: a cell length"):
        crystals_to_structures(flat)


def test_cifs_are_read_as_the_original_does(shared_dir) -> None:
    """Eight MP-20 crystals in the cells of their CIFs, with the atoms in the same order."""
    cifs = json.loads((shared_dir / "golden" / "crystals.json").read_text())["cif"]
    golden = np.load(shared_dir / "golden" / "golden.npz")
    structures = [structure_from_cif(cif) for cif in cifs]
    crystals = structures_to_crystals(structures)
    np.testing.assert_array_equal(crystals.num_atoms, golden["batch/num_atoms"])
    np.testing.assert_array_equal(crystals.atom_types, golden["batch/atom_types"])
    difference = crystals.frac_coords - golden["batch/frac_coords"]
    np.testing.assert_allclose(difference, np.round(difference), atol=1e-6)
    lattices = [Lattice.from_parameters(*s.lattice.parameters).matrix for s in structures]
    np.testing.assert_allclose(lattices, golden["batch/lattices"], atol=1e-5)
