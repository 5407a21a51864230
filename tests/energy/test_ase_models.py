"""ASE calculators as energy models."""

import numpy as np
import pytest

pytest.importorskip("ase", reason="needs ASE (the extra energy)")

from ase import Atoms
from pymatgen.core import Lattice, Structure

from chemeleon2_jax.common.errors import EnergyError
from chemeleon2_jax.energy.model import energy_model
from chemeleon2_jax.workers import WorkerPool
from tests.energy import calculators
from tests.energy.calculators import Pairs
from tests.energy.cells import fcc, rocksalt, shaken

PAIRS = "ase:tests.energy.calculators:Pairs"


def energy_alone(structure, calculator):
    """eV/atom, in the cell as it is."""
    atoms = Atoms(
        structure.atomic_numbers,
        positions=structure.cart_coords,
        cell=structure.lattice.matrix,
        pbc=True,
        calculator=calculator,
    )
    return atoms.get_potential_energy() / len(atoms)


@pytest.fixture(scope="module")
def pool():
    with WorkerPool(1) as pool:
        yield pool


def test_energies_are_the_calculator_s():
    structures = [fcc(), rocksalt("Ar", "Ar"), shaken(rocksalt("Ar", "Ne", 7.0))]
    energies = energy_model(PAIRS, shift=-3.0).energies(structures)
    expected = [energy_alone(structure, Pairs(shift=-3.0)) for structure in structures]
    np.testing.assert_allclose(energies.values, expected, rtol=1e-9)
    assert len(set(np.round(energies.values, 6))) == 3
    assert energies.reasons == (None, None, None)


@pytest.mark.parametrize("corrected", [False, True])
def test_the_scale_is_stated(corrected):
    model = energy_model(PAIRS, corrected=corrected)
    assert model.corrected is corrected
    assert model.energies([fcc()]).corrected is corrected
    assert model.relax([fcc()], steps=0).energies.corrected is corrected
    assert energy_model(PAIRS).corrected is False


def test_a_factory_makes_one_calculator_a_process():
    before = calculators.NUM_MADE
    model = energy_model("ase:tests.energy.calculators:make_pairs", shift=1.25)
    first, second = model.energies([fcc(), fcc()]), model.energies([fcc()])
    assert before + 1 == calculators.NUM_MADE
    np.testing.assert_allclose(first.values, second.values[0])
    np.testing.assert_allclose(first.values[0] - 1.25, energy_alone(fcc(), Pairs()))


def test_a_failure_costs_its_crystal_only(pool):
    model = energy_model(PAIRS, pool=pool, timeout_s=0.5, elements=frozenset(range(1, 90)))
    structures = [fcc(), None, fcc("Po"), fcc("Xe"), fcc("Kr"), fcc("Rn"), fcc("Pu"), fcc("Ne")]
    energies = model.energies(structures)
    assert energies.reasons == (
        None,
        "not built",
        "RuntimeError: no such element",
        "timeout after 0.5 s",
        "timeout after 0.5 s",
        "not finite: nan",
        "unknown element: Pu",
        None,
    )
    np.testing.assert_allclose(energies.values[[0, -1]], energy_alone(fcc(), Pairs()))


def test_a_stopped_calculation_leaves_no_result():
    energies = energy_model(PAIRS, timeout_s=0.2).energies([fcc("Kr"), fcc("Kr")])
    assert energies.reasons == ("timeout after 0.2 s",) * 2


def test_relaxation_finds_the_minimum(pool):
    """The bottom of a Lennard-Jones fcc crystal, from a cell that is too large."""
    start = Structure(Lattice.cubic(4.2), ["Ar"] * 2, [[0, 0, 0], [0.5, 0.45, 0.55]])
    cubic = fcc(length=5.8)
    model = energy_model(PAIRS, pool=pool)
    relaxed = model.relax([cubic, start], steps=300, fmax=2e-3)
    assert relaxed.converged.all()
    assert (relaxed.steps > 0).all()
    lengths = np.linspace(5.2, 5.4, 41)
    scan = [energy_alone(fcc(length=length), Pairs()) for length in lengths]
    best = float(lengths[np.argmin(scan)])
    assert relaxed.structures[0].lattice.a * 2**0.5 == pytest.approx(best, abs=0.01)
    assert relaxed.energies.values[0] == pytest.approx(min(scan), abs=1e-4)
    assert relaxed.energies.values[1] < energy_alone(start, Pairs()) - 1e-3
    again = model.energies(relaxed.structures)
    np.testing.assert_allclose(again.values, relaxed.energies.values, atol=1e-9)


def test_relaxation_that_fails_costs_its_crystal(pool):
    model = energy_model(PAIRS, pool=pool, relax_timeout_s=1.0)
    relaxed = model.relax([fcc(), None, fcc("He"), fcc("Kr")], steps=50)
    assert relaxed.converged.tolist() == [True, False, False, False]
    assert relaxed.structures[1:] == (None, None, None)
    assert relaxed.steps[1:].tolist() == [0, 0, 0]
    assert relaxed.energies.reasons[:2] == (None, "not built")
    assert relaxed.energies.reasons[2].startswith("diverged: ")
    assert relaxed.energies.reasons[3] == "timeout after 1 s"


def test_steps_that_do_not_suffice():
    relaxed = energy_model(PAIRS).relax([fcc(length=5.8)], steps=2, fmax=1e-4)
    assert not relaxed.converged[0]
    assert relaxed.steps[0] == 2
    assert np.isfinite(relaxed.energies.values[0])
    assert relaxed.structures[0].volume != fcc(length=5.8).volume


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("ase:tests.energy.calculators:Broken", "Broken: RuntimeError: no weights"),
        ("ase:tests.energy.calculators:Missing", "cannot make .* AttributeError"),
        ("ase:tests.energy.nowhere:Missing", "cannot make .* ModuleNotFoundError"),
        ("ase:tests.energy.calculators:make_nothing", "makes a NoneType, not an ASE calculator"),
    ],
)
def test_a_calculator_that_cannot_be_made(path, message, num_workers):
    with WorkerPool(num_workers) as pool, pytest.raises(EnergyError, match=message):
        energy_model(path, pool=pool).energies([fcc()])


def test_options_that_cannot_travel():
    with pytest.raises(EnergyError, match="cannot be sent to a worker process"):
        energy_model(PAIRS, shift=lambda: 0.0)


def test_nothing_to_do():
    model = energy_model("ase:tests.energy.calculators:Broken")
    assert model.energies([]).values.shape == (0,)
    assert model.relax([None]).energies.reasons == ("not built",)
