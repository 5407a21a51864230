"""The embedded set: sensible crystals, the same on every machine, and no leak between splits."""

import hashlib

import numpy as np
import pytest
from pymatgen.core import Composition, Element

from chemeleon2_jax.common.errors import DatasetError
from chemeleon2_jax.crystals.arrays import Crystals
from chemeleon2_jax.crystals.geometry import measure
from chemeleon2_jax.crystals.structures import crystals_to_structures, reduce_structure
from chemeleon2_jax.data import embedded, prototype_cells
from chemeleon2_jax.data.cache import crystals_to_arrays
from chemeleon2_jax.data.embedded import build_embedded, load_embedded, split_of
from chemeleon2_jax.data.prototype_cells import read_prototypes
from chemeleon2_jax.data.structure_types import TYPES
from chemeleon2_jax.metrics.structure import covalent_check, validity_check


@pytest.fixture(scope="module")
def built() -> dict[str, Crystals]:
    return build_embedded("prototypes")


@pytest.fixture(scope="module")
def everything(built) -> Crystals:
    return Crystals.concatenate(list(built.values()))


def names_and_formulas(crystals: Crystals) -> list[tuple[str, str]]:
    ids = [material_id.decode() for material_id in crystals.material_ids]
    return [tuple(name.rsplit("-", 1)) for name in ids]


def test_a_few_thousand_crystals_in_three_splits(built, everything) -> None:
    assert 3000 <= len(everything) <= 6000
    shares = {split: len(crystals) / len(everything) for split, crystals in built.items()}
    assert 0.75 < shares["train"] < 0.85
    assert min(shares["val"], shares["test"]) > 0.07
    assert everything.num_atoms.min() == 1
    assert everything.num_atoms.max() == 20
    assert len(np.unique(everything.atom_types)) > 75
    assert len({name for name, _ in names_and_formulas(everything)}) > 240


def test_no_formula_is_in_two_splits(built) -> None:
    formulas = {
        split: {formula for _, formula in names_and_formulas(crystals)}
        for split, crystals in built.items()
    }
    assert not formulas["train"] & (formulas["val"] | formulas["test"])
    assert not formulas["val"] & formulas["test"]


def test_ids_are_unique_and_tell_the_formula(everything) -> None:
    assert len(set(everything.material_ids.tolist())) == len(everything)
    for i, (_, formula) in list(enumerate(names_and_formulas(everything)))[::50]:
        symbols = [Element.from_Z(int(z)).symbol for z in everything.crystal(i)[0]]
        assert Composition("".join(symbols)).reduced_formula == formula


def test_every_crystal_is_physically_sensible(everything) -> None:
    crystals = [everything.crystal(i) for i in range(len(everything))]
    assert np.all(validity_check(crystals).passed)
    assert np.all(covalent_check(crystals).passed)
    ratios = [measure(crystal).min_covalent_ratio for crystal in crystals]
    assert min(ratios) > prototype_cells.MIN_RATIO - 1e-4
    assert max(ratios) < prototype_cells.MAX_RATIO + 1e-4


def test_known_crystals_come_out_right(everything) -> None:
    """Rock salt, fluorite, diamond and copper have their experimental densities, g/cm3."""
    known = {"NaCl": 2.16, "CaF2": 3.18, "Si": 2.33, "Cu": 8.96}
    places = {"NaCl": "AB_cF8_225_a_b", "CaF2": "AB2_cF12_225_a_c", "Si": "A_cF8_227_a"}
    places["Cu"] = "A_cF4_225_a"
    densities = {}
    for i, (name, formula) in enumerate(names_and_formulas(everything)):
        if places.get(formula) == name.partition("-")[2]:
            densities[formula] = everything.targets["density"][i]
    for formula in densities:
        np.testing.assert_allclose(densities[formula], known[formula], rtol=0.05)
    assert len(densities) >= 2


def test_targets_are_those_of_pymatgen(everything) -> None:
    some = everything.take(np.arange(0, len(everything), 200))
    structures = crystals_to_structures(some)
    density = [structure.density for structure in structures]
    np.testing.assert_allclose(some.targets["density"], density, rtol=1e-4)
    volume = [structure.volume / len(structure) for structure in structures]
    np.testing.assert_allclose(some.targets["volume_per_atom"], volume, rtol=1e-4)
    spread = some.targets["electronegativity_difference"]
    assert np.isfinite(spread).all()
    assert (spread[[len(s.composition) == 1 for s in structures]] == 0).all()


def test_cells_are_reduced_and_in_standard_orientation(everything) -> None:
    lattices = everything.lattices
    assert np.abs(lattices[:, [2, 2, 0], [0, 1, 1]]).max() < 1e-5
    assert (everything.frac_coords >= 0).all()
    assert (everything.frac_coords < 1).all()
    for structure in crystals_to_structures(everything.take(np.arange(0, len(everything), 300))):
        reduced = reduce_structure(structure)
        np.testing.assert_allclose(
            sorted(reduced.lattice.abc), sorted(structure.lattice.abc), rtol=1e-3
        )


def test_the_start_of_a_split_is_a_fair_sample(built) -> None:
    first = {name for name, _ in names_and_formulas(built["val"].take(np.arange(100)))}
    assert len(first) > 60


def test_the_same_bytes_every_time() -> None:
    def digest() -> str:
        splits = build_embedded("prototypes", max_prototypes=40)
        arrays = {split: crystals_to_arrays(crystals) for split, crystals in splits.items()}
        joined = [array.tobytes() for split in arrays.values() for array in split.values()]
        return hashlib.sha256(b"".join(joined)).hexdigest()

    assert digest() == digest()


def test_the_split_of_a_formula_never_changes() -> None:
    formulas = ("NaCl", "CaTiO3", "MgO", "ZnS")
    assert [split_of(formula) for formula in formulas] == ["train", "test", "train", "train"]


def test_prototypes_are_ordered_and_small() -> None:
    for prototype in read_prototypes(60):
        assert len(prototype.species) <= prototype_cells.MAX_ATOMS
        assert len(prototype.frac_coords) == len(prototype.species)
        assert prototype.bonds.sum() > 0
        assert np.isfinite(prototype.closest).all()


def test_built_once_and_then_read(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []
    small = build_embedded("prototypes", max_prototypes=5)
    monkeypatch.setattr(embedded, "build_embedded", lambda _: calls.append(1) or small)
    for _ in range(2):
        loaded = load_embedded("prototypes")
        for split, crystals in small.items():
            assert set(loaded[split].targets) == set(crystals.targets)
            np.testing.assert_array_equal(loaded[split].frac_coords, crystals.frac_coords)
    assert len(calls) == 1
    damaged = next((tmp_path / "chemeleon2_jax" / "prototypes").glob("val-*.npz"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    load_embedded("prototypes")
    np.savez(damaged, num_atoms=np.array([1]))
    load_embedded("prototypes")
    assert len(calls) == 3


def test_without_a_place_to_cache(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    small = build_embedded("prototypes", max_prototypes=5)
    monkeypatch.setattr(embedded, "build_embedded", lambda _: small)
    assert len(load_embedded("prototypes")["train"]) == len(small["train"])


def test_another_pymatgen_is_a_clear_error(monkeypatch) -> None:
    monkeypatch.setattr(prototype_cells.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DatasetError, match=r"comes without.*aflow_prototypes"):
        build_embedded("prototypes")


# --- classic structure types ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def classic() -> dict[str, Crystals]:
    return build_embedded("structure-types")


def test_every_classic_type_is_there_in_its_space_group(classic) -> None:
    """The prototypes' symmetry survives the other elements and the rounding."""
    groups = {
        "rock_salt": 225,
        "caesium_chloride": 221,
        "zinc_blende": 216,
        "wurtzite": 186,
        "fluorite": 225,
        "rutile": 136,
        "perovskite": 221,
        "Heusler": 225,
        "half-Heusler": 216,
        "Laves_phase": 227,
        "nickel_arsenide": 194,
        "cadmium_iodide": 164,
        "Cu3Au": 221,
    }
    train = classic["train"]
    structures = crystals_to_structures(train.take(np.arange(300)))
    seen = set()
    for i, structure in enumerate(structures):
        name, formula = train.material_ids[i].decode().rsplit("-", 1)
        assert structure.composition.reduced_formula == formula
        if name not in seen:
            assert structure.get_space_group_info(symprec=0.01)[1] == groups[name]
            seen.add(name)
    assert seen == groups.keys() == {name for name, _ in TYPES.values()}


def test_classic_crystals_are_small_sensible_and_split_by_formula(classic) -> None:
    everything = Crystals.concatenate(list(classic.values()))
    assert 1000 <= len(everything) <= 2000
    assert everything.num_atoms.max() == 6
    crystals = [everything.crystal(i) for i in range(len(everything))]
    assert np.all(validity_check(crystals).passed)
    assert np.all(covalent_check(crystals).passed)
    formulas = {
        split: {i.decode().rsplit("-", 1)[1] for i in crystals.material_ids}
        for split, crystals in classic.items()
    }
    assert not formulas["train"] & (formulas["val"] | formulas["test"])
    assert min(len(formulas["val"]), len(formulas["test"])) > 80
