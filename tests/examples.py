"""Small crystals, and the layouts that must all give the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from chemeleon2_jax.crystals.arrays import Crystals, lattice_from_parameters
from chemeleon2_jax.rows.filling import build_rows
from chemeleon2_jax.rows.packing import Assignment, RowShape, assign, assign_padded, num_rows
from chemeleon2_jax.rows.rows import Rows

SIZES = (3, 1, 7, 4, 2, 5)
LAYOUTS = ("packed", "padded", "alone")


def random_crystals(sizes: Sequence[int] = SIZES, *, seed: int = 0) -> Crystals:
    """Crystals of given sizes with random elements, coordinates, cells and a target `energy`."""
    rng = np.random.default_rng(seed)

    def crystal(size: int) -> tuple[Any, Any, Any]:
        angles = np.radians(rng.uniform(65.0, 115.0, 3))
        lattice = lattice_from_parameters(rng.uniform(3.0, 8.0, 3), angles)
        return rng.integers(1, 100, size), rng.random((size, 3)), lattice

    energy = rng.normal(size=len(sizes))
    return Crystals.from_list([crystal(n) for n in sizes], targets={"energy": energy})


@dataclass(frozen=True)
class Placed:
    """Some crystals in rows: `indices` of the collection, in the order of the assignment."""

    rows: Rows
    where: Assignment
    indices: np.ndarray

    def to_tokens(self, values: np.ndarray) -> jax.Array:
        """(A, ...) values, atoms in the order of these crystals, to (R, T, ...)."""
        return _scatter(values, self.where.token_index, self.rows.position.shape)

    def to_slots(self, values: np.ndarray) -> jax.Array:
        """(B, ...) values of crystals to (R, S, ...)."""
        return _scatter(values, self.where.slot_index, self.rows.is_crystal.shape)

    def atoms(self, values: Any) -> np.ndarray:
        """(R, T, ...) values to those of the atoms, (A, ...)."""
        return np.concatenate(self.where.split_atoms(values))


def _scatter(values: np.ndarray, index: np.ndarray, shape: tuple[int, ...]) -> jax.Array:
    out = np.zeros((int(np.prod(shape)), *values.shape[1:]), values.dtype)
    out[index] = values
    return jnp.asarray(out.reshape(*shape, *values.shape[1:]))


def place(crystals: Crystals, where: Assignment, indices: Sequence[int] | None = None) -> Placed:
    """Fill rows with the crystals at `indices` (all by default); crystal_id is the index."""
    chosen = np.arange(len(crystals)) if indices is None else np.asarray(indices)
    rows = build_rows(crystals.take(chosen), where, crystal_ids=chosen)
    return Placed(jax.tree.map(jnp.asarray, rows), where, chosen)


def packed(crystals: Crystals, *, edges: int = 0) -> Placed:
    """Rows of 16 tokens and 5 slots, 3 or more, the last one empty: few shapes, few programs."""
    shape = RowShape(max(3, num_rows(crystals.num_atoms, 16, 5) + 1), 16, 5, edges)
    return place(crystals, assign(crystals.num_atoms, [shape]))


def in_layout(crystals: Crystals, layout: str, *, edges: bool = False) -> list[Placed]:
    """The crystals in one of LAYOUTS, with empty slots and padding; `alone` is a batch for each."""
    sizes = crystals.num_atoms
    pairs = int((sizes.astype(int) ** 2).sum()) + 10 if edges else 0
    if layout == "padded":
        return [place(crystals, assign_padded(sizes, 9, rows=len(sizes) + 1, edges=pairs))]
    together = packed(crystals, edges=pairs)
    if layout == "packed":
        return [together]
    shape = together.where.shape  # the same program
    return [place(crystals, assign([n], [shape]), [i]) for i, n in enumerate(sizes)]


# (params, rows, draws) -> (sum over crystals, ({name: (R, T, ...)}, {name: (R, S, ...)}))
SumFn = Callable[[Any, Rows, Any], tuple[jax.Array, tuple[dict[str, Any], dict[str, Any]]]]
# rows -> random numbers that belong to the crystals
DrawFn = Callable[[Rows], Any]


def assert_layouts_agree(
    fn: SumFn, params: Any, crystals: Crystals, *, draw: DrawFn, edges: bool = False
) -> None:
    """Outputs and parameter gradients are finite and the same in all LAYOUTS, to float error."""
    step = jax.jit(jax.value_and_grad(fn, has_aux=True))

    def evaluate(layout: str) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
        """Outputs, crystal after crystal, and the gradient of the sum over all crystals."""
        batches = in_layout(crystals, layout, edges=edges)
        results = [step(params, b.rows, draw(replace(b.rows, edges={}))) for b in batches]
        outputs: dict[str, list[np.ndarray]] = {}
        for batch, ((_, (atoms, slots)), _) in zip(batches, results, strict=True):
            for name, values in atoms.items():
                outputs.setdefault(name, []).append(batch.atoms(values))
            for name, values in slots.items():
                outputs.setdefault(name, []).append(batch.where.take_slots(values))
        joined = {name: np.concatenate(parts) for name, parts in outputs.items()}
        joined["total"] = np.array(sum(float(value) for (value, _), _ in results))
        gradients = [jax.tree.leaves(gradient) for _, gradient in results]
        return joined, [np.sum(parts, 0) for parts in zip(*gradients, strict=True)]

    reference, gradient = evaluate("alone")
    largest = max(np.abs(leaf).max() for leaf in gradient)
    assert largest > 0
    for layout in ("packed", "padded"):
        found, found_gradient = evaluate(layout)
        for name, values in reference.items():
            assert relative(found[name], values) < 1e-5, (layout, name)
        for ours, theirs in zip(found_gradient, gradient, strict=True):
            allowed = 1e-4 * np.abs(theirs).max() + 1e-6 * largest
            assert np.abs(ours - theirs).max() < allowed, layout


def relative(ours: Any, theirs: Any) -> float:
    """Largest absolute difference over the largest absolute value; NaN never passes a bound."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def random_model(build: Callable[[], nnx.Module], *, seed: int = 0) -> tuple[Any, Any]:
    """(graphdef, params) of a model, random also where parameters start at zero."""
    graphdef, params = nnx.split(nnx.eval_shape(build), nnx.Param)
    rng = np.random.default_rng(seed)

    def fill(path: Any, leaf: Any) -> jax.Array:
        values = rng.normal(size=leaf.shape)
        if len(leaf.shape) == 2:
            values = values / np.sqrt(leaf.shape[0])
        else:
            values = 0.2 * values + ("scale" in jax.tree_util.keystr(path))
        return jnp.asarray(values, leaf.dtype)

    return graphdef, jax.tree_util.tree_map_with_path(fill, params)
