"""Nequix on batches, with a small model of random weights in its class and file format."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("nequix", reason="needs nequix")
pytest.importorskip("equinox", reason="needs equinox (the extra energy)")
pytest.importorskip("e3nn_jax", reason="needs e3nn-jax (the extra energy)")
pytest.importorskip("matscipy", reason="needs matscipy (the extra energy)")

import jax
from nequix.model import Nequix, save_model

from chemeleon2_jax.common.errors import EnergyError
from chemeleon2_jax.energy.graphs import SHAPES
from chemeleon2_jax.energy.model import energy_model
from tests.energy.cells import fcc, rocksalt, shaken

ROOT = Path(__file__).parents[2]
ELEMENTS = [11, 17, 18, 29]
CONFIG = {
    "hidden_irreps": "8x0e + 4x1o",
    "lmax": 1,
    "cutoff": 4.5,
    "n_layers": 2,
    "radial_basis_size": 4,
    "radial_mlp_size": 8,
    "radial_mlp_layers": 1,
    "radial_polynomial_p": 6.0,
    "mlp_init_scale": 4.0,
    "index_weights": True,
    "layer_norm": False,
    "shift": 0.1,
    "scale": 1.0,
    "avg_n_neighbors": 10.0,
}
STRUCTURES = [
    rocksalt(),
    fcc("Cu", 3.6),
    None,
    shaken(rocksalt()),
    fcc("Po", 4.7),
    fcc("Ar", 14.0),  # no neighbours
    shaken(rocksalt("Cu", "Cl", 5.0), seed=1),
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.nqx"
    energies = np.array([-1.0, -2.0, -0.1, -4.0], np.float32)
    model = Nequix(
        jax.random.key(0), n_species=len(ELEMENTS), atom_energies=energies, kernel=False, **CONFIG
    )
    save_model(str(path), model, {**CONFIG, "atomic_numbers": ELEMENTS})
    return path


@pytest.fixture(scope="module")
def model(weights):
    return energy_model("nequix", model_path=weights)


@pytest.fixture(scope="module")
def calculator(weights):
    from nequix.calculator import NequixCalculator

    return NequixCalculator("small", model_path=str(weights), use_kernel=False)


def test_batches_are_its_own_calculator(model, calculator):
    from pymatgen.io.ase import AseAtomsAdaptor

    energies = model.energies(STRUCTURES)
    assert energies.corrected is False
    assert energies.reasons[2] == "not built"
    assert energies.reasons[4] == "unknown element: Po"
    for index in (0, 1, 3, 5, 6):
        atoms = AseAtomsAdaptor.get_atoms(STRUCTURES[index])
        expected = calculator.get_potential_energy(atoms) / len(atoms)
        assert energies.values[index] == pytest.approx(expected, abs=1e-5)
    assert energies.values[0] != pytest.approx(energies.values[3], abs=1e-4)
    assert energies.values[5] == pytest.approx(model.energies([STRUCTURES[5]]).values[0], abs=1e-6)


def test_neighbours_in_the_batch_do_not_matter(model):
    together = model.energies(STRUCTURES)
    for index, structure in enumerate(STRUCTURES):
        alone = model.energies([structure]).values
        np.testing.assert_allclose(alone, together.values[[index]], atol=1e-5)


def test_the_cell_is_of_no_matter(model):
    """A skewed cell, a supercell, a left-handed cell."""
    plain = shaken(rocksalt())
    skew = plain.copy()
    skew.make_supercell([[1, 0, 0], [6, 1, 0], [0, 0, 1]], to_unit_cell=False)
    double = plain.copy()
    double.make_supercell([2, 1, 1])
    mirrored = (np.array(plain.atomic_numbers), -plain.frac_coords, -plain.lattice.matrix)
    values = model.energies([plain, skew, double, mirrored]).values
    np.testing.assert_allclose(values, values[0], atol=2e-5)


def test_relaxation_goes_downhill(model, calculator):
    from ase.filters import UnitCellFilter
    from ase.optimize import FIRE
    from pymatgen.io.ase import AseAtomsAdaptor

    relaxed = model.relax(STRUCTURES, steps=30, fmax=0.02)
    before = model.energies(STRUCTURES)
    assert relaxed.energies.reasons == before.reasons
    changed = [index for index, steps in enumerate(relaxed.steps) if steps]
    assert changed
    for index in changed:
        assert relaxed.energies.values[index] < before.values[index]
    after = model.energies(relaxed.structures)
    np.testing.assert_allclose(after.values, relaxed.energies.values, atol=2e-5)
    atoms = AseAtomsAdaptor.get_atoms(STRUCTURES[3])
    atoms.calc = calculator
    FIRE(UnitCellFilter(atoms), logfile=None).run(fmax=0.02, steps=30)
    expected = atoms.get_potential_energy() / len(atoms)
    assert relaxed.energies.values[3] == pytest.approx(expected, abs=1e-3)


def test_a_crystal_that_is_too_large(model, monkeypatch):
    from chemeleon2_jax.energy import nequix

    monkeypatch.setattr(nequix, "MAX_EDGES", 100)
    energies = model.energies([rocksalt(), fcc("Cu", 3.6)])
    assert energies.reasons[0].startswith("too large: ")
    assert energies.reasons[1] is None


def test_few_programs_are_compiled(weights):
    small_batches = energy_model("nequix", model_path=weights, edges_at_once=SHAPES[1].edges)
    for count in (1, 3, 20, 41):
        assert len(small_batches.energies([rocksalt()] * count).values) == count
    assert (
        small_batches._energy_fn._cache_size() == 2
    )  # the shape that batches fill, and a smaller one


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda data: data[: len(data) // 2], "does not hold a model of the installed nequix"),
        (lambda data: b"{}\n" + data, "no file of Nequix weights"),
        (lambda data: data.replace(b'"lmax"', b'"xmax"'), "KeyError: 'lmax'"),
    ],
)
def test_weights_that_are_none(weights, tmp_path, content, message):
    path = tmp_path / "broken.nqx"
    path.write_bytes(content(weights.read_bytes()))
    with pytest.raises(EnergyError, match=message):
        energy_model("nequix", model_path=path)


def test_weights_that_are_not_there(tmp_path):
    with pytest.raises(EnergyError, match="cannot read Nequix weights"):
        energy_model("nequix", model_path=tmp_path / "none.nqx")


def test_published_models_are_uncorrected():
    with pytest.raises(EnergyError, match="not on the corrected scale"):
        energy_model("nequix", corrected=True)


def test_other_computations_keep_their_precision(weights):
    """nequix asks for exact matmuls in the whole process when it is imported."""
    code = (
        "import jax\nfrom chemeleon2_jax.energy.model import energy_model\n"
        f"energy_model('nequix', model_path={str(weights)!r})\n"
        "import sys; assert 'nequix' in sys.modules\n"
        "assert jax.config.jax_default_matmul_precision is None"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
