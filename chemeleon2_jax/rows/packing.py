"""Packed rows: whole crystals packed into rows of tokens with static shapes, the one layout that
every model computes on.

Letters: R rows, T tokens in a row, S slots (crystals) in a row. A crystal never leaves its row, so
that all arrays shard on the first axis. Sizes alone decide where a crystal goes, hence every host
plans the same batch. In a packed row the last slot is a dummy (identity lattice, no atoms) that the
padding tokens belong to. All of it is numpy, on the host.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from chemeleon2_jax.crystals.arrays import Crystals
from chemeleon2_jax.rows.rows import Rows

MAX_SHAPES = 5
USEFUL_SHARE_WANTED = 0.95
NO_CRYSTAL = -1  # crystal_id of an empty slot
_SLOT_CHOICES = (5, 7, 9, 11, 13, 17, 25, 33, 65, 129)
_SIMULATED_CRYSTALS = 50_000


class RowShape(NamedTuple):
    """Static shape of a batch: rows R, tokens T in a row, slots S in a row; E pairs of atoms, 0
    where no model wants them.
    """

    rows: int
    tokens: int
    slots: int
    edges: int = 0


@dataclass(frozen=True)
class Assignment:
    """Where each of B crystals goes: its row, its slot and its first token in the row, each (B,)
    int64.
    """

    shape: RowShape
    sizes: np.ndarray
    row: np.ndarray
    slot: np.ndarray
    start: np.ndarray
    padded: bool = False

    @property
    def token_index(self) -> np.ndarray:
        """(A,) positions in the flattened (R * T) tokens of all atoms, crystal after crystal."""
        first = self.row * self.shape.tokens + self.start
        ends = np.cumsum(self.sizes)
        return np.repeat(first - (ends - self.sizes), self.sizes) + np.arange(self.sizes.sum())

    @property
    def slot_index(self) -> np.ndarray:
        """(B,) positions in the flattened (R * S) slots."""
        return self.row * self.shape.slots + self.slot

    @property
    def useful_share(self) -> float:
        """Share of the tokens that are atoms."""
        return float(self.sizes.sum() / (self.shape.rows * self.shape.tokens))

    def split_atoms(self, values: Any) -> list[np.ndarray]:
        """Return (R, T, ...) values as one (n, ...) array a crystal."""
        array = np.asarray(values)
        atoms = array.reshape(-1, *array.shape[2:])[self.token_index]
        return np.split(atoms, np.cumsum(self.sizes)[:-1])

    def take_slots(self, values: Any) -> np.ndarray:
        """Return (R, S, ...) values as (B, ...), one a crystal."""
        array = np.asarray(values)
        return array.reshape(-1, *array.shape[2:])[self.slot_index]


# --- planning -------------------------------------------------------------------------------------


def best_fit(
    sizes: np.ndarray, tokens: int, slots: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pack crystals into rows: largest first, each into the fullest row that still takes it.

    Args:
        sizes: (B,) numbers of atoms, each at most `tokens`.
        tokens: tokens in a row.
        slots: slots in a row; one of them stays free for the padding.

    Returns:
        row, slot and first token of each crystal, (B,) int64.
    """
    row, slot, start = (np.zeros(len(sizes), np.int64) for _ in range(3))
    open_rows: list[list[int]] = [[] for _ in range(tokens + 1)]  # by free tokens
    used_slots: list[int] = []
    for index in np.argsort(-sizes, kind="stable"):
        size = int(sizes[index])
        free = next((f for f in range(size, tokens + 1) if open_rows[f]), None)
        if free is None:
            used_slots.append(0)
            free, chosen = tokens, len(used_slots) - 1
        else:
            chosen = open_rows[free].pop()
        row[index], slot[index], start[index] = chosen, used_slots[chosen], tokens - free
        used_slots[chosen] += 1
        if used_slots[chosen] < slots - 1:
            open_rows[free - size].append(chosen)
    return row, slot, start


def num_rows(sizes: np.ndarray, tokens: int, slots: int) -> int:
    """Return how many rows `best_fit` opens."""
    return int(best_fit(sizes, tokens, slots)[0].max(initial=-1)) + 1


def assign(sizes: Sequence[int] | np.ndarray, shapes: Sequence[RowShape]) -> Assignment:
    """Pack crystals of `sizes` (B,) into the smallest of `shapes` (all with the same T and S) that
    holds them.

    Raises:
        ValueError: none of the shapes holds them.
    """
    sizes = np.asarray(sizes, np.int64)
    tokens, slots = shapes[0].tokens, shapes[0].slots
    if sizes.max(initial=0) > tokens:
        raise ValueError(
            f"a crystal of {sizes.max()} atoms does not fit into rows of {tokens} tokens; "
            "raise config.packing.row_tokens or lower config.data.max_atoms"
        )
    row, slot, start = best_fit(sizes, tokens, slots)
    needed, pairs = int(row.max(initial=-1)) + 1, int((sizes**2).sum())
    for shape in sorted(shapes):
        if shape.rows >= needed and (not shape.edges or shape.edges >= pairs):
            return Assignment(shape, sizes, row, slot, start)
    raise ValueError(
        f"{len(sizes)} crystals need {needed} rows; the largest shape is {max(shapes)}"
    )


def assign_padded(
    sizes: Sequence[int] | np.ndarray, tokens: int, *, rows: int = 0, edges: int = 0
) -> Assignment:
    """One crystal a row, padded to `tokens`, the padding belonging to the crystal: the layout of
    the original.

    Needed where the interleaved variance of converted models makes the padding part of the result.
    """
    sizes = np.asarray(sizes, np.int64)
    index, zeros = np.arange(len(sizes)), np.zeros(len(sizes), np.int64)
    return Assignment(
        RowShape(max(rows, len(sizes)), tokens, 1, edges), sizes, index, zeros, zeros, padded=True
    )


def plan_shapes(
    sizes: np.ndarray,
    batch_size: int,
    *,
    num_devices: int = 1,
    row_tokens: int = 0,
    max_shapes: int = MAX_SHAPES,
    edges: bool = False,
    copies: int = 1,
) -> tuple[RowShape, ...]:
    """Choose at most `max_shapes` row shapes for batches of `batch_size` drawn from crystals of
    `sizes`; each is compiled when a batch first needs it.

    Random batches are packed to see how many rows they need; the shapes waste least on those, and
    the last one holds the worst batch that can be drawn. Rows come in multiples of `num_devices`.
    The answer depends on the multiset of sizes alone. `row_tokens` = 0 takes 64 tokens if at least
    95 % of them would be atoms, else more. With `edges` the shapes have room for all pairs of
    atoms, too. `copies` of each crystal that is drawn follow one another.
    """
    sizes = np.sort(np.repeat(np.asarray(sizes, np.int64), copies))
    batch_size = min(batch_size, len(sizes))
    largest = int(sizes[-1])
    smallest_row = 64 * -(-largest // 64)
    candidates = [row_tokens] if row_tokens else [smallest_row, 2 * smallest_row]
    best: tuple[float, tuple[RowShape, ...]] | None = None
    for tokens in candidates:
        share, shapes = _plan_for_tokens(
            sizes, batch_size, tokens, num_devices=num_devices, max_shapes=max_shapes, copies=copies
        )
        if best is None or share > best[0] + 0.01:
            best = (share, shapes)
        if share >= USEFUL_SHARE_WANTED:
            break
    assert best is not None
    return _with_edges(best[1], sizes, batch_size, num_devices) if edges else best[1]


def _plan_for_tokens(
    sizes: np.ndarray,
    batch_size: int,
    tokens: int,
    *,
    num_devices: int,
    max_shapes: int,
    copies: int,
) -> tuple[float, tuple[RowShape, ...]]:
    """Return the expected share of useful tokens and the shapes, for rows of one length."""
    draws = _draw_batches(sizes, batch_size, copies)
    slots = _choose_slots(draws[:8], tokens)
    rows = np.array([num_rows(draw, tokens, slots) for draw in draws])
    # A little above the largest seen, since a run draws more batches than these; exact where all
    # batches are alike.
    largest = int(np.ceil(rows.max() + 0.5 * rows.std()))
    # The worst batch: all the largest crystals, or so many small ones that slots run out first.
    worst = max(
        num_rows(sizes[-batch_size:], tokens, slots), -(-batch_size // (slots - 1)), largest
    )
    rows = num_devices * -(-rows // num_devices)
    largest, worst = (num_devices * -(-r // num_devices) for r in (largest, worst))
    usual = worst if max_shapes == 1 else largest
    levels = _choose_levels(rows, usual, max(1, max_shapes - 1))
    taken = levels[np.searchsorted(levels, rows)]
    share = np.mean([draw.sum() for draw in draws]) / (taken.mean() * tokens)
    shapes = tuple(RowShape(int(r), tokens, slots) for r in np.unique([*levels, worst]))
    return float(share), shapes


def _draw_batches(sizes: np.ndarray, batch_size: int, copies: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    num_draws = int(np.clip(_SIMULATED_CRYSTALS // batch_size, 16, 200))
    distinct, count = sizes[::copies], -(-batch_size // copies)
    draws = [rng.choice(distinct, count, replace=False) for _ in range(num_draws)]
    return [np.repeat(draw, copies)[:batch_size] for draw in draws]


def _with_edges(
    shapes: Sequence[RowShape], sizes: np.ndarray, batch_size: int, num_devices: int
) -> tuple[RowShape, ...]:
    """Add room for the pairs of atoms: what batches of that many rows hold, a tenth to spare; all
    of them in the last shape.
    """
    draws = _draw_batches(sizes, batch_size)
    placed = [(assign(draw, shapes).shape.rows, int((draw**2).sum())) for draw in draws]
    out, room = [], 0
    for shape in shapes:
        room = max([room, *(int(1.1 * pairs) for rows, pairs in placed if rows <= shape.rows)])
        if shape is shapes[-1]:
            room = max(room, int((sizes[-batch_size:] ** 2).sum()))
        quantum = 256 * num_devices
        out.append(shape._replace(edges=quantum * max(1, -(-room // quantum))))
    return tuple(out)


def _choose_levels(rows: np.ndarray, largest: int, count: int) -> np.ndarray:
    """Return at most `count` row numbers, `largest` among them, that waste the fewest rows on
    batches needing `rows`.
    """
    options = [int(r) for r in np.unique(rows) if r < largest]
    best = np.array([largest])
    least = np.inf
    for chosen in itertools.combinations(options, min(count - 1, len(options))):
        levels = np.array([*chosen, largest])
        used = levels[np.searchsorted(levels, rows)].sum()
        if used < least:
            best, least = levels, used
    return best


def _choose_slots(draws: Sequence[np.ndarray], tokens: int) -> int:
    """Return the number of slots that makes a batch cheapest.

    Few slots leave tokens unused, many leave slots unused, and adaLN is computed for every slot: a
    slot counts as a quarter of a token, between its cost in the diffusion transformer (half) and in
    the VAE (nothing).
    """

    def cost(slots: int) -> float:
        return sum(num_rows(draw, tokens, slots) for draw in draws) * (tokens + slots / 4)

    return min((s for s in _SLOT_CHOICES if s <= tokens + 1), key=cost)


# --- filling --------------------------------------------------------------------------------------


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
