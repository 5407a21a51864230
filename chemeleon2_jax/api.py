"""Trained models as Python objects: encode, decode, sample.

import chemeleon2_jax as c2
ldm = c2.load_model("logs/train_ldm/runs/<run>")
structures = ldm.sample(num_samples=100, seed=0)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from pymatgen.core import Structure

from chemeleon2_jax.crystals import MAX_ATOMIC_NUMBER, Crystals
from chemeleon2_jax.data.loader import Layout, in_order
from chemeleon2_jax.data.structures import structure_from_arrays, structures_to_crystals
from chemeleon2_jax.diffusion.sampler import SamplerConfig
from chemeleon2_jax.errors import CheckpointError
from chemeleon2_jax.generation import LARGEST_LATENT, Generator, draw_num_atoms
from chemeleon2_jax.loading import LDMParts, VAEParts, ldm_of, vae_of
from chemeleon2_jax.models.dit import split_output
from chemeleon2_jax.models.vae import Reconstruction, reconstruct, split_crystals
from chemeleon2_jax.rows import Rows
from chemeleon2_jax.training.checkpoints import open_checkpoint

_BATCH_SIZE = 256


@dataclass(frozen=True)
class Failure:
    """A crystal that could not be built: its index and why."""

    index: int
    reason: str


@dataclass(frozen=True)
class SampleReport:
    """What a call of `LDM.sample` did.

    Attributes:
        seed: of everything random.
        num_atoms: (num_samples,) sizes asked for.
        indices: of the structures that were built, in order.
        failures: the others.
        sampler: name, steps and eta.
    """

    seed: int
    num_atoms: tuple[int, ...]
    indices: tuple[int, ...]
    failures: tuple[Failure, ...]
    sampler: SamplerConfig


@dataclass
class VAEModel:
    """A trained VAE.

    Attributes:
        parts: sizes and parameters.
        meta: what its checkpoint says of it.
    """

    parts: VAEParts
    meta: dict[str, Any] = field(repr=False)

    def encode(self, structures: Sequence[Structure]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return means and logvars of the latents, (n_atoms, L) each, one a structure; the cell is
        taken as it is.

        Raises:
            ValueError: a structure is disordered or holds no element up to Z = 99.
        """
        if not structures:
            return [], []
        means: list[np.ndarray] = []
        logvars: list[np.ndarray] = []
        crystals = structures_to_crystals(structures)
        for rows, where in _batches(crystals, edges=self.parts.sizes.encoder.name == "cspnet"):
            mean, logvar = self._encode(self.parts.params, rows)
            means += where.split_atoms(mean)
            logvars += where.split_atoms(logvar)
        return means, logvars

    def decode(
        self, latents: Sequence[np.ndarray], *, atom_types: Sequence[np.ndarray] | None = None
    ) -> list[Structure | None]:
        """Return one Structure a latent (n_atoms, L); None, with a warning that says why, where no
        cell can be built or the latent is not finite.

        Args:
            latents: as `encode` gives them.
            atom_types: atomic numbers (n_atoms,), for a VAE that does not predict them, and only
                for those.

        Raises:
            ValueError: atom types missing or not wanted, or shapes that do not fit.
        """
        crystals = self._crystals_of(latents, atom_types)
        if not len(latents):
            return []
        usable = [bool((np.abs(z) < LARGEST_LATENT).all()) for z in latents]
        # Zeros instead: what is not finite would reach its neighbours in the row.
        parts = [z if ok else np.zeros_like(z) for z, ok in zip(latents, usable, strict=True)]
        flat = np.concatenate(parts).astype(np.float32)
        arrays: list[Any] = []
        for rows, where in _batches(crystals, features={"latent": flat}):
            arrays += split_crystals(self._decode(self.parts.params, rows), where)
        pairs = zip(arrays, usable, strict=True)
        return [_build(a if ok else None, index) for index, (a, ok) in enumerate(pairs)]

    def _crystals_of(
        self, latents: Sequence[np.ndarray], atom_types: Sequence[np.ndarray] | None
    ) -> Crystals:
        predicts, width = self.parts.sizes.atom_type_predict, self.parts.sizes.latent_dim
        if predicts == (atom_types is not None):
            raise ValueError(
                "this VAE predicts atom types: do not give them"
                if predicts
                else "this VAE does not predict atom types: give atom_types=[...]"
            )
        _check_latents(latents, width)
        if atom_types is not None:
            _check_types(atom_types, latents)
        return Crystals.from_list(
            (
                np.ones(len(z)) if atom_types is None else atom_types[i],
                np.zeros((len(z), 3)),
                np.eye(3),
            )
            for i, z in enumerate(latents)
        )

    @property
    def _encode(self) -> Callable[[Any, Rows], Any]:
        return _jitted_encode(self.parts.graphdef)

    @property
    def _decode(self) -> Callable[[Any, Rows], Reconstruction]:
        return _jitted_decode(self.parts.graphdef)


@dataclass
class LDMModel:
    """A trained latent diffusion model.

    Attributes:
        parts: sizes and parameters, of the weights that it samples with.
        meta: what its checkpoint says of it.
        last_report: of the last call of `sample`.
    """

    parts: LDMParts
    meta: dict[str, Any] = field(repr=False)
    last_report: SampleReport | None = None
    _generators: dict[SamplerConfig, Generator] = field(default_factory=dict, repr=False)

    @property
    def vae(self) -> VAEModel:
        """The VAE whose latents it generates."""
        return VAEModel(self.parts.vae, self.meta)

    def sample(
        self,
        num_samples: int | None = None,
        *,
        seed: int = 0,
        num_atoms: Sequence[int] | None = None,
        sampler: str = "ddim",
        steps: int = 50,
        eta: float = 1.0,
        chunk_size: int = 0,
        on_done: Callable[[int], None] | None = None,
    ) -> list[Structure]:
        """Generate crystals; those that could be built, in the order of their index. `last_report`
        has the rest.

        Args:
            num_samples: how many; their sizes are drawn from those of the training set.
            seed: the same seed gives the same crystals, whatever the chunks and devices.
            num_atoms: sizes instead, one a crystal; with `num_samples` they are repeated in turn.
            sampler: "ddim" or "ddpm".
            steps: any number up to that of the chain.
            eta: noise of DDIM: 0 is deterministic, 1 as much as DDPM.
            chunk_size: crystals at once; 0 chooses by memory.
            on_done: called with the number of crystals just done (a progress bar's `update`).

        Raises:
            ValueError: a value out of range, or a VAE that needs atom types.
        """
        if not self.parts.vae.sizes.atom_type_predict:
            raise ValueError(
                "the VAE of this model does not predict atom types (csp), so that it cannot "
                "generate freely"
            )
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed is {seed}; it is 0 to 2**32 - 1")  # JAX drops higher bits
        sizes = self._sizes(num_samples, num_atoms, seed)
        config = SamplerConfig(sampler, steps, eta)
        if config not in self._generators:
            self._generators[config] = Generator(self.parts, config)
        found = self._generators[config].generate(
            sizes, seed=seed, chunk_size=chunk_size, on_done=on_done
        )
        structures, indices, failures = [], [], []
        for index, arrays in enumerate(found.crystals):
            try:
                structures.append(structure_from_arrays(*arrays))
                indices.append(index)
            except ValueError as error:
                failures.append(Failure(index, str(error)))
        self.last_report = SampleReport(
            seed, tuple(sizes.tolist()), tuple(indices), tuple(failures), config
        )
        return structures

    def denoise(
        self, latents: Sequence[np.ndarray], t: Sequence[int] | np.ndarray
    ) -> list[np.ndarray]:
        """Return the noise prediction, (n_atoms, L) each.

        Args:
            latents: (n_atoms, L), as the denoiser sees them: over latent_std.
            t: (n,) diffusion times, 0 to 999.

        Raises:
            ValueError: shapes or times that do not fit.
        """
        if not len(latents) and not len(t):
            return []
        times = np.asarray(t)
        last = self.parts.diffusion.num_steps - 1
        if times.shape != (len(latents),) or not np.issubdtype(times.dtype, np.integer):
            raise ValueError(f"t must be {len(latents)} integers, one a latent; it is {times!r}")
        if len(times) and (times.min() < 0 or times.max() > last):
            raise ValueError(
                f"diffusion times go from 0 to {last}; got {times.min()}..{times.max()}"
            )
        if self.parts.diffusion.target != "eps":
            raise ValueError("this model predicts x_0, not the noise")
        _check_latents(latents, self.parts.sizes.latent_dim)
        for index, z in enumerate(latents):
            if not (np.abs(z) < LARGEST_LATENT).all():
                raise ValueError(f"latent {index} is not finite")
        crystals = Crystals.from_list(
            [(np.ones(len(z)), np.zeros((len(z), 3)), np.eye(3)) for z in latents],
            targets={"t": times},
        )
        flat = np.concatenate([np.asarray(z, np.float32) for z in latents])
        fn = _jitted_denoise(self.parts.graphdef, self.parts.sizes)
        out: list[np.ndarray] = []
        for rows, where in _batches(crystals, features={"latent": flat}):
            out += where.split_atoms(fn(self.parts.params, rows))
        return out

    def _sizes(
        self, num_samples: int | None, num_atoms: Sequence[int] | None, seed: int
    ) -> np.ndarray:
        if num_samples is None and num_atoms is None:
            raise ValueError("give num_samples, num_atoms or both")
        if num_samples is not None and num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, not {num_samples}")
        if num_atoms is None:
            assert num_samples is not None
            return draw_num_atoms(self.parts.size_table, num_samples, seed)
        sizes = np.asarray(num_atoms)
        if (
            sizes.ndim != 1
            or not len(sizes)
            or not np.issubdtype(sizes.dtype, np.integer)
            or sizes.min() < 1
        ):
            raise ValueError(f"num_atoms must be positive integers, not {num_atoms!r}")
        return np.resize(sizes, num_samples or len(sizes))


def load_model(name: str | Path) -> VAEModel | LDMModel:
    """Open a trained model: a run folder (its best checkpoint) or a checkpoint folder.

    Raises:
        CheckpointError: there is no model, or it is broken.
    """
    checkpoint = open_checkpoint(name)
    stage = checkpoint.meta.get("stage")
    if stage == "train_vae":
        parts, meta = vae_of(checkpoint)
        return VAEModel(parts, dict(meta))
    if "dit" in checkpoint.meta:
        ldm, meta = ldm_of(checkpoint)
        return LDMModel(ldm, dict(meta))
    raise CheckpointError(
        f"{checkpoint.path} was written by stage {stage!r}, which this version cannot open"
    )


def _batches(
    crystals: Crystals, *, edges: bool = False, features: dict[str, np.ndarray] | None = None
) -> Any:
    """Yield (rows, assignment) over all crystals in order, all of one shape."""
    sizes = crystals.num_atoms
    like = Layout.plan(sizes, _BATCH_SIZE, edges=edges)
    parts = [sizes[i : i + _BATCH_SIZE] for i in range(0, len(sizes), _BATCH_SIZE)]
    layout = Layout.for_batches(parts, like=like, coarse=True)
    for rows, where, _ in in_order(crystals, layout, _BATCH_SIZE, atom_features=features):
        yield rows, where


def _check_latents(latents: Sequence[np.ndarray], width: int) -> None:
    for index, z in enumerate(latents):
        if np.ndim(z) != 2 or np.shape(z)[1] != width or not len(z):
            raise ValueError(f"latent {index} has shape {np.shape(z)}, not (n_atoms, {width})")


def _check_types(atom_types: Sequence[np.ndarray], latents: Sequence[np.ndarray]) -> None:
    if len(atom_types) != len(latents):
        raise ValueError(f"{len(latents)} latents, but {len(atom_types)} atom_types")
    for index, (types, z) in enumerate(zip(atom_types, latents, strict=True)):
        if np.shape(types) != (len(z),):
            raise ValueError(
                f"latent {index} has {len(z)} atoms, but its atom_types have the shape "
                f"{np.shape(types)}"
            )
        if not np.isin(types, np.arange(1, MAX_ATOMIC_NUMBER + 1)).all():
            raise ValueError(
                f"atom_types of latent {index} are not atomic numbers 1 to {MAX_ATOMIC_NUMBER}"
            )


def _build(arrays: Any, index: int) -> Structure | None:
    """Build a Structure from (atom_types, frac_coords, lattice), or from None say why not."""
    try:
        if arrays is None:
            raise ValueError("the latent is not finite")
        return structure_from_arrays(*arrays)
    except ValueError as error:
        warnings.warn(f"latent {index} decodes to no crystal: {error}", stacklevel=3)
        return None


@lru_cache(maxsize=8)
def _jitted_encode(graphdef: Any) -> Any:
    def encode(params: Any, rows: Rows) -> tuple[jax.Array, jax.Array]:
        posterior = nnx.merge(graphdef, params).encode(rows)
        return posterior.mean, posterior.logvar

    return jax.jit(encode)


@lru_cache(maxsize=8)
def _jitted_decode(graphdef: Any) -> Any:
    def decode(params: Any, rows: Rows) -> Reconstruction:
        return reconstruct(nnx.merge(graphdef, params).decode(rows.features["latent"], rows), rows)

    return jax.jit(decode)


@lru_cache(maxsize=8)
def _jitted_denoise(graphdef: Any, sizes: Any) -> Any:
    def denoise(params: Any, rows: Rows) -> jax.Array:
        t = rows.targets["t"].astype("int32")
        output = nnx.merge(graphdef, params)(rows.features["latent"], t, rows)
        return split_output(output, rows, sizes)[0]

    return jax.jit(denoise)
