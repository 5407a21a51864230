"""Nequix, an equivariant potential in JAX, on batches of crystals.

Koker, Kotak and Smidt, "Training a foundation model for materials on a budget", 2025. Its published
MP and OAM models predict Materials Project's uncorrected PBE(+U).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jraph
import numpy as np

from chemeleon2_jax.common.errors import EnergyError
from chemeleon2_jax.common.paths import expand_path
from chemeleon2_jax.common.scores import check_values
from chemeleon2_jax.energy.fire import Forces, relax_together
from chemeleon2_jax.energy.graphs import (
    MAX_EDGES,
    SHAPES,
    Graph,
    build_graph,
    pad_batch,
    plan_batches,
)
from chemeleon2_jax.energy.guard import prepare
from chemeleon2_jax.energy.interface import FMAX, STEPS, require
from chemeleon2_jax.energy.relaxation import FinalState, collect_relaxed
from chemeleon2_jax.energy.results import Energies, Relaxed
from chemeleon2_jax.energy.weights import fetch_weights, read_header

EDGES_AT_ONCE = 1 << 14
"""Edges (pairs of neighbours) in a batch: some 300 atoms. More keep a large GPU busier."""

_HINT = "install it: pip install --no-deps nequix, and the extra energy: pip install -e '.[energy]'"


class NequixModel:
    """Nequix as an :class:`~chemeleon2_jax.energy.interface.EnergyModel`."""

    def __init__(
        self,
        model: Any,
        elements: Sequence[int],
        *,
        name: str,
        corrected: bool,
        edges_at_once: int = EDGES_AT_ONCE,
    ) -> None:
        """Take a model of nequix's own class.

        Args:
            model: ``nequix.model.Nequix``, without kernels.
            elements: atomic numbers in the order of its species.
            name: of the model, for reports.
            corrected: whether its energies are on Materials Project's corrected scale.
            edges_at_once: edges (pairs of neighbours) in a batch, rounded up to a shape.
        """
        self.name = name
        self.corrected = corrected
        self.elements: frozenset[int] | None = frozenset(elements)
        self._cutoff = float(model.cutoff)
        self._species = np.full(max(elements) + 1, -1)
        self._species[list(elements)] = np.arange(len(elements))
        self._shape = next((s for s in SHAPES if s.edges >= edges_at_once), SHAPES[-1])
        self._weights, self._energy_fn, self._forces_fn = _programs(model)

    def energies(self, structures: Iterable[Any]) -> Energies:
        """Return the energies of structures as they are, in eV/atom."""
        prepared, reasons = prepare(structures, self.elements)
        values: list[float | None] = [None] * len(prepared)
        todo, graphs = [], []
        for index, crystal in enumerate(prepared):
            if crystal is None:
                continue
            graph = self._build(crystal.atom_types, crystal.positions, crystal.lattice)
            if len(graph.senders) > MAX_EDGES:
                reasons[index] = f"too large: {len(graph.senders)} pairs of neighbours"
                continue
            todo.append(index)
            graphs.append(graph)
        for batch in plan_batches(graphs, self._shape):
            members = [graphs[place] for place in batch]
            with jax.default_matmul_precision("highest"):
                on_atoms = self._energy_fn(self._weights, pad_batch(members))
            ends = np.cumsum([len(graph.species) for graph in members])
            by_crystal = np.split(np.asarray(on_atoms, np.float64), ends)
            for place, own_atoms in zip(batch, by_crystal, strict=False):  # the rest is padding
                values[todo[place]] = float(own_atoms.mean())
        return Energies(*check_values(values, reasons), self.corrected)

    def relax(
        self, structures: Iterable[Any], *, steps: int = STEPS, fmax: float = FMAX
    ) -> Relaxed:
        """Relax positions and cells with FIRE, many crystals at once; see the protocol."""
        prepared, reasons = prepare(structures, self.elements)
        todo = [index for index, crystal in enumerate(prepared) if crystal is not None]
        ends = relax_together(
            [crystal for crystal in prepared if crystal is not None],
            lambda mover: self._build(mover.crystal.atom_types, mover.positions, mover.lattice),
            self._evaluate,
            shape=self._shape,
            steps=steps,
            fmax=fmax,
        )
        final_states: list[FinalState | None] = [None] * len(prepared)
        for index, end in zip(todo, ends, strict=True):
            if isinstance(end, FinalState):
                final_states[index] = end
            else:
                reasons[index] = end
        return collect_relaxed(prepared, final_states, reasons, corrected=self.corrected)

    def _build(self, atom_types: np.ndarray, positions: np.ndarray, lattice: np.ndarray) -> Graph:
        return build_graph(self._species[atom_types], positions, lattice, cutoff=self._cutoff)

    def _evaluate(self, graphs: Sequence[Graph]) -> list[Forces]:
        with jax.default_matmul_precision("highest"):
            results = self._forces_fn(self._weights, pad_batch(graphs))
        energies, forces, stresses = (np.asarray(result, np.float64) for result in results)
        ends = np.cumsum([len(graph.species) for graph in graphs])
        by_crystal = np.split(forces, ends)[: len(graphs)]
        return list(zip(energies.tolist(), by_crystal, stresses, strict=False))


Program = Callable[[Any, jraph.GraphsTuple], Any]


def _programs(model: Any) -> tuple[Any, Program, Program]:
    """Return the weights, and compiled programs for atoms' energies and for all derivatives."""
    import equinox

    weights, static = equinox.partition(model, equinox.is_array)

    @jax.jit
    def energies(weights: Any, batch: jraph.GraphsTuple) -> jax.Array:
        cells = jax.numpy.repeat(
            batch.globals["cell"], batch.n_edge, axis=0, total_repeat_length=len(batch.senders)
        )
        positions = batch.nodes["positions"]
        offsets = jax.numpy.einsum("ei,eij->ej", batch.edges["shifts"], cells)
        vectors = positions[batch.senders] - positions[batch.receivers] + offsets
        whole = equinox.combine(weights, static)
        species = batch.nodes["species"]
        return whole.node_energies(vectors, species, batch.senders, batch.receivers)[:, 0]

    @jax.jit
    def forces(weights: Any, batch: jraph.GraphsTuple) -> Any:
        return equinox.combine(weights, static)(batch)

    return weights, energies, forces


def load_nequix(
    *,
    model: str = "nequix-mp-1",
    model_path: str | Path = "",
    corrected: bool = False,
    edges_at_once: int = EDGES_AT_ONCE,
) -> NequixModel:
    """Load a Nequix model.

    Args:
        model: one of the published :data:`~chemeleon2_jax.energy.weights.MODELS`.
        model_path: file of weights (.nqx) to use instead.
        corrected: scale of that file's energies; the published models are uncorrected.
        edges_at_once: edges (pairs of neighbours) in a batch; more need more memory.

    Raises:
        EnergyError: nequix is not installed, or the weights cannot be had or read.
    """
    for package in ("nequix", "equinox", "e3nn_jax", "matscipy"):
        require(package, _HINT)
    if corrected and not model_path:
        raise EnergyError("the published Nequix models are not on the corrected scale")
    path = expand_path(model_path, error=EnergyError) if model_path else fetch_weights(model)
    try:
        elements = sorted(read_header(path)["atomic_numbers"])
        loaded = _load(path)
    except OSError as error:
        raise EnergyError(f"cannot read Nequix weights from {path}: {error}") from error
    return NequixModel(
        loaded,
        elements,
        name=f"nequix:{path.stem}",
        corrected=corrected,
        edges_at_once=edges_at_once,
    )


def _load(path: Path) -> Any:
    """Return the model of a file.

    Raises:
        EnergyError: the file is not whole, or belongs to another release of nequix.
        OSError: it cannot be read.
    """
    # Importing nequix sets the precision of the whole process; here each program sets its own.
    # JAX makes the attributes of its config at run time, where the type checker does not see them.
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    try:
        from nequix.model import load_model
    finally:
        jax.config.update("jax_default_matmul_precision", precision)
    try:
        return load_model(str(path), False)[0]
    except (KeyError, TypeError, ValueError, EOFError, RuntimeError) as error:
        raise EnergyError(
            f"{path} does not hold a model of the installed nequix: {type(error).__name__}: {error}"
        ) from error
