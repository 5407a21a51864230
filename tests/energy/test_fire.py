"""FIRE on many crystals at once, against ASE's on one."""

import numpy as np
import pytest

pytest.importorskip("ase", reason="needs ASE (the extra energy)")

from ase import Atoms
from ase.filters import UnitCellFilter
from ase.optimize import FIRE

from chemeleon2_jax.energy.fire import relax_together
from chemeleon2_jax.energy.graphs import SHAPES, Graph
from chemeleon2_jax.energy.guard import prepare
from chemeleon2_jax.energy.relaxation import FinalState
from tests.energy.calculators import Pairs
from tests.energy.cells import fcc, rocksalt, shaken


def as_graph(mover, num_edges=1):
    """A graph with the input of the calculator."""
    edges = np.zeros(num_edges, np.int32)
    species = mover.crystal.atom_types.astype(np.int32)
    return Graph(species, mover.positions, mover.lattice, edges, edges, np.zeros((num_edges, 3)))


def with_pairs(graphs):
    calculator, forces = Pairs(), []
    for graph in graphs:
        atoms = Atoms(graph.species, positions=graph.positions, cell=graph.lattice, pbc=True)
        atoms.calc = calculator
        stress = atoms.get_stress(voigt=False)
        forces.append((atoms.get_potential_energy(), atoms.get_forces(), stress))
    return forces


def relax(structures, *, steps=300, fmax=1e-3, build=as_graph, evaluate=with_pairs):
    crystals, _ = prepare(structures)
    return crystals, relax_together(
        crystals, build, evaluate, shape=SHAPES[0], steps=steps, fmax=fmax
    )


def test_steps_are_those_of_ase():
    crystals, ends = relax([fcc(length=5.8), shaken(rocksalt("Ar", "Ar", 4.7), size=0.2)])
    for crystal, end in zip(crystals, ends, strict=True):
        atoms = Atoms(
            crystal.atom_types, positions=crystal.positions, cell=crystal.lattice, pbc=True
        )
        atoms.calc = Pairs()
        optimizer = FIRE(UnitCellFilter(atoms), logfile=None)
        optimizer.run(fmax=1e-3, steps=300)
        assert (end.converged, end.steps) == (True, optimizer.nsteps)
        assert end.energy == pytest.approx(atoms.get_potential_energy() / len(atoms), abs=1e-9)
        np.testing.assert_allclose(end.positions, atoms.positions, atol=1e-5)
        np.testing.assert_allclose(end.lattice, atoms.cell, atol=1e-5)


def test_crystals_do_not_feel_each_other():
    """Together, with room for a few at a time, they end where they end alone."""
    structures = [fcc(length=length) for length in (5.0, 5.2, 5.4, 5.6, 5.8)]
    alone = [relax([structure])[1][0] for structure in structures]
    _, together = relax(structures, build=lambda mover: as_graph(mover, SHAPES[0].edges // 2))
    assert len({end.steps for end in alone}) > 1
    for one, other in zip(alone, together, strict=True):
        assert (one.steps, one.converged) == (other.steps, other.converged)
        np.testing.assert_array_equal(one.lattice, other.lattice)


def test_batches_are_filled_and_no_larger_than_their_shape():
    sizes = []

    def evaluate(graphs):
        sizes.append(sum(len(graph.senders) for graph in graphs))
        return with_pairs(graphs)

    relax([fcc()] * 7, build=lambda mover: as_graph(mover, 400), evaluate=evaluate)
    rounds = sizes.count(400)  # of the last one, alone
    assert sizes == [800] * 3 * rounds + [400] * rounds


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda e, f, s: (np.nan, f, s), "diverged: energy or forces are not finite"),
        (lambda e, f, s: (e, f * np.nan, s), "diverged: energy or forces are not finite"),
        (lambda e, f, s: (e, f, s - 50 * np.eye(3)), "diverged: .* cubic angstrom an atom"),
        (lambda e, f, s: (e, f, 5 * np.eye(3)), "diverged: .* cubic angstrom an atom"),
        (lambda e, f, s: (e, f, s + 50 * np.diag([1, -1, 0])), "diverged: "),
    ],
)
def test_a_crystal_that_diverges(harm, reason):
    def evaluate(graphs):
        forces = with_pairs(graphs)
        return [
            harm(*of_one) if graph.species[0] == 10 else of_one
            for graph, of_one in zip(graphs, forces, strict=True)
        ]

    _, (good, bad) = relax([fcc(), fcc("Ne")], evaluate=evaluate, steps=3000)
    assert isinstance(good, FinalState)
    assert good.converged
    with pytest.raises(ValueError, match=reason):
        raise ValueError(bad)


def test_a_crystal_with_too_many_neighbours():
    def build(mover):
        is_large = mover.crystal.atom_types[0] == 10
        return as_graph(mover, SHAPES[-1].edges + 1 if is_large else 1)

    _, (good, bad) = relax([fcc(), fcc("Ne")], build=build)
    assert good.converged
    assert bad.startswith("too large: ")


def test_no_steps_are_a_single_point():
    crystals, (end,) = relax([fcc(length=5.8)], steps=0)
    assert (end.steps, end.converged) == (0, False)
    np.testing.assert_array_equal(end.positions, crystals[0].positions)
