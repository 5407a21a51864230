"""Crystals to rows: fills the arrays that models compute on, with numpy on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from chemeleon2_jax.crystals.arrays import Crystals
from chemeleon2_jax.rows.packing import Assignment
from chemeleon2_jax.rows.rows import Rows

NO_CRYSTAL = -1  # crystal_id of an empty slot


def build_rows(
    crystals: Crystals,
    assignment: Assignment,
    *,
    crystal_ids: np.ndarray | None = None,
    row_range: tuple[int, int] | None = None,
    atom_features: Mapping[str, np.ndarray] | None = None,
    conditions: Mapping[str, np.ndarray] | None = None,
) -> Rows:
    """Fill rows with crystals.

    Args:
        crystals: B crystals, in the order of the assignment.
        assignment: their places.
        crystal_ids: (B,) int, from which random numbers are derived; by default the position.
        row_range: first and last + 1 row to return, for a host that holds some of the rows.
        atom_features: name -> (A, width), in the order of the atoms of `crystals`.
        conditions: name -> (B, width), in the order of `crystals`.
    """
    shape = assignment.shape
    first, last = row_range or (0, shape.rows)

    def scatter(index: np.ndarray, width: int, values: Any, dtype: Any, fill: Any = 0) -> Any:
        flat = np.full((shape.rows * width, *values.shape[1:]), fill, dtype)
        flat[index] = values
        return flat.reshape(shape.rows, width, *values.shape[1:])[first:last]

    to_tokens = partial(scatter, assignment.token_index, shape.tokens)
    to_slots = partial(scatter, assignment.slot_index, shape.slots)
    total_atoms = len(crystals.atom_types)
    owner = np.repeat(np.arange(len(crystals)), crystals.num_atoms)
    num_atoms = to_slots(crystals.num_atoms, np.int32)
    is_atom = to_tokens(np.ones(total_atoms, bool), bool)
    position = to_tokens(np.arange(total_atoms) - crystals.offsets[owner], np.int32)
    if assignment.padded:
        position = np.where(is_atom, position, np.maximum(num_atoms - 1, 0)).astype(np.int32)
    lattices = to_slots(crystals.lattices, np.float32)
    lattices[num_atoms == 0] = np.eye(3, dtype=np.float32)
    ids = np.arange(len(crystals)) if crystal_ids is None else np.asarray(crystal_ids)
    return Rows(
        atom_types=to_tokens(crystals.atom_types, np.int32),
        frac_coords=to_tokens(crystals.frac_coords, np.float32),
        is_atom=is_atom,
        slot=to_tokens(assignment.slot[owner], np.int32, shape.slots - 1),
        position=position,
        lattices=lattices,
        num_atoms=num_atoms,
        crystal_id=to_slots(ids, np.int32, NO_CRYSTAL),
        is_crystal=to_slots(np.ones(len(crystals), bool), bool),
        targets={k: to_slots(v, np.float32) for k, v in crystals.targets.items()},
        conditions={k: to_slots(v, np.float32) for k, v in (conditions or {}).items()},
        features={k: to_tokens(v, np.float32) for k, v in (atom_features or {}).items()},
        edges=pair_edges(assignment, row_range) if shape.edges else {},
    )


def pair_edges(
    assignment: Assignment, row_range: tuple[int, int] | None = None
) -> dict[str, np.ndarray]:
    """Return all ordered pairs of atoms within crystals, self pairs included, as tokens r * T + t
    of the whole batch; padded.

    With `row_range`, returns an equal share of the list: edges shard independently of rows.
    """
    shape, sizes = assignment.shape, assignment.sizes
    first = np.repeat(assignment.row * shape.tokens + assignment.start, sizes**2)
    index = np.arange((sizes**2).sum()) - np.repeat(np.cumsum(sizes**2) - sizes**2, sizes**2)
    within = np.repeat(sizes, sizes**2)
    pad = (0, shape.edges - len(index))
    start, stop = row_range or (0, shape.rows)
    part = slice(shape.edges * start // shape.rows, shape.edges * stop // shape.rows)
    return {
        "senders": np.pad(first + index // within, pad).astype(np.int32)[part],
        "receivers": np.pad(first + index % within, pad).astype(np.int32)[part],
        "is_edge": np.pad(np.ones(len(index), bool), pad)[part],
    }


def empty_crystals(num_atoms: Sequence[int] | np.ndarray) -> Crystals:
    """Return crystals of the given sizes without types and coordinates, for sampling."""
    sizes = np.asarray(num_atoms, np.int32)
    total, count = int(sizes.sum()), len(sizes)
    return Crystals(
        num_atoms=sizes,
        atom_types=np.zeros(total, np.int8),
        frac_coords=np.zeros((total, 3), np.float32),
        lattices=np.tile(np.eye(3, dtype=np.float32), (count, 1, 1)),
        material_ids=np.arange(count).astype(bytes),
    )
