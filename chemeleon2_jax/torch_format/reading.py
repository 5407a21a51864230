"""Tensors of a PyTorch file into the parameter trees of models, each used once."""

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
_VIEWED_TWICE = 64 << 20  # bytes that tensors may have beyond what is stored of them


class TreeReader:
    """Reads the tensors of a state, and ticks them off.

    Attributes:
        state: the tensors.
        left: names that nobody asked for yet.
        dtypes: of the tensors that are no float32.
        report: what was read.
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
            CheckpointError: tensors are missing, have another shape, are no weights, or are more
                than the file holds.
        """
        missing = [entry.theirs for entry in entries if entry.theirs not in self.state]
        if missing:
            raise CheckpointError(f"tensors are missing: {listed(missing)}")
        self._check_shapes(entries, module, sizes)
        self._check_memory(entries)
        tree: dict[str, Any] = {}
        for entry in entries:
            node = tree
            *parents, leaf = entry.ours.split("/")
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = self.take(entry)
        return tree

    def take(self, entry: Entry) -> np.ndarray:
        """Return one tensor in our layout, float32."""
        tensor = self.state.tensors[entry.theirs]
        if tensor.dtype not in _FLOATS:
            raise CheckpointError(
                f"its tensor {listed([entry.theirs])} holds {tensor.dtype}, not weights"
            )
        if tensor.dtype != "float32":
            self.dtypes[entry.theirs] = tensor.dtype
            if tensor.dtype == "float64":
                self.report.notes.append(f"{entry.theirs} is rounded from float64 to float32")
        array = tensor.read().astype(np.float32, copy=False)
        if entry.transposed:
            array = np.ascontiguousarray(array.T)
        self.left.pop(entry.theirs, None)
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
            wanted = expected[entry.ours]
            wanted = wanted[::-1] if entry.transposed else wanted
            shape = tuple(self.state.tensors[entry.theirs].shape)
            if shape != wanted:
                problems.append(f"{entry.theirs} has the shape {shape} instead of {wanted}")
        if problems:
            raise CheckpointError(f"tensors do not fit: {listed(problems)}")

    def _check_memory(self, entries: Sequence[Entry]) -> None:
        """Refuse a small file whose tensors all view the same few numbers."""
        for entry in entries:
            tensor = self.state.tensors[entry.theirs]
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
