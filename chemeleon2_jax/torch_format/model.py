"""Models that are open, and how to read one from a PyTorch file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.models.meta import ModelMeta
from chemeleon2_jax.torch_format.sizes import Heads
from chemeleon2_jax.training.checkpoint_reader import Checkpoint
from chemeleon2_jax.training.plain_trees import from_plain


@dataclass(frozen=True)
class Options:
    """How to read a file.

    Attributes:
        vae: the VAE, opened, for an LDM that does not hold it or does not tell its
            heads; None looks beside the file.
        ema: take the moving averages instead of the raw weights.
        size_table: numbers of training crystals by number of atoms; () takes those that a file of
            this package tells, else those of MP-20.
        vae_heads: attention heads of the VAE where they are known from elsewhere.
        look_beside: look for the VAE of an LDM beside the file.
        only_vae: refuse a file that is no VAE, before its weights are read.
    """

    vae: OpenModel | None = None
    ema: bool = False
    size_table: tuple[int, ...] = ()
    vae_heads: Heads | None = None
    look_beside: bool = True
    only_vae: bool = False


@dataclass
class Report:
    """What became of the tensors of a file; `assumptions` are what it does not tell."""

    kind: str
    num_tensors: int = 0
    num_parameters: int = 0
    ignored: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """Return lines for a terminal."""
        lines = [
            f"{self.kind}: {self.num_tensors} tensors, {self.num_parameters / 1e6:.3g} million "
            "numbers used"
        ]
        lines += [f"  ignored: {name} ({reason})" for name, reason in self.ignored]
        lines += [f"  {note}" for note in [*self.notes, *self.assumptions]]
        return "\n".join(lines)


@dataclass(frozen=True)
class Converted:
    """A model in memory, to be used as a `Checkpoint[ModelMeta]` is.

    Attributes:
        path: of the file that it comes from.
        meta: how to build the model.
        trees: nested dicts of arrays by item.
        report: which tensors of a PyTorch file were used.
        step: steps trained.
    """

    path: Path
    meta: ModelMeta
    trees: dict[str, dict[str, Any]] = field(repr=False)
    report: Report
    step: int = 0

    @property
    def items(self) -> tuple[str, ...]:
        """Names of the trees."""
        return tuple(sorted(self.trees))

    def restore(self, name: str, target: Any | None = None) -> Any:
        """Return one item in the structure of `target`; see `Checkpoint.restore`."""
        if name not in self.trees:
            raise CheckpointError(f"{self.path} holds no {name}; it holds {', '.join(self.items)}")
        return self.trees[name] if target is None else from_plain(self.trees[name], target)


OpenModel: TypeAlias = Checkpoint[ModelMeta] | Converted
"""A model whose meta is read and whose arrays can be."""
