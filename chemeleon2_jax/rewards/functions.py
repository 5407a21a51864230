"""Functions of a list of Structures as rewards: in worker processes, one crystal a call."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import numpy as np

from chemeleon2_jax.common.errors import RewardError
from chemeleon2_jax.common.scores import Scores
from chemeleon2_jax.crystals.arrays import CrystalArrays
from chemeleon2_jax.crystals.structures import structure_from_arrays
from chemeleon2_jax.rewards.component import NOT_JUDGED, Crystal
from chemeleon2_jax.workers import WorkerError, WorkerPool

_CHUNK_SIZE = 8  # crystals sent to a worker at once, where each is a call of its own


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
        function: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            function = getattr(function, part)
    # Whatever the top level of a user's module raises.
    except Exception as error:
        raise RewardError(
            f"{name!r} cannot be imported ({type(error).__name__}: {error}); modules are looked "
            "for in the working directory, on PYTHONPATH and among the installed packages"
        ) from error
    if isinstance(function, type):
        raise RewardError(f"{name!r} is a class: name a function, or an object made from it")
    if not callable(function):
        raise RewardError(f"{name!r} is no function, but {function!r:.80}")
    return function


@dataclass(frozen=True)
class FunctionOfStructures:
    """A function of a list of Structures that returns one float each, run in worker processes.

    Attributes:
        name: "module:function", imported by the workers.
        options: keyword arguments.
        batch_size: structures in a call. With 1 a failure costs one crystal; 0 is all of a rollout.
        timeout_s: limit for one structure, in seconds; a call of several has as many times more.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 1
    timeout_s: float = 30.0

    def prepare(self, crystals: Sequence[Crystal], pool: WorkerPool) -> list[Any]:
        """Return (value, reason) of each crystal; the crystals where a call takes a rollout."""
        return self._call(crystals, pool) if self.batch_size else list(crystals)

    def score(self, prepared: Sequence[Any], pool: WorkerPool) -> Scores:
        """Collect values and reasons."""
        rows = prepared if self.batch_size else self._call(prepared, pool)
        return Scores.of([value for value, _ in rows], [reason for _, reason in rows])

    def _call(self, crystals: Sequence[Crystal], pool: WorkerPool) -> list[Any]:
        """Return (value, reason) of each crystal."""
        rows: list[Any] = [(None, NOT_JUDGED)] * len(crystals)
        indices = [index for index, crystal in enumerate(crystals) if crystal is not None]
        size = self.batch_size or max(len(indices), 1)
        groups = [indices[i : i + size] for i in range(0, len(indices), size)]
        failed = self._fill(rows, groups, crystals=crystals, pool=pool)
        # The crystals of a call that failed, each in a call of its own.
        alone = [[index] for group in failed if len(group) > 1 for index in group]
        self._fill(rows, alone, crystals=crystals, pool=pool)
        return rows

    def _fill(
        self,
        rows: list[Any],
        groups: list[list[int]],
        *,
        crystals: Sequence[Crystal],
        pool: WorkerPool,
    ) -> list[list[int]]:
        """Call the function for each group, fill `rows`, and return the groups that failed."""
        largest = max((len(group) for group in groups), default=1)
        try:
            outcomes = pool.map(
                partial(_call_function, name=self.name, options=self.options),
                [[crystals[index] for index in group] for group in groups],
                timeout_s=self.timeout_s * largest,
                chunk_size=_CHUNK_SIZE if largest == 1 else 1,
            )
        except WorkerError as error:
            raise RewardError(f"{self.name}: {error}") from error
        for group, outcome in zip(groups, outcomes, strict=True):
            values = outcome.value or [None] * len(group)
            for index, value in zip(group, values, strict=True):
                rows[index] = (value, outcome.error)
        return [g for g, outcome in zip(groups, outcomes, strict=True) if outcome.error is not None]


def _call_function(
    crystals: Sequence[CrystalArrays], *, name: str, options: Mapping[str, Any]
) -> list[float]:
    """Call a function with some crystals as Structures, in a worker.

    Raises:
        Exception: what it raises; a ValueError where it does not return one number a structure.
    """
    structures = [structure_from_arrays(*arrays) for arrays in crystals]
    returned = load_function(name)(structures, **options)
    if np.ndim(returned) > 1:
        raise ValueError(f"it returned shape {np.shape(returned)}, not one number a structure")
    try:
        values = [float(value) for value in returned]
    except (TypeError, ValueError) as error:
        raise ValueError(f"it returned {returned!r:.80}, not one number a structure") from error
    if len(values) != len(structures):
        raise ValueError(f"it returned {len(values)} values for {len(structures)} structures")
    return values
