"""Open models, and options for reading one from a PyTorch file."""

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
    """Options for reading a PyTorch file.

    Attributes:
        vae: open VAE of an LDM whose file lacks it or its number of heads; None looks beside the
            file.
        ema: take the moving averages instead of the raw weights.
        size_table: numbers of training crystals by number of atoms; () takes those of the file if
            this package wrote it, else those of MP-20.
        vae_heads: attention heads of the VAE, if known from elsewhere.
        look_beside: look for the VAE of an LDM beside the file.
        only_vae: refuse a file of another model before its weights are read.
    """

    vae: OpenModel | None = None
    ema: bool = False
    size_table: tuple[int, ...] = ()
    vae_heads: Heads | None = None
    look_beside: bool = True
    only_vae: bool = False


@dataclass
class Report:
    """Counts of the tensors of a file, parts of it that were ignored, notes, and assumptions about
    values that are missing.
    """

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
    """A model in memory with the interface of a `Checkpoint[ModelMeta]`.

    Attributes:
        path: of its file.
        meta: of the model.
        trees: nested dicts of arrays by item.
        report: of the tensors in a PyTorch file.
        step: number of training steps.
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
