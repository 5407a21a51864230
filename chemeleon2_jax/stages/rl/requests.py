"""What a rollout is asked for, and how its crystals become rows.

B prompts of `group_size` crystals each, one group after another, cut in order into mini-batches and
those into chunks. A chunk has its own rows, so that a mini-batch is a number of whole arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from chemeleon2_jax.crystals.arrays import Crystals
from chemeleon2_jax.data.loader import Loader
from chemeleon2_jax.inference.requests import Prompts, make_prompts
from chemeleon2_jax.pretrained.loading import LDMParts
from chemeleon2_jax.rows.batch import Batch
from chemeleon2_jax.rows.filling import build_rows, empty_crystals
from chemeleon2_jax.rows.layout import Layout, local_rows
from chemeleon2_jax.rows.packing import Assignment

DescribeFn = Callable[[Crystals], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Part:
    """Crystals `start` to `stop` of a rollout, one chunk, and the mini-batch that it belongs to."""

    start: int
    stop: int
    mini_batch: int


def cut(num_samples: int, num_mini_batches: int, chunk_size: int = 0) -> tuple[Part, ...]:
    """Cut a rollout into mini-batches, and those into chunks of at most `chunk_size` (0: whole).

    Raises:
        ValueError: mini-batches that are not equal, or empty.
    """
    if num_mini_batches < 1 or num_samples % num_mini_batches or num_samples < num_mini_batches:
        raise ValueError(
            f"{num_samples} crystals cannot be cut into {num_mini_batches} mini-batches of equal "
            "size: change data.batch_size, rl_configs.num_group_samples or num_inner_batch"
        )
    size = num_samples // num_mini_batches
    step = min(chunk_size or size, size)
    return tuple(
        Part(first + start, first + min(start + step, size), index)
        for index, first in enumerate(range(0, num_samples, size))
        for start in range(0, size, step)
    )


@dataclass(frozen=True)
class FromCrystals:
    """Prompts that ask for what training crystals are: their sizes, conditions and, for a VAE that
    is given them, atom types.

    Attributes:
        loader: chooses the crystals of a step.
        describe: crystals -> conditions; None for a model without.
        gives_types: whether the model is told the atom types.
    """

    loader: Loader
    describe: DescribeFn | None
    gives_types: bool

    @property
    def steps_per_epoch(self) -> int:
        """Rollouts in one pass over the crystals."""
        return self.loader.steps_per_epoch

    def __call__(self, step: int) -> Prompts:
        """Prompts of a step, one a group."""
        return self.of(self.loader.crystals.take(self.loader.indices(step)))

    def of(self, crystals: Crystals) -> Prompts:
        """Prompts that ask for these crystals."""
        conditions = dict(self.describe(crystals)) if self.describe else {}
        types = np.split(crystals.atom_types, crystals.offsets[1:-1]) if self.gives_types else None
        return Prompts(crystals.num_atoms, conditions, types)


@dataclass(frozen=True)
class FromModel:
    """Prompts with sizes from the model's own table, and the same conditions for all.

    Attributes:
        parts: the model.
        conditions: name -> value; {} asks for nothing.
        count: prompts of a step.
        seed: of the sizes.
    """

    parts: LDMParts
    conditions: Mapping[str, Any]
    count: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Rollouts in as many prompts as the model's training set had crystals."""
        return max(1, int(self.parts.size_table.sum()) // self.count)

    def __call__(self, step: int) -> Prompts:
        """Prompts of a step, one a group."""
        # A seed for each step; numpy's seed sequence mixes the two.
        seed = int(np.random.SeedSequence((self.seed, step)).generate_state(1)[0])
        return self.draw(self.count, seed)

    def draw(self, count: int, seed: int) -> Prompts:
        """Draw prompts.

        Raises:
            ValueError: conditions that the model cannot be asked for.
        """
        return make_prompts(self.parts, num_samples=count, conditions=self.conditions, seed=seed)


@dataclass(frozen=True)
class PromptBatches:
    """Rollouts by step: rows of what is asked for.

    Attributes:
        source: prompts of a step, one a group.
        group_size: crystals of a prompt.
        parts: chunks of a rollout.
        layout: of the rows of a chunk.
    """

    source: FromCrystals | FromModel
    group_size: int
    parts: tuple[Part, ...]
    layout: Layout

    @property
    def steps_per_epoch(self) -> int:
        """Rollouts in one pass over the prompts."""
        return self.source.steps_per_epoch

    def prompts(self, step: int) -> Prompts:
        """Prompts of a step, one a crystal: groups one after another."""
        found, times = self.source(step), self.group_size
        types = found.atom_types
        return Prompts(
            np.repeat(found.num_atoms, times),
            {name: np.repeat(values, times, axis=0) for name, values in found.conditions.items()},
            None if types is None else [t for t in types for _ in range(times)],
        )

    def assignments(self, num_atoms: np.ndarray) -> list[Assignment]:
        """Where the crystals of each chunk are, from the sizes of all (G,)."""
        return [self.layout.assign(num_atoms[part.start : part.stop]) for part in self.parts]

    def batch(self, step: int) -> Batch:
        """The rollout of a step: a tuple of `Rows`, one a chunk; a crystal_id is its index in the
        rollout.
        """
        prompts = self.prompts(step)
        crystals = empty_crystals(prompts.num_atoms)
        if prompts.atom_types is not None:
            crystals = replace(
                crystals, atom_types=np.concatenate(prompts.atom_types).astype(np.int8)
            )
        places = self.assignments(prompts.num_atoms)
        rows = tuple(
            build_rows(
                crystals.take(index := np.arange(part.start, part.stop)),
                where,
                crystal_ids=index,
                row_range=local_rows(where.shape),
                conditions={name: values[index] for name, values in prompts.conditions.items()},
            )
            for part, where in zip(self.parts, places, strict=True)
        )
        useful = float(np.mean([where.useful_share for where in places]))
        return Batch(rows, len(crystals), useful)


def sizes_to_plan_for(source: FromCrystals | FromModel) -> np.ndarray:
    """Sizes that prompts are drawn from, for the layout."""
    if isinstance(source, FromCrystals):
        return np.asarray(source.loader.crystals.num_atoms)
    draws: Sequence[np.ndarray] = [source(step).num_atoms for step in range(64)]
    return np.concatenate(draws)
