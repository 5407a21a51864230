"""Static shapes of the rows of a run: few, since each is compiled, and with little padding."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from chemeleon2_jax.rows.packing import RowShape, assign, num_rows

MAX_SHAPES = 5
USEFUL_SHARE_WANTED = 0.95
_SLOT_CHOICES = (5, 7, 9, 11, 13, 17, 25, 33, 65, 129)
_SIMULATED_CRYSTALS = 50_000


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
    """Choose at most `max_shapes` row shapes for batches drawn from crystals of `sizes`.

    Simulated batches tell the numbers of rows that are needed; the shapes waste least on those, and
    the last one holds the worst possible batch. The result depends on the multiset of sizes alone.

    Args:
        sizes: numbers of atoms of all crystals.
        batch_size: crystals in a batch.
        num_devices: rows come in multiples of it.
        row_tokens: tokens in a row; 0 is 64 if at least 95 % of them would be atoms, else more.
        max_shapes: most shapes; each is compiled when a batch first needs it.
        edges: make room for all pairs of atoms.
        copies: times that a batch repeats each crystal, one after the other.
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
    if not edges:
        return best[1]
    return _with_edges(best[1], sizes, batch_size, num_devices=num_devices)


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
    # A little above the largest simulated batch, since a run draws more batches; exact where all
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
    shapes: Sequence[RowShape], sizes: np.ndarray, batch_size: int, *, num_devices: int
) -> tuple[RowShape, ...]:
    """Add room for the pairs of atoms: the pairs of simulated batches and a tenth; in the last
    shape, those of the worst batch.
    """
    draws = _draw_batches(sizes, batch_size)
    placed = [(assign(draw, shapes).shape.rows, int((draw**2).sum())) for draw in draws]
    enlarged, room = [], 0
    for shape in shapes:
        room = max([room, *(int(1.1 * pairs) for rows, pairs in placed if rows <= shape.rows)])
        if shape is shapes[-1]:
            room = max(room, int((sizes[-batch_size:] ** 2).sum()))
        quantum = 256 * num_devices
        enlarged.append(shape._replace(edges=quantum * max(1, -(-room // quantum))))
    return tuple(enlarged)


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

    Few slots leave tokens unused; many leave slots unused, for which adaLN is computed all the
    same. A slot costs half a token in the diffusion transformer and nothing in the VAE: counted as
    a quarter.
    """

    def cost(slots: int) -> float:
        return sum(num_rows(draw, tokens, slots) for draw in draws) * (tokens + slots / 4)

    return min((s for s in _SLOT_CHOICES if s <= tokens + 1), key=cost)
