"""From tensors of a PyTorch file to parameter trees of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.models.abstract import abstract_module
from chemeleon2_jax.torch_format.content import listed
from chemeleon2_jax.torch_format.model import Report
from chemeleon2_jax.torch_format.names import Entry
from chemeleon2_jax.torch_format.sizes import State
from chemeleon2_jax.torch_format.tensors import DTYPES
from chemeleon2_jax.training.plain_trees import flat_names, to_plain

_FLOATS = ("float32", "float64", "float16", "bfloat16")
_VIEWED_TWICE = 64 << 20  # bytes of tensors beyond those of their storages


class TreeReader:
    """Reads the tensors of a state, and keeps account of those that are left.

    Attributes:
        state: the tensors.
        left: names of the tensors that were not read.
        dtypes: types by name of tensors that were read and are not float32.
        report: counts and notes of the tensors that were read.
    """

    def __init__(self, state: State, report: Report) -> None:
        self.state, self.report = state, report
        self.left = dict.fromkeys(state.tensors)
        self.dtypes: dict[str, str] = {}
        self._viewed = 0
        self._stored: dict[str, int] = {}

    def read(self, entries: Sequence[Entry], module: Any, sizes: Any) -> dict[str, Any]:
        """Return the parameters of `module(sizes)` in nested dicts.

        Raises:
            CheckpointError: tensors are missing, of another shape, not weights, or more than the
                file holds.
        """
        missing = [entry.tensor for entry in entries if entry.tensor not in self.state]
        if missing:
            raise CheckpointError(f"tensors are missing: {listed(missing)}")
        self._check_shapes(entries, module, sizes)
        self._check_memory(entries)
        tree: dict[str, Any] = {}
        for entry in entries:
            node = tree
            *parents, leaf = entry.parameter.split("/")
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = self.take(entry)
        return tree

    def take(self, entry: Entry) -> np.ndarray:
        """Return one tensor in the layout of the parameter, float32."""
        tensor = self.state.tensors[entry.tensor]
        if tensor.dtype not in _FLOATS:
            raise CheckpointError(
                f"its tensor {listed([entry.tensor])} holds {tensor.dtype}, not weights"
            )
        if tensor.dtype != "float32":
            self.dtypes[entry.tensor] = tensor.dtype
            if tensor.dtype == "float64":
                self.report.notes.append(f"{entry.tensor} is rounded from float64 to float32")
        array = tensor.read().astype(np.float32, copy=False)
        if entry.transposed:
            array = np.ascontiguousarray(array.T)
        self.left.pop(entry.tensor, None)
        self.report.num_tensors += 1
        self.report.num_parameters += array.size
        return array

    def _check_shapes(self, entries: Sequence[Entry], module: Any, sizes: Any) -> None:
        try:
            expected = _shapes(module, sizes)
        except (ArithmeticError, TypeError, ValueError) as error:  # sizes that no model can have
            raise CheckpointError(f"its sizes fit no model: {error}") from error
        problems = []
        for entry in entries:
            shape = expected[entry.parameter][:: -1 if entry.transposed else 1]
            actual = tuple(self.state.tensors[entry.tensor].shape)
            if actual != shape:
                problems.append(f"{entry.tensor} has the shape {actual} instead of {shape}")
        if problems:
            raise CheckpointError(f"tensors do not fit: {listed(problems)}")

    def _check_memory(self, entries: Sequence[Entry]) -> None:
        """Raise CheckpointError for a small file whose tensors are views of the same numbers."""
        for entry in entries:
            tensor = self.state.tensors[entry.tensor]
            storage = tensor.storage
            self._viewed += tensor.nbytes
            self._stored[storage.key] = storage.numel * DTYPES[storage.dtype].itemsize
        if self._viewed > sum(self._stored.values()) + _VIEWED_TWICE:
            raise CheckpointError(
                f"its tensors have {self._viewed / 1e6:.0f} MB, but the file holds "
                f"{sum(self._stored.values()) / 1e6:.0f} MB of them: they are views of the same "
                "numbers, which no trained model's are"
            )


@lru_cache(maxsize=16)
def _shapes(module: Any, sizes: Any) -> Mapping[str, tuple[int, ...]]:
    """Shapes of the parameters of `module(sizes)` by name."""
    _, params = abstract_module(module, sizes)
    return {name: tuple(leaf.shape) for name, leaf in flat_names(to_plain(params)).items()}
