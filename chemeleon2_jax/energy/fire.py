"""Relaxation of many crystals at once: FIRE on positions and cell.

Each crystal has a time step of its own, as in ASE's FIRE with a UnitCellFilter, but all are
evaluated together. A finished crystal makes room for one that waits.

FIRE: Bitzek et al., Phys. Rev. Lett. 97, 170201, 2006. The cell as degrees of freedom: Tadmor et
al., Phys. Rev. B 59, 235, 1999.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from chemeleon2_jax.energy.graphs import MAX_EDGES, Graph, Shape, plan_batches
from chemeleon2_jax.energy.guard import Prepared, volume_problem
from chemeleon2_jax.energy.relaxation import FinalState

Forces = tuple[float, np.ndarray, np.ndarray]
"""Energy in eV, forces (n, 3) in eV/angstrom, stress (3, 3) in eV/cubic angstrom."""

MAX_MOVE = 0.2
"""Longest step in angstrom: norm over all atoms of a crystal and its cell."""

_START_DT, _MAX_DT = 0.1, 1.0
_START_ALPHA = 0.1
_PATIENCE = 5
_MIN_FLATNESS = 0.02  # volume over the product of the lengths


class MovingCrystal:
    """A crystal during its relaxation.

    Attributes:
        crystal: starting point.
        positions: (n, 3) angstrom.
        lattice: (3, 3) angstrom.
        num_steps: steps taken so far.
        end: None during the relaxation; then its final state, or why it diverged.
    """

    def __init__(self, crystal: Prepared) -> None:
        self.crystal = crystal
        self.positions = crystal.positions
        self.lattice = crystal.lattice
        self.num_steps = 0
        self.end: FinalState | str | None = None
        self._gradient = np.eye(3)  # deformation of the first cell: lattice = first @ gradient.T
        self._velocity = np.zeros((len(crystal.atom_types) + 3, 3))
        self._dt, self._alpha, self._num_downhill = _START_DT, _START_ALPHA, 0

    def advance(self, forces: Forces, *, steps: int, fmax: float) -> None:
        """Take a step, or end: if the forces are small, the steps are used up, or it diverges.

        Args:
            forces: at the present positions.
            steps: maximum number of steps.
            fmax: largest force of a converged crystal, eV/angstrom.
        """
        energy, on_atoms, stress = forces
        if not (np.isfinite(energy) and np.isfinite(on_atoms).all() and np.isfinite(stress).all()):
            self.end = "diverged: energy or forces are not finite"
            return
        force = self._generalised(on_atoms, stress)
        converged = bool((force**2).sum(1).max() < fmax**2)
        if converged or self.num_steps == steps:
            per_atom = energy / len(self.positions)
            self.end = FinalState(self.positions, self.lattice, per_atom, converged, self.num_steps)
            return
        self._move(self._fire(force))
        self.num_steps += 1
        self.end = self._problem()

    def _generalised(self, on_atoms: np.ndarray, stress: np.ndarray) -> np.ndarray:
        """Forces (n + 3, 3) on the atoms of the undeformed cell, and on the cell over n."""
        virial = -abs(np.linalg.det(self.lattice)) * stress
        on_cell = np.linalg.solve(self._gradient, virial).T / len(on_atoms)
        return np.concatenate([on_atoms @ self._gradient, on_cell])

    def _fire(self, force: np.ndarray) -> np.ndarray:
        """Return the displacement (n + 3, 3)."""
        power = float((force * self._velocity).sum())
        if power > 0:
            ratio = np.linalg.norm(self._velocity) / np.linalg.norm(force)
            self._velocity = (1 - self._alpha) * self._velocity + self._alpha * ratio * force
            if self._num_downhill > _PATIENCE:
                self._dt = min(1.1 * self._dt, _MAX_DT)
                self._alpha *= 0.99
            self._num_downhill += 1
        elif self.num_steps:
            self._velocity = np.zeros_like(force)
            self._dt, self._alpha, self._num_downhill = 0.5 * self._dt, _START_ALPHA, 0
        self._velocity = self._velocity + self._dt * force
        move = self._dt * self._velocity
        return move * min(1.0, MAX_MOVE / float(np.linalg.norm(move)))

    def _move(self, displacement: np.ndarray) -> None:
        num_atoms = len(self.positions)
        undeformed = np.linalg.solve(self._gradient, self.positions.T).T + displacement[:-3]
        self._gradient = self._gradient + displacement[-3:] / num_atoms
        self.lattice = self.crystal.lattice @ self._gradient.T
        self.positions = undeformed @ self._gradient.T

    def _problem(self) -> str | None:
        volume = float(np.linalg.det(self.lattice))
        problem = volume_problem(volume / len(self.positions))
        if problem is not None:
            return f"diverged: {problem.removeprefix('implausible: ')}"
        if volume < _MIN_FLATNESS * np.linalg.norm(self.lattice, axis=1).prod():
            return "diverged: the cell became flat"
        return None


def relax_together(
    crystals: Sequence[Prepared],
    build: Callable[[MovingCrystal], Graph],
    evaluate: Callable[[Sequence[Graph]], Sequence[Forces]],
    *,
    shape: Shape,
    steps: int,
    fmax: float,
) -> list[FinalState | str]:
    """Relax crystals; return the final state of each, or why it has none.

    Args:
        crystals: starting points.
        build: builds the graph of neighbours of a crystal.
        evaluate: computes energies, forces and stresses of graphs that fit into one batch.
        shape: nodes, edges and graphs to fill a batch up to.
        steps: maximum number of steps of a crystal.
        fmax: largest force of a converged crystal, eV/angstrom.
    """
    movers = [MovingCrystal(crystal) for crystal in crystals]
    waiting, active = deque(movers), list[MovingCrystal]()
    while waiting or active:
        graphs = [build(mover) for mover in active]
        while waiting:
            graph = build(waiting[0])
            if graphs and len(plan_batches([*graphs, graph], shape)) > 1:
                break
            active.append(waiting.popleft())
            graphs.append(graph)
        evaluable = []
        for index, graph in enumerate(graphs):
            if len(graph.senders) > MAX_EDGES:
                active[index].end = f"too large: {len(graph.senders)} pairs of neighbours"
            else:
                evaluable.append(index)
        for batch in plan_batches([graphs[index] for index in evaluable], shape):
            members = [evaluable[place] for place in batch]
            forces = evaluate([graphs[index] for index in members])
            for index, own_forces in zip(members, forces, strict=True):
                active[index].advance(own_forces, steps=steps, fmax=fmax)
        active = [mover for mover in active if mover.end is None]
    return [mover.end for mover in movers if mover.end is not None]
