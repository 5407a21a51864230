"""The variational autoencoder of crystals: one latent vector per atom.

Letters as in `rows.packing`: R rows, T tokens, S slots; L latent width, D model width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from chemeleon2_jax.crystals.arrays import (
    NUM_ATOM_CLASSES,
    CrystalArrays,
    lattice_from_parameters,
    unscale_lengths,
)
from chemeleon2_jax.models.layers import Transformer, index_embedding, linear
from chemeleon2_jax.models.sizes import DecoderSizes, VAESizes
from chemeleon2_jax.rows.packing import Assignment
from chemeleon2_jax.rows.rows import (
    Rows,
    attention_bias,
    mean_over_crystal,
    slot_matrix,
)

FOUNDATION_WIDTH = 256


class Posterior(NamedTuple):
    """Gaussian of the latents: mean and logvar (R, T, L); `features` (R, T, D) is the encoder's
    output.
    """

    mean: jax.Array
    logvar: jax.Array
    features: jax.Array


class Decoded(NamedTuple):
    """Output of the decoder.

    atom_logits (R, T, 100) or None without a types head; frac_coords (R, T, 3), not wrapped;
    lengths_scaled (R, S, 3), angstrom over the cube root of the number of atoms; angles (R, S, 3),
    radians. All float32.
    """

    atom_logits: jax.Array | None
    frac_coords: jax.Array
    lengths_scaled: jax.Array
    angles: jax.Array


class Reconstruction(NamedTuple):
    """Predicted crystals.

    atom_types (R, T), frac_coords (R, T, 3), lattices (R, S, 3, 3) and lengths (R, S, 3) in
    angstrom, angles (R, S, 3) in radians.
    """

    atom_types: jax.Array
    frac_coords: jax.Array
    lattices: jax.Array
    lengths: jax.Array
    angles: jax.Array


class Decoder(nnx.Module):
    """Transformer over latents with heads for elements, coordinates and the cell."""

    def __init__(
        self,
        sizes: DecoderSizes,
        latent_dim: int,
        *,
        atom_type_predict: bool,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ) -> None:
        d = sizes.d_model
        self.post_quant = linear(latent_dim, d, rngs=rngs, bias=False, dtype=dtype)
        self.transformer = Transformer(
            d,
            sizes.nhead,
            sizes.dim_feedforward,
            num_layers=sizes.num_layers,
            rngs=rngs,
            dtype=dtype,
        )
        # The heads compute in float32: coordinates need more than the 8 bits of bfloat16.
        self.atom_head = linear(d, NUM_ATOM_CLASSES, rngs=rngs) if atom_type_predict else None
        self.frac_head = linear(d, 3, rngs=rngs, bias=False)
        self.lattice_head = linear(d, 6, rngs=rngs, bias=False)
        self.dtype = dtype

    def __call__(self, z: jax.Array, rows: Rows) -> Decoded:
        """Decode latents (R, T, L)."""
        num_rows, tokens, latent_dim = z.shape
        x = self.post_quant(z.reshape(-1, latent_dim).astype(self.dtype))
        x = x + index_embedding(rows.position.reshape(-1), x.shape[-1], tokens)
        x = self.transformer(x.astype(self.dtype), attention_bias(rows)).astype(jnp.float32)
        pooled = mean_over_crystal(rows, slot_matrix(rows), x.reshape(num_rows, tokens, -1))
        cell = self.lattice_head(pooled.reshape(-1, pooled.shape[-1])).reshape(num_rows, -1, 6)
        logits = None if self.atom_head is None else self.atom_head(x).reshape(num_rows, tokens, -1)
        frac = self.frac_head(x).reshape(num_rows, tokens, 3)
        return Decoded(logits, frac, cell[..., :3], cell[..., 3:])


class VAE(nnx.Module):
    """Encoder, Gaussian bottleneck, decoder."""

    def __init__(self, sizes: VAESizes, *, rngs: nnx.Rngs, dtype: Any = jnp.float32) -> None:
        self.encoder = sizes.encoder.build(rngs=rngs, dtype=dtype)
        # Moments in float32: the logvar sets the noise of a latent.
        self.quant = linear(sizes.encoder.d_model, 2 * sizes.latent_dim, rngs=rngs, bias=False)
        self.decoder = Decoder(
            sizes.decoder,
            sizes.latent_dim,
            atom_type_predict=sizes.atom_type_predict,
            rngs=rngs,
            dtype=dtype,
        )
        self.projection = (
            linear(sizes.latent_dim, FOUNDATION_WIDTH, rngs=rngs)
            if sizes.foundation_alignment
            else None
        )

    def encode(self, rows: Rows) -> Posterior:
        """Posterior of the latents; logvar is clamped to [-30, 20]."""
        x = self.encoder(rows).astype(jnp.float32)
        mean, logvar = jnp.split(self.quant(x), 2, axis=-1)
        shape = (*rows.atom_types.shape, -1)
        logvar = jnp.clip(logvar, -30.0, 20.0)
        return Posterior(mean.reshape(shape), logvar.reshape(shape), x.reshape(shape))

    def decode(self, z: jax.Array, rows: Rows) -> Decoded:
        """Decode latents (R, T, L)."""
        return self.decoder(z, rows)

    def project(self, z: jax.Array) -> jax.Array:
        """Map latents (R, T, L) to the 256-wide space of foundation-model features."""
        if self.projection is None:
            raise ValueError("this VAE was built without foundation alignment")
        return self.projection(z.reshape(-1, z.shape[-1])).reshape(*z.shape[:-1], -1)


def sample_posterior(posterior: Posterior, noise: jax.Array, *, scale: float = 1.0) -> jax.Array:
    """Return mean + scale * std * noise, (R, T, L); scale 1 samples the posterior."""
    spread = jnp.exp(0.5 * posterior.logvar)
    # Not a product with 1: the bits of the published way stay.
    return posterior.mean + (spread if scale == 1.0 else scale * spread) * noise


def blur_latents(z: jax.Array, noise: jax.Array, rows: Rows, *, level: float) -> jax.Array:
    """Return latents plus noise of `level` times the spread of each channel over the batch's atoms.

    A decoder trained on such latents tolerates the errors of a diffusion model. The spread has no
    gradient: latents do not grow to evade the noise.

    Args:
        z: (R, T, L).
        noise: standard normal, (R, T, L).
        rows: the crystals.
        level: of the noise, 0.2 for a fifth of the spread.
    """
    weights = rows.is_atom[..., None].astype(jnp.float32)
    count = jnp.sum(weights)
    mean = jnp.sum(z * weights, (0, 1)) / count
    spread = jnp.sqrt(jnp.sum((z - mean) ** 2 * weights, (0, 1)) / count)
    return z + level * jax.lax.stop_gradient(spread) * noise


def split_crystals(crystals: Reconstruction, assignment: Assignment) -> list[CrystalArrays]:
    """Return (atom_types, frac_coords, lattice) of each crystal, as numpy arrays."""
    atom_types = assignment.split_atoms(crystals.atom_types)
    frac_coords = assignment.split_atoms(crystals.frac_coords)
    lattices = assignment.take_slots(crystals.lattices)
    return list(zip(atom_types, frac_coords, lattices, strict=True))


def reconstruct(decoded: Decoded, rows: Rows) -> Reconstruction:
    """Turn the decoder's output into crystals.

    Elements are the argmax, with 0 (the mask) replaced by 1; without a types head, those of `rows`.
    Cells are those of `lattice_from_parameters`.
    """
    if decoded.atom_logits is None:
        types = rows.atom_types
    else:
        types = jnp.maximum(jnp.argmax(decoded.atom_logits, -1), 1).astype(jnp.int32)
    lengths = unscale_lengths(decoded.lengths_scaled, rows.num_atoms)
    # Impossible parameters must show in the lattice, as a zero vector or a flat cell: a negative
    # length would only reverse its vector, an angle beyond 180 degrees mirror the cell.
    lattices = lattice_from_parameters(
        jnp.maximum(lengths, 0.0), jnp.clip(decoded.angles, 0.0, jnp.pi)
    )
    return Reconstruction(types, decoded.frac_coords, lattices, lengths, decoded.angles)
