"""Crystals become rows: the arrays that models compute on, filled on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """Fill rows with crystals (in the order of the assignment).

    Args:
        crystals: B crystals.
        assignment: where they go.
        crystal_ids: (B,) int, the identity that random numbers hang on; the position by default.
        row_range: first and last + 1 row to return, for a host that holds only some of them.
        atom_features: name -> (A, width), in the order of the atoms of `crystals`.
        conditions: name -> (B, width), in the order of `crystals`.
    """
    shape = assignment.shape
    tokens, slots = assignment.token_index, assignment.slot_index
    ids = np.arange(len(crystals)) if crystal_ids is None else np.asarray(crystal_ids)
    owner = np.repeat(np.arange(len(crystals)), crystals.num_atoms)
    within = np.arange(len(tokens)) - np.repeat(crystals.offsets[:-1], crystals.num_atoms)
    num_tokens, num_slots = shape.rows * shape.tokens, shape.rows * shape.slots

    def scatter(length: int, index: np.ndarray, values: np.ndarray, fill: Any, dtype: Any) -> Any:
        out = np.full((length, *values.shape[1:]), fill, dtype)
        out[index] = values
        width = shape.tokens if length == num_tokens and index is tokens else shape.slots
        first, last = row_range or (0, shape.rows)
        return out.reshape(shape.rows, width, *values.shape[1:])[first:last]

    num_atoms = scatter(num_slots, slots, crystals.num_atoms, 0, np.int32)
    position = scatter(num_tokens, tokens, within, 0, np.int32)
    is_atom = scatter(num_tokens, tokens, np.ones(len(tokens), bool), False, bool)
    if assignment.padded:
        position = np.where(is_atom, position, np.maximum(num_atoms - 1, 0)).astype(np.int32)
    lattices = scatter(num_slots, slots, crystals.lattices, 0.0, np.float32)
    lattices[num_atoms == 0] = np.eye(3, dtype=np.float32)
    return Rows(
        atom_types=scatter(num_tokens, tokens, crystals.atom_types, 0, np.int32),
        frac_coords=scatter(num_tokens, tokens, crystals.frac_coords, 0.0, np.float32),
        is_atom=is_atom,
        slot=scatter(num_tokens, tokens, assignment.slot[owner], shape.slots - 1, np.int32),
        position=position,
        lattices=lattices,
        num_atoms=num_atoms,
        crystal_id=scatter(num_slots, slots, ids, NO_CRYSTAL, np.int32),
        is_crystal=scatter(num_slots, slots, np.ones(len(slots), bool), False, bool),
        targets={
            k: scatter(num_slots, slots, v, 0.0, np.float32) for k, v in crystals.targets.items()
        },
        conditions={
            k: scatter(num_slots, slots, v, 0.0, np.float32) for k, v in (conditions or {}).items()
        },
        features={
            k: scatter(num_tokens, tokens, v, 0.0, np.float32)
            for k, v in (atom_features or {}).items()
        },
        edges=pair_edges(assignment, row_range) if shape.edges else {},
    )


def pair_edges(
    assignment: Assignment, row_range: tuple[int, int] | None = None
) -> dict[str, np.ndarray]:
    """All ordered pairs of atoms within crystals, self pairs included, as tokens r * T + t of the
    whole batch; padded.

    With `row_range` a host gets its equal part of the list, which belongs to the batch and not to
    its rows.
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
    """Crystals of given sizes with nothing in them: what sampling starts from."""
    sizes = np.asarray(num_atoms, np.int32)
    total, count = int(sizes.sum()), len(sizes)
    return Crystals(
        num_atoms=sizes,
        atom_types=np.zeros(total, np.int8),
        frac_coords=np.zeros((total, 3), np.float32),
        lattices=np.tile(np.eye(3, dtype=np.float32), (count, 1, 1)),
        material_ids=np.arange(count).astype(bytes),
    )
