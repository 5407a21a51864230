"""Golden files: what the PyTorch original computed, and its weights, opened as users open them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from chemeleon2_jax.crystals.arrays import Crystals
from chemeleon2_jax.models.dit import DiT
from chemeleon2_jax.models.predictor import Predictor
from chemeleon2_jax.models.sizes import DiTSizes, PredictorSizes
from chemeleon2_jax.models.vae import VAE
from chemeleon2_jax.pretrained.loading import ldm_of, open_model, predictor_of, vae_of
from chemeleon2_jax.rows.filling import build_rows
from chemeleon2_jax.rows.packing import Assignment, assign_padded
from chemeleon2_jax.rows.packing import assign as assign_packed
from chemeleon2_jax.rows.planning import plan_shapes
from chemeleon2_jax.rows.rows import Rows


@dataclass(frozen=True)
class Golden:
    """Folder of the checkpoints, arrays that the original computed, facts about the crystals."""

    folder: Path
    arrays: Any
    facts: dict[str, Any]

    @staticmethod
    def open(folder: Path) -> Golden:
        """Open the files of a folder."""
        facts = json.loads((folder / "crystals.json").read_text())
        return Golden(folder, np.load(folder / "golden.npz"), facts)

    def file(self, name: str) -> Path:
        """A checkpoint."""
        return self.folder / f"{name}.ckpt"

    def vae(self, name: str) -> VAE:
        """The VAE of a checkpoint."""
        parts = vae_of(open_model(self.file(name)))
        return parts.module(parts.params)

    def dit(self, name: str) -> tuple[DiT, DiTSizes]:
        """The denoiser of a checkpoint."""
        parts = ldm_of(open_model(self.file(name)))
        return parts.module(parts.params), parts.sizes

    def predictor(self, name: str) -> tuple[VAE, Predictor, PredictorSizes]:
        """VAE and head of a predictor's checkpoint."""
        parts = predictor_of(open_model(self.file(name)))
        vae = parts.vae.module(parts.vae.params)
        return vae, parts.module(parts.params), parts.sizes


def golden_rows(
    golden: Any,
    layout: str,
    *,
    edges: bool = False,
    conditions: dict[str, np.ndarray] | None = None,
) -> tuple[Rows, Assignment]:
    """The eight golden crystals, `packed` or `padded` to 20 atoms."""
    sizes = golden["batch/num_atoms"]
    ends = np.cumsum(sizes)
    parts = [slice(e - n, e) for e, n in zip(ends, sizes, strict=True)]
    crystals = Crystals.from_list(
        (golden["batch/atom_types"][p], golden["batch/frac_coords"][p], lattice)
        for p, lattice in zip(parts, golden["batch/lattices"], strict=True)
    )
    pairs = int((sizes**2).sum()) + 5 if edges else 0
    if layout == "padded":
        assignment = assign_padded(sizes, 20, edges=pairs)
    else:
        assignment = assign_packed(sizes, plan_shapes(sizes, 8, edges=edges))
    rows = build_rows(crystals, assignment, conditions=conditions)
    return jax.tree.map(jnp.asarray, rows), assignment


def to_tokens(values: np.ndarray, where: Assignment) -> jax.Array:
    """Values of atoms to rows: (A, W), or (8, 20, W) as the original pads them, to (R, T, W)."""
    if values.ndim == 3:
        values = real_atoms(values, where)
    return _scatter(values, where.token_index, (where.shape.rows, where.shape.tokens))


def to_slots(values: np.ndarray, where: Assignment) -> jax.Array:
    """Values of crystals (8,) to rows: (R, S)."""
    return _scatter(values, where.slot_index, (where.shape.rows, where.shape.slots))


def _scatter(values: np.ndarray, index: np.ndarray, shape: tuple[int, int]) -> jax.Array:
    out = np.zeros((shape[0] * shape[1], *values.shape[1:]), values.dtype)
    out[index] = values
    return jnp.asarray(out.reshape(*shape, *values.shape[1:]))


def real_atoms(values: Any, where: Assignment) -> np.ndarray:
    """(8, 20, W) padded values to those of the atoms, (A, W)."""
    pairs = zip(np.asarray(values), where.sizes, strict=True)
    return np.concatenate([crystal[:size] for crystal, size in pairs])
