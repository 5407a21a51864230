"""A model out of a PyTorch file, and how to read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.torch_format.sizes import Heads
from chemeleon2_jax.training.plain_trees import from_plain


@dataclass(frozen=True)
class Options:
    """How to read a file.

    Attributes:
        vae: open checkpoint of the VAE, for an LDM that does not hold it or does not tell its
            heads; None looks beside the file.
        ema: take the moving averages instead of the raw weights.
        size_table: numbers of training crystals by number of atoms; () takes those that a file of
            this package tells, else those of MP-20.
        vae_heads: attention heads of the VAE where they are known from elsewhere.
        look_beside: look for the VAE of an LDM beside the file.
        only_vae: refuse a file that is no VAE, before its weights are read.
    """

    vae: Any = None
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
    """A model out of a PyTorch file, to be used as a checkpoint is: `meta`, `items`, `restore`.

    Attributes:
        path: of the file.
        meta: how to build the model.
        trees: nested dicts of arrays by item.
        report: what was used and what was not.
    """

    path: Path
    meta: dict[str, Any]
    trees: dict[str, dict[str, Any]] = field(repr=False)
    report: Report

    @property
    def items(self) -> tuple[str, ...]:
        """Names of the trees."""
        return tuple(sorted(self.trees))

    def restore(self, name: str, target: Any | None = None) -> Any:
        """Return one item in the structure of `target`; see `training.checkpoints.Checkpoint`."""
        if name not in self.trees:
            raise CheckpointError(f"{self.path} holds no {name}; it holds {', '.join(self.items)}")
        return self.trees[name] if target is None else from_plain(self.trees[name], target)


def vae_item(checkpoint: Any) -> str:
    """Name of the item that holds the VAE of an open checkpoint."""
    return "params" if checkpoint.meta.get("stage") == "train_vae" else "vae"
