"""Rewards as a rollout computes them: crystals come chunk by chunk, while the device rolls out the
next ones.

What belongs to a crystal alone is done with its chunk (`prepare`), what compares crystals when all
are there (`score`). Crystals are (atom_types, frac_coords, lattice) triples, or None for those that
are not to be judged.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Protocol

import numpy as np

from chemeleon2_jax.common.errors import RewardError
from chemeleon2_jax.common.scores import Scores
from chemeleon2_jax.crystals.arrays import CrystalArrays
from chemeleon2_jax.crystals.structures import structure_from_arrays
from chemeleon2_jax.metrics.matching import reduce_cells
from chemeleon2_jax.metrics.uniqueness import References
from chemeleon2_jax.rewards.creativity import creativity
from chemeleon2_jax.rewards.diversity import diversity
from chemeleon2_jax.workers import WorkerError, WorkerPool

NOT_JUDGED = "not judged"
Crystal = CrystalArrays | None


class Component(Protocol):
    """One reward."""

    def prepare(self, crystals: Sequence[Crystal], pool: WorkerPool) -> list[Any]:
        """Do what can be done for each of some crystals alone; one entry a crystal."""
        ...

    def score(self, prepared: Sequence[Any], pool: WorkerPool) -> Scores:
        """Score all crystals of a rollout, from the entries of `prepare` in order."""
        ...


# --- functions of structures ----------------------------------------------------------------------


@lru_cache(maxsize=32)
def load_function(name: str) -> Callable[..., Any]:
    """Import "module:name"; in a worker as well as here.

    Raises:
        RewardError: no such module or name, the import fails, or it cannot be called.
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise RewardError(f"{name!r} names no function: write module:function")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    # Whatever the top level of a user's module raises.
    except Exception as error:
        raise RewardError(
            f"{name!r} cannot be imported ({type(error).__name__}: {error}); modules are looked "
            "for in the working directory, on PYTHONPATH and among the installed packages"
        ) from error
    if isinstance(found, type):
        raise RewardError(f"{name!r} is a class: name a function, or an object made from it")
    if not callable(found):
        raise RewardError(f"{name!r} is no function, but {found!r:.80}")
    return found


def read_options(text: str) -> dict[str, Any]:
    """Read keyword arguments from JSON: '{"target": 3}'; '' is none.

    Raises:
        RewardError: not a JSON object.
    """
    try:
        options = json.loads(text or "{}")
    except ValueError as error:
        raise RewardError(
            f'kwargs {text!r} are not JSON ({error}); write {{"target": 3}}'
        ) from error
    if not isinstance(options, dict):
        raise RewardError(f'kwargs {text!r} are no JSON object; write {{"target": 3}}')
    return options


def call_function(
    crystals: Sequence[CrystalArrays], *, name: str, options: Mapping[str, Any]
) -> list[float]:
    """Call a function with some crystals as Structures, in a worker.

    Raises:
        Exception: what it raises; a ValueError where it does not return one number a structure.
    """
    structures = [structure_from_arrays(*arrays) for arrays in crystals]
    values = load_function(name)(structures, **options)
    if np.ndim(values) > 1:
        raise ValueError(f"it returned shape {np.shape(values)}, not one number a structure")
    try:
        found = [float(value) for value in values]
    except (TypeError, ValueError) as error:
        raise ValueError(f"it returned {values!r:.80}, not one number a structure") from error
    if len(found) != len(structures):
        raise ValueError(f"it returned {len(found)} values for {len(structures)} structures")
    return found


@dataclass(frozen=True)
class FunctionOfStructures:
    """A function of a list of Structures that returns one float each, run in worker processes.

    Attributes:
        name: "module:function", imported by the workers.
        options: keyword arguments.
        batch_size: structures in a call; the default keeps what goes wrong to one crystal. 0 is all
            of a rollout.
        timeout_s: limit for one structure, in seconds; a call of several has as many times more.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 1
    timeout_s: float = 30.0

    def prepare(self, crystals: Sequence[Crystal], pool: WorkerPool) -> list[Any]:
        """Return (value, reason) of each crystal; the crystals where all are wanted at once."""
        return self._call(crystals, pool) if self.batch_size else list(crystals)

    def _call(self, crystals: Sequence[Crystal], pool: WorkerPool) -> list[Any]:
        """Return (value, reason) of each crystal."""
        out: list[Any] = [(None, NOT_JUDGED)] * len(crystals)
        todo = [index for index, crystal in enumerate(crystals) if crystal is not None]
        size = self.batch_size or max(len(todo), 1)
        failed = self._run(
            [todo[i : i + size] for i in range(0, len(todo), size)], crystals, pool, out
        )
        # Of a call that failed, each one by itself.
        self._run(
            [[index] for group in failed if len(group) > 1 for index in group], crystals, pool, out
        )
        return out

    def _run(
        self, groups: list[list[int]], crystals: Sequence[Crystal], pool: WorkerPool, out: list[Any]
    ) -> list[list[int]]:
        """Call the function for each group, fill `out`, and return the groups that failed."""
        largest = max((len(group) for group in groups), default=1)
        function = partial(call_function, name=self.name, options=self.options)
        try:
            outcomes = pool.map(
                function,
                [[crystals[index] for index in group] for group in groups],
                timeout_s=self.timeout_s * largest,
                chunk_size=8 if largest == 1 else 1,
            )
        except WorkerError as error:
            raise RewardError(f"{self.name}: {error}") from error
        for group, outcome in zip(groups, outcomes, strict=True):
            values = outcome.value or [None] * len(group)
            for index, value in zip(group, values, strict=True):
                out[index] = (value, outcome.error)
        return [g for g, outcome in zip(groups, outcomes, strict=True) if outcome.error is not None]

    def score(self, prepared: Sequence[Any], pool: WorkerPool) -> Scores:
        """Put values and reasons together."""
        return _scores_of(prepared if self.batch_size else self._call(prepared, pool))


def _scores_of(prepared: Sequence[Any]) -> Scores:
    return Scores.of([value for value, _ in prepared], [reason for _, reason in prepared])


# --- rewards that need more than the crystal ------------------------------------------------------


@dataclass(frozen=True)
class PerChunk:
    """A reward of each crystal alone that judges many at once, in this process: a model on the
    device, or one that uses the pool itself.

    Attributes:
        function: (crystals, pool) -> Scores.
    """

    function: Callable[[Sequence[Crystal], WorkerPool], Scores]

    def prepare(self, crystals: Sequence[Crystal], pool: WorkerPool) -> list[Any]:
        """Return (value, reason) of each crystal."""
        scores = self.function(crystals, pool)
        return list(zip(scores.values.tolist(), scores.reasons, strict=True))

    def score(self, prepared: Sequence[Any], pool: WorkerPool) -> Scores:
        """Put values and reasons together."""
        del pool
        return _scores_of(prepared)


@dataclass(frozen=True)
class Creativity:
    """See `rewards.creativity`; cells are reduced chunk by chunk."""

    references: References

    def prepare(self, crystals: Sequence[Crystal], pool: WorkerPool) -> list[Any]:
        """Reduce the cells."""
        return list(reduce_cells(crystals, pool))

    def score(self, prepared: Sequence[Any], pool: WorkerPool) -> Scores:
        """Compare the crystals with each other and with the references."""
        return creativity(prepared, self.references, pool)


@dataclass(frozen=True)
class Diversity:
    """See `rewards.diversity`; `features_fn` gives (G, d), NaN where there is no crystal."""

    features_fn: Callable[[Sequence[Crystal]], np.ndarray]
    reference: np.ndarray

    def prepare(self, crystals: Sequence[Crystal], pool: WorkerPool) -> list[Any]:
        """Compute the features."""
        del pool
        return list(self.features_fn(crystals))

    def score(self, prepared: Sequence[Any], pool: WorkerPool) -> Scores:
        """Compare the crystals with the reference, with and without each."""
        del pool
        return diversity(np.stack(prepared), self.reference)
