"""Densities, volumes and validity against values worked out by hand."""

import pickle
import subprocess
import sys
from functools import partial

import pytest
from pymatgen.core import Element, Lattice, Structure

from chemeleon2_jax.rewards.geometry import (
    atomic_density,
    mass_density,
    structural_validity,
    volume,
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

TINY = Structure(Lattice.cubic(0.46), ["Fe"], [[0, 0, 0]])  # 0.097 cubic angstrom
FUNCTIONS = [atomic_density, mass_density, partial(volume, target=10.0), structural_validity]


def test_atomic_density():
    densities = [8 / 5.64**3, 8 / 3.567**3, 5 / 3.905**3]
    crystals = [ROCK_SALT, DIAMOND, PEROVSKITE]
    assert atomic_density(crystals) == pytest.approx(densities)
    assert atomic_density(crystals, target=0.1) == pytest.approx(
        [-abs(density - 0.1) for density in densities]
    )


def test_mass_density():
    # Handbook values at room temperature: 2.165, 3.515 and 5.12 g/cm3.
    crystals = [ROCK_SALT, DIAMOND, PEROVSKITE]
    densities = mass_density(crystals)
    assert densities == pytest.approx([2.164, 3.516, 5.117], abs=1e-3)
    assert densities == pytest.approx([float(crystal.density) for crystal in crystals], rel=1e-8)
    assert mass_density(crystals, target=3.0) == pytest.approx(
        [-abs(density - 3.0) for density in densities]
    )


def test_volume():
    crystals = [ROCK_SALT, ROCK_SALT.get_primitive_structure()]
    each = 5.64**3 / 8
    assert volume(crystals, target=20.0) == pytest.approx([20.0 - each] * 2)
    assert volume(crystals, target=20.0, per_atom=False) == pytest.approx(
        [20.0 - 8 * each, 20.0 - 2 * each]
    )


def test_a_left_handed_cell_has_a_positive_volume():
    mirrored = Structure(
        Lattice(-ROCK_SALT.lattice.matrix), ROCK_SALT.species, ROCK_SALT.frac_coords
    )
    assert atomic_density([mirrored]) == pytest.approx(atomic_density([ROCK_SALT]))


def test_structural_validity():
    close = Structure(Lattice.cubic(4.0), ["C", "O"], [[0, 0, 0], [0.2, 0, 0]])
    crystals = [ROCK_SALT, DIAMOND, PEROVSKITE, TRICLINIC, close, OVERLAPPING, FLAT, TINY]
    assert structural_validity(crystals) == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    weak = structural_validity(crystals, covalent=False)
    assert weak == [1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("function", FUNCTIONS[:3])
@pytest.mark.parametrize(
    ("crystal", "reason"),
    [
        (FLAT, "cell has no volume"),
        (TINY, "volume: 0.0973 cubic angstrom an atom"),
        (DISORDERED, "partial occupancy"),
    ],
)
def test_unmeasurable_crystals_have_no_score(function, crystal, reason):
    with pytest.raises(ValueError, match=reason):
        function([crystal])


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (atomic_density, {"target": -0.1}, "target is -0.1; .* positive number or 0 for none"),
        (mass_density, {"target": "3"}, "target is '3'"),
        (volume, {"target": 0}, "target is 0; it must be a positive number$"),
        (volume, {"target": 10.0, "per_atom": 1}, "per_atom is 1; it must be true or false"),
        (structural_validity, {"covalent": "yes"}, "covalent is 'yes'"),
    ],
)
def test_wrong_options_are_found_without_a_crystal(function, options, message):
    with pytest.raises(ValueError, match=message):
        function([], **options)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_crystals(function):
    assert function([]) == []


@pytest.mark.parametrize("function", FUNCTIONS)
def test_they_travel_to_workers(function):
    copy = pickle.loads(pickle.dumps(partial(function)))
    assert copy([DIAMOND]) == function([DIAMOND])


def test_every_element_has_a_mass():
    crystals = [
        Structure(Lattice.cubic(6.0), [Element.from_Z(z)], [[0, 0, 0]]) for z in range(1, 100)
    ]
    assert min(mass_density(crystals)) > 0.0


def test_workers_need_no_jax():
    modules = ("composition", "geometry", "symmetry")
    imports = "; ".join(f"import chemeleon2_jax.rewards.{name}" for name in modules)
    program = f"import sys; {imports}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
