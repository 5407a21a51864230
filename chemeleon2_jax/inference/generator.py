"""Generation of crystals: the sampling chain and the decoder as one program, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from chemeleon2_jax.common import hosts
from chemeleon2_jax.common.randomness import named_key
from chemeleon2_jax.crystals.arrays import CrystalArrays, Crystals
from chemeleon2_jax.diffusion.chain import sample_chain
from chemeleon2_jax.diffusion.sampler import Sampler, step_constants
from chemeleon2_jax.diffusion.samplers import SAMPLERS, sampler_class
from chemeleon2_jax.diffusion.schedule import Schedule
from chemeleon2_jax.inference.denoiser import denoiser
from chemeleon2_jax.models.vae import reconstruct, split_crystals
from chemeleon2_jax.pretrained.loading import LDMParts
from chemeleon2_jax.rows.filling import build_rows, empty_crystals
from chemeleon2_jax.rows.layout import Layout
from chemeleon2_jax.rows.packing import Assignment
from chemeleon2_jax.rows.rows import Rows
from chemeleon2_jax.training.parallel import (
    make_local_mesh,
    replicate,
    replicated,
    rows_here,
    shard_batch,
)

# Float32 numbers of a token in memory at once, in units of the denoiser's hidden width: modulation,
# projections, MLP and a margin. Measured on the compiled program, rounded up.
_ACTIVATIONS = 40
# Attention weights of a token in memory at once, per head and token of its row.
_ATTENTION = 4
_DEFAULT_CHUNK = 512
_DEFAULT_MEMORY = 4 << 30  # bytes, for devices that do not report theirs
# Larger latents count as not finite: their squares overflow and would reach the other crystals of
# the row.
LARGEST_LATENT = 1e18
CFG_SCALE = 2.0


@dataclass(frozen=True)
class Generated:
    """Generated crystals in the order of their index, and their latents (n, L) each, NaN where the
    chain was not finite.
    """

    crystals: list[CrystalArrays]
    latents: list[np.ndarray]


def draw_num_atoms(size_table: np.ndarray, num_samples: int, seed: int) -> np.ndarray:
    """Draw numbers of atoms from a histogram, each from (seed, its index) alone: (num_samples,)
    int32.
    """
    key = named_key(seed, "sizes")
    uniform = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))
    draws = np.asarray(uniform(jnp.arange(num_samples)), np.float64)
    cumulative = np.cumsum(np.asarray(size_table, np.float64))
    return np.searchsorted(cumulative / cumulative[-1], draws, side="right").astype(np.int32)


class Generator:
    """A sampling program over a mesh, compiled once for each shape of the rows."""

    def __init__(
        self,
        ldm: LDMParts,
        sampler: Sampler,
        *,
        cfg_scale: float = CFG_SCALE,
        mesh: Mesh | None = None,
    ) -> None:
        """Prepare sampling.

        Args:
            ldm: the model.
            sampler: with its steps and options.
            cfg_scale: strength of the guidance, where crystals have conditions.
            mesh: devices; by default all of this process.

        Raises:
            ValueError: more steps than the training chain has, or a scale that is not finite.
        """
        if not np.isfinite(cfg_scale):
            raise ValueError(f"cfg_scale is {cfg_scale}; it must be finite")
        self.ldm, self.sampler = ldm, sampler
        self.mesh = make_local_mesh() if mesh is None else mesh
        self._params = None if ldm.params is None else replicate(ldm.params, self.mesh)
        self._vae_params = replicate(ldm.vae.params, self.mesh)
        self._typical_sizes = _typical_sizes(ldm.size_table)
        schedule = Schedule.of(ldm.diffusion)
        step_constants(schedule, sampler)  # raises on too many steps

        def program(params: Any, vae_params: Any, key: jax.Array, rows: Rows) -> Any:
            latents = sample_chain(
                denoiser(ldm.module(params), ldm.sizes, rows, cfg_scale=cfg_scale),
                key,
                rows,
                schedule=schedule,
                sampler=sampler,
                latent_dim=ldm.sizes.latent_dim,
                target=ldm.diffusion.target,
                self_conditioning=ldm.sizes.self_conditioning,
            )
            latents = ldm.restore(latents)
            latents = jnp.where(jnp.abs(latents) < LARGEST_LATENT, latents, jnp.nan)
            finite = jnp.nan_to_num(latents)
            vae = ldm.vae.module(vae_params)
            return latents, reconstruct(vae.decode(finite, rows), rows)

        self.program = jax.jit(program, out_shardings=replicated(self.mesh))

    def generate(
        self,
        num_atoms: Sequence[int] | np.ndarray,
        *,
        seed: int,
        params: Any = None,
        conditions: Mapping[str, np.ndarray] | None = None,
        atom_types: Sequence[np.ndarray] | None = None,
        first_index: int = 0,
        chunk_size: int = 0,
        on_done: Callable[[int], None] | None = None,
    ) -> Generated:
        """Generate a crystal of each size; crystal i depends on (seed, first_index + i) and its
        size alone.

        Args:
            num_atoms: (G,) atoms of each crystal.
            seed: of all random numbers.
            params: of the denoiser; those of the model by default.
            conditions: name -> (G, width) for all conditions of the model, see
                `Condition.encode`; by default all are null.
            atom_types: (n,) of each crystal, for a VAE that does not predict them.
            first_index: index of the first crystal.
            chunk_size: crystals at once; 0 chooses by the memory of the devices.
            on_done: called with the number of crystals of each finished chunk.

        Raises:
            ValueError: a crystal without atoms, or one too large for the interleaved variance.
        """
        sizes = np.asarray(num_atoms, np.int32)
        if not len(sizes):
            return Generated([], [])
        if sizes.min() < 1:
            raise ValueError(
                f"num_atoms must be at least 1; crystal {sizes.argmin()} has {sizes.min()}"
            )
        empty = empty_crystals(sizes)
        if atom_types is not None:
            empty = replace(empty, atom_types=np.concatenate(atom_types).astype(np.int8))
        chunks = self._chunks(empty, conditions or {}, first_index, chunk_size=chunk_size)
        arguments = self._arguments(seed, params)
        crystals: list[CrystalArrays] = []
        latents: list[np.ndarray] = []
        for rows, where in chunks:
            chunk, decoded = jax.device_get(self.program(*arguments, rows))
            of_crystals = where.split_atoms(chunk)
            failed = np.array([not np.isfinite(z).all() for z in of_crystals])
            latents += of_crystals
            crystals += mark_failed(split_crystals(decoded, where), failed)
            if on_done:
                on_done(len(where.sizes))
        return Generated(crystals, latents)

    def program_arguments(
        self, num_atoms: np.ndarray, *, seed: int, padded_tokens: int = 0
    ) -> tuple[tuple[Any, ...], Assignment]:
        """Return the arguments of `program` for one chunk of all crystals, and their places, to
        measure the program.
        """
        crystals = empty_crystals(num_atoms)
        chunks = self._chunks(
            crystals, {}, 0, chunk_size=len(crystals), padded_tokens=padded_tokens
        )
        rows, where = next(chunks)
        return (*self._arguments(seed, None), rows), where

    def _arguments(self, seed: int, params: Any) -> tuple[Any, ...]:
        """Return the parameters on the devices, and the key."""
        params = self._params if params is None else replicate(params, self.mesh)
        return params, self._vae_params, named_key(seed, "chain")

    def _chunks(
        self,
        crystals: Crystals,
        conditions: Mapping[str, np.ndarray],
        first_index: int,
        *,
        chunk_size: int,
        padded_tokens: int = 0,
    ) -> Iterator[tuple[Rows, Assignment]]:
        """Yield rows on the devices, equal in shape, for all crystals in order."""
        sizes = crystals.num_atoms
        padded_tokens = padding(self.ldm, self.sampler, sizes) or padded_tokens
        fitting = chunk_size or self._fitting_chunk(
            padded_tokens or sizes.mean(), row_tokens=padded_tokens or 64 * -(-sizes.max() // 64)
        )
        chunk_size = min(fitting, len(sizes))
        chunks = [sizes[i : i + chunk_size] for i in range(0, len(sizes), chunk_size)]
        num_devices = self.mesh.devices.size
        # Planned for the table's sizes if these are similar, and rounded up: calls with other seeds
        # then have the same shape, and no program is compiled for them.
        typical = self._typical_sizes
        if not 0.7 < sizes.mean() / typical.mean() < 1.4 or sizes.max() > typical.max():
            typical = sizes
        like = Layout.plan(
            typical, chunk_size, num_devices=num_devices, padded_tokens=padded_tokens
        )
        layout = Layout.for_batches(chunks, like=like, num_devices=num_devices, coarse=True)
        for start in range(0, len(sizes), chunk_size):
            index = np.arange(start, min(start + chunk_size, len(sizes)))
            where = layout.assign(sizes[index])
            rows = build_rows(
                crystals.take(index),
                where,
                crystal_ids=first_index + index,
                row_range=rows_here(self.mesh, where.shape.rows),
                conditions={name: values[index] for name, values in conditions.items()},
            )
            yield shard_batch(rows, self.mesh), where

    def _fitting_chunk(self, tokens_per_crystal: float, *, row_tokens: int) -> int:
        """Return the number of crystals that fit into half of the devices' free memory, or into a
        default for devices that do not report it.
        """
        stats = self.mesh.local_devices[0].memory_stats() or {}
        limit, used = stats.get("bytes_limit", 0), stats.get("bytes_in_use", 0)
        sizes = self.ldm.sizes
        numbers = _ACTIVATIONS * sizes.hidden_size + _ATTENTION * sizes.num_heads * row_tokens
        free, most = 0.5 * (limit - used) * self.mesh.devices.size, 16 * _DEFAULT_CHUNK
        if not limit:
            free, most = _DEFAULT_MEMORY, _DEFAULT_CHUNK
        fitting = max(1, min(int(free / (4 * numbers * tokens_per_crystal)), most))
        # All processes of a mesh must run the same program.
        return min(hosts.gather(fitting)) if self.mesh.is_multi_process else fitting


def padding(ldm: LDMParts, sampler: Sampler, num_atoms: np.ndarray) -> int:
    """Return the number of tokens of padded rows; 0 for packed rows.

    Rows are padded as in training where the sampler reads a variance that depends on the padding.

    Raises:
        ValueError: a crystal larger than any of training.
    """
    if not (ldm.sizes.variance_needs_padding and sampler.reads_variance):
        return 0
    tokens = len(ldm.size_table) - 1
    if num_atoms.max() > tokens:
        others = [name for name in SAMPLERS if not sampler_class(name).reads_variance]
        raise ValueError(
            f"crystal {num_atoms.argmax()} has {num_atoms.max()} atoms, but the variance that "
            f"{sampler.name} reads from this model is only defined up to {tokens}, the largest "
            f"crystal of its training set; take fewer atoms, or a sampler that reads none: "
            f"{', '.join(others)}"
        )
    return tokens


def _typical_sizes(size_table: np.ndarray) -> np.ndarray:
    """Return about a thousand sizes at even ranks of a histogram."""
    cumulative = np.cumsum(size_table)
    ranks = (np.arange(1024) + 0.5) / 1024 * cumulative[-1]
    return np.searchsorted(cumulative, ranks, side="right")


def mark_failed(crystals: list[CrystalArrays], failed: np.ndarray) -> list[CrystalArrays]:
    """Give NaN coordinates to the crystals with a failed chain, `failed` (G,) bool."""
    pairs = zip(crystals, failed, strict=True)
    return [(types, np.full_like(x, np.nan) if bad else x, cell) for (types, x, cell), bad in pairs]
