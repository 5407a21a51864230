"""Prompts of a rollout, and their rows.

B prompts of `group_size` crystals each, one group after another, are cut in order into mini-batches
and those into chunks. A chunk has its own rows, so that a mini-batch is a number of whole arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from chemeleon2_jax.common import hosts
from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.crystals.arrays import Crystals
from chemeleon2_jax.data.loader import Loader
from chemeleon2_jax.diffusion.sampler import Sampler
from chemeleon2_jax.inference.generator import padding
from chemeleon2_jax.inference.requests import Prompts, make_prompts
from chemeleon2_jax.pretrained.loading import LDMParts
from chemeleon2_jax.rows.batch import Batch
from chemeleon2_jax.rows.filling import build_rows, empty_crystals
from chemeleon2_jax.rows.layout import Layout
from chemeleon2_jax.rows.packing import Assignment
from chemeleon2_jax.runs.config import split_names
from chemeleon2_jax.stages.common import VALIDATION_SEED
from chemeleon2_jax.stages.data import load_splits

EncodeFn = Callable[[Crystals], Mapping[str, np.ndarray]]
_PLANNED_STEPS = 64  # whose prompts the layout is planned for


@dataclass(frozen=True)
class Span:
    """Crystals `start` to `stop` of a rollout, one chunk, and the index of its mini-batch."""

    start: int
    stop: int
    mini_batch: int


def cut(num_samples: int, num_mini_batches: int, chunk_size: int = 0) -> tuple[Span, ...]:
    """Cut a rollout into mini-batches, and those into chunks of at most `chunk_size` (0: whole).

    Raises:
        ValueError: mini-batches of different sizes, or empty ones.
    """
    if num_mini_batches < 1 or num_samples % num_mini_batches or num_samples < num_mini_batches:
        raise ValueError(
            f"{num_samples} crystals cannot be cut into {num_mini_batches} mini-batches of equal "
            "size: change data.batch_size, rl_configs.num_group_samples or num_inner_batch"
        )
    size = num_samples // num_mini_batches
    step = min(chunk_size or size, size)
    return tuple(
        Span(first + start, first + min(start + step, size), index)
        for index, first in enumerate(range(0, num_samples, size))
        for start in range(0, size, step)
    )


@dataclass(frozen=True)
class FromCrystals:
    """Prompts from training crystals: their sizes, their conditions and, for a VAE that does not
    predict them, their atom types.

    Attributes:
        loader: chooses the crystals of a step.
        encode: crystals -> inputs of the conditions; None for a model without conditions.
        gives_types: whether the prompts hold the atom types.
    """

    loader: Loader
    encode: EncodeFn | None
    gives_types: bool

    @property
    def steps_per_epoch(self) -> int:
        """Rollouts in one pass over the crystals."""
        return self.loader.steps_per_epoch

    def __call__(self, step: int) -> Prompts:
        """Return the prompts of a step, one a group."""
        return self.of(self.loader.crystals.take(self.loader.indices(step)))

    def of(self, crystals: Crystals) -> Prompts:
        """Return the prompts for these crystals."""
        conditions = dict(self.encode(crystals)) if self.encode else {}
        types = np.split(crystals.atom_types, crystals.offsets[1:-1]) if self.gives_types else None
        return Prompts(crystals.num_atoms, conditions, types)

    def possible_sizes(self) -> np.ndarray:
        """Numbers of atoms that prompts have."""
        return np.asarray(self.loader.crystals.num_atoms)


@dataclass(frozen=True)
class FromModel:
    """Prompts with sizes from the model's own table, and the same conditions for all.

    Attributes:
        ldm: the model.
        conditions: name -> value; {} for no conditions.
        count: prompts of a step.
        seed: of the sizes.
    """

    ldm: LDMParts
    conditions: Mapping[str, Any]
    count: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Rollouts in as many prompts as the model's training set had crystals."""
        return max(1, int(self.ldm.size_table.sum()) // self.count)

    def __call__(self, step: int) -> Prompts:
        """Return the prompts of a step, one a group."""
        # A seed for each step; numpy's seed sequence mixes the two.
        seed = int(np.random.SeedSequence((self.seed, step)).generate_state(1)[0])
        return self.draw(self.count, seed)

    def draw(self, count: int, seed: int) -> Prompts:
        """Draw prompts.

        Raises:
            ValueError: conditions that the model does not have.
        """
        return make_prompts(self.ldm, num_samples=count, conditions=self.conditions, seed=seed)

    def possible_sizes(self) -> np.ndarray:
        """Numbers of atoms of the first prompts."""
        return np.concatenate([self(step).num_atoms for step in range(_PLANNED_STEPS)])


@dataclass(frozen=True)
class PromptBatches:
    """Rollouts by step: rows with the prompts' sizes, conditions and atom types.

    Attributes:
        source: prompts of a step, one a group.
        group_size: crystals of a prompt.
        chunks: of a rollout.
        layout: of the rows of a chunk.
    """

    source: FromCrystals | FromModel
    group_size: int
    chunks: tuple[Span, ...]
    layout: Layout

    @property
    def num_crystals(self) -> int:
        """Crystals of a rollout."""
        return self.chunks[-1].stop

    @property
    def num_mini_batches(self) -> int:
        """Mini-batches of a rollout."""
        return self.chunks[-1].mini_batch + 1

    @property
    def steps_per_epoch(self) -> int:
        """Rollouts in one pass over the prompts."""
        return self.source.steps_per_epoch

    def prompts(self, step: int) -> Prompts:
        """Return the prompts of a step, one a crystal: groups one after another."""
        groups, times = self.source(step), self.group_size
        types = groups.atom_types
        return Prompts(
            np.repeat(groups.num_atoms, times),
            {name: np.repeat(values, times, axis=0) for name, values in groups.conditions.items()},
            None if types is None else [t for t in types for _ in range(times)],
        )

    def assignments(self, num_atoms: np.ndarray) -> list[Assignment]:
        """Assign the crystals of each chunk to its rows, from the sizes of all (G,)."""
        return [self.layout.assign(num_atoms[span.start : span.stop]) for span in self.chunks]

    def batch(self, step: int) -> Batch:
        """Return the rollout of a step: a tuple of `Rows`, one a chunk; a crystal_id is the index
        in the rollout.
        """
        prompts = self.prompts(step)
        crystals = empty_crystals(prompts.num_atoms)
        if prompts.atom_types is not None:
            crystals = replace(
                crystals, atom_types=np.concatenate(prompts.atom_types).astype(np.int8)
            )
        assignments = self.assignments(prompts.num_atoms)
        rows = tuple(
            build_rows(
                crystals.take(index := np.arange(span.start, span.stop)),
                assignment,
                crystal_ids=index,
                row_range=hosts.share(assignment.shape.rows),
                conditions={name: values[index] for name, values in prompts.conditions.items()},
            )
            for span, assignment in zip(self.chunks, assignments, strict=True)
        )
        useful = float(np.mean([assignment.useful_share for assignment in assignments]))
        return Batch(rows, len(crystals), useful)


def load_crystals(config: ConfigDict, ldm: LDMParts) -> tuple[Crystals, Crystals] | None:
    """Load the training and validation crystals; None where the config names no data."""
    if not (config.data.name or config.data.data_dir):
        return None
    conditions = ldm.sizes.conditions.conditions if ldm.sizes.conditions else ()
    from_columns = [c.name for c in conditions if c.source == "column"]
    return load_splits(config, () if config.rl_module.conditions else from_columns)


def read_prompts(
    config: ConfigDict, ldm: LDMParts, crystals: tuple[Crystals, Crystals] | None
) -> tuple[FromCrystals | FromModel, Prompts]:
    """Return the source of prompts, and the prompts of validation.

    Args:
        config: of the run.
        ldm: the model.
        crystals: training and validation set; None takes the sizes from the model.

    Raises:
        ConfigError: conditions that the model does not have.
    """
    module, count = config.rl_module, config.rl_module.validation.num_samples
    if module.conditions or crystals is None:
        conditions = _read_conditions(module.conditions, ldm)
        drawn = FromModel(ldm, conditions, config.data.batch_size, config.seed)
        try:
            drawn(0)
            return drawn, drawn.draw(count, VALIDATION_SEED)
        except ValueError as error:
            raise ConfigError(f"rl_module.conditions: {error}") from error
    train, val = crystals
    # The loader only chooses crystals: the rows of a rollout have a layout of their own.
    loader = Loader(train, config.data.batch_size, Layout(()), config.seed)
    encode = ldm.sizes.conditions.encode_crystals if ldm.sizes.conditions else None
    source = FromCrystals(loader, encode, gives_types=not ldm.vae.sizes.atom_type_predict)
    order = np.random.default_rng(VALIDATION_SEED).permutation(len(val))
    return source, source.of(val.take(np.resize(order, count)))


def _read_conditions(text: str, ldm: LDMParts) -> dict[str, Any]:
    """Read 'name=value', comma-separated."""
    known = {c.name: c for c in ldm.sizes.conditions.conditions} if ldm.sizes.conditions else {}
    conditions: dict[str, Any] = {}
    for part in split_names(text):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals and value) or name in conditions:
            raise ConfigError(
                f"rl_module.conditions has the part {part!r}; it is name=value, comma-separated, "
                "each name once"
            )
        try:
            # `make_prompts` raises on an unknown name, with the known ones.
            conditions[name] = known[name].read(value) if name in known else value
        except ValueError as error:
            raise ConfigError(f"rl_module.conditions: {error}") from error
    return conditions


def example_conditions(
    config: ConfigDict, ldm: LDMParts, crystals: Crystals | None
) -> dict[str, str]:
    """Return name -> value, as text, that the fine-tuned model can be asked for: of the config,
    else of a training crystal.
    """
    given = (part.partition("=") for part in split_names(config.rl_module.conditions))
    named = {name.strip(): value.strip() for name, _, value in given}
    if named or ldm.sizes.conditions is None or crystals is None:
        return named
    return ldm.sizes.conditions.describe(crystals, 0)


def plan_batches(
    config: ConfigDict,
    source: FromCrystals | FromModel,
    ldm: LDMParts,
    *,
    sampler: Sampler,
    num_devices: int,
) -> PromptBatches:
    """Cut the rollouts into chunks and plan their rows.

    Raises:
        ConfigError: mini-batches of different sizes, or rows that cannot hold the crystals.
    """
    module, group_size = config.rl_module, config.rl_module.rl_configs.num_group_samples
    num_prompts = len(source(0).num_atoms)  # fewer than data.batch_size in a smaller data set
    num_mini_batches = module.rl_configs.num_inner_batch
    try:
        chunks = cut(num_prompts * group_size, num_mini_batches, module.sampling_configs.chunk_size)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    sizes = source.possible_sizes()
    try:
        padded_tokens = padding(ldm, sampler, sizes)
    except ValueError as error:
        raise ConfigError(f"rl_module.sampling_configs.sampler: {error}") from error
    if config.packing.layout == "padded":
        padded_tokens = len(ldm.size_table) - 1
    try:
        layout = Layout.plan(
            sizes,
            max(span.stop - span.start for span in chunks),
            num_devices=num_devices,
            row_tokens=config.packing.row_tokens,
            max_shapes=config.packing.max_shapes,
            padded_tokens=padded_tokens,
            copies=group_size,
        )
    except ValueError as error:
        raise ConfigError(f"packing: {error}") from error
    return PromptBatches(source, group_size, chunks, layout)
