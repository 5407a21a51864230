"""Random rotations, translations and noise, keyed by crystal: independent of the batch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from chemeleon2_jax.crystals.arrays import lattice_parameters, wrap
from chemeleon2_jax.rows.rows import (
    Rows,
    atom_keys,
    atom_normal,
    crystal_keys,
    gather_slots,
    slot_matrix,
)


@dataclass(frozen=True)
class Augmentation:
    """Random rotation and translation.

    Attributes:
        rotate: rotate cells.
        translate: translate atoms.
        per_crystal: draw for each crystal; False draws once per batch, as the original.
    """

    rotate: bool = True
    translate: bool = True
    per_crystal: bool = True


@dataclass(frozen=True)
class Noise:
    """Corruption of the encoder's input.

    Attributes:
        ratio: share of the atoms that lose their element, and of those that move.
        corruption_scale: standard deviation of a move along each axis, angstrom.
    """

    ratio: float = 0.0
    corruption_scale: float = 0.1


def augment(key: jax.Array, rows: Rows, options: Augmentation) -> Rows:
    """Rotate cells and translate atoms, which leaves the crystals physically the same."""
    rotation_key, translation_key = jax.random.split(key)
    if options.rotate:
        draw = _uniform_rotations if options.per_crystal else _batch_rotation
        rotation = draw(rotation_key, rows)
        exact = jax.lax.Precision.HIGHEST
        lattices = jnp.einsum("rsij,rskj->rsik", rows.lattices, rotation, precision=exact)
        rows = replace(rows, lattices=lattices)
    if options.translate:
        translate = _uniform_translations if options.per_crystal else _batch_translation
        shift = gather_slots(slot_matrix(rows), translate(translation_key, rows))
        rows = replace(rows, frac_coords=wrap(rows.frac_coords + shift))
    return rows


def corrupt(key: jax.Array, rows: Rows, options: Noise) -> Rows:
    """Mask elements (atomic number 0) and move atoms, chosen independently."""
    if options.ratio == 0.0:
        return rows
    choice_key, noise_key = jax.random.split(key)
    draw = jax.vmap(jax.vmap(jax.random.uniform))(atom_keys(choice_key, rows))
    types = jnp.where(draw < options.ratio, 0, rows.atom_types)
    moved = (draw >= options.ratio) & (draw < 2 * options.ratio)
    step = options.corruption_scale * atom_normal(noise_key, rows, 3)
    lattice = gather_slots(slot_matrix(rows), rows.lattices.reshape(*rows.num_atoms.shape, 9))
    inverse = jnp.linalg.inv(lattice.reshape(*rows.position.shape, 3, 3))
    frac_step = jnp.einsum("rtj,rtjk->rtk", step, inverse, precision=jax.lax.Precision.HIGHEST)
    frac = jnp.where(moved[..., None], wrap(rows.frac_coords + frac_step), rows.frac_coords)
    return replace(rows, atom_types=types, frac_coords=frac)


def rotation_matrix(quaternion: jax.Array) -> jax.Array:
    """Return the rotations (..., 3, 3) of quaternions (..., 4) of any norm."""
    q = quaternion / jnp.linalg.norm(quaternion, axis=-1, keepdims=True)
    w, x, y, z = (q[..., i] for i in range(4))
    first = jnp.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1)
    second = jnp.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], -1)
    third = jnp.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1)
    return jnp.stack([first, second, third], -2)


def _uniform_rotations(key: jax.Array, rows: Rows) -> jax.Array:
    """Return uniform rotations (R, S, 3, 3): normalised normal 4-vectors (Shoemake 1992)."""
    draw = jax.vmap(jax.vmap(lambda k: jax.random.normal(k, (4,))))
    return rotation_matrix(draw(crystal_keys(key, rows)))


def _batch_rotation(key: jax.Array, rows: Rows) -> jax.Array:
    """Return one rotation for all, (R, S, 3, 3).

    Its quaternion is drawn from U[0, 1]^4 as in the original, which is not uniform over rotations.
    """
    rotation = rotation_matrix(jax.random.uniform(key, (4,)))
    return jnp.broadcast_to(rotation, rows.lattices.shape)


def _uniform_translations(key: jax.Array, rows: Rows) -> jax.Array:
    """Return uniform fractional translations (R, S, 3)."""
    draw = jax.vmap(jax.vmap(lambda k: jax.random.uniform(k, (3,))))
    return draw(crystal_keys(key, rows))


def _batch_translation(key: jax.Array, rows: Rows) -> jax.Array:
    """Return one Cartesian translation for all, as fractions of each cell, (R, S, 3).

    As in the original: normal with half the batch's mean and standard deviation of cell lengths.
    """
    lengths, _ = lattice_parameters(rows.lattices)
    weights = rows.is_crystal[..., None].astype(jnp.float32)
    count = jnp.sum(weights)
    mean = jnp.sum(lengths * weights, (0, 1)) / count
    variance = jnp.sum((lengths - mean) ** 2 * weights, (0, 1)) / jnp.maximum(count - 1, 1)
    step = 0.5 * (mean + jnp.sqrt(variance) * jax.random.normal(key, (3,)))
    inverse = jnp.linalg.inv(rows.lattices)
    return jnp.einsum("j,rsjk->rsk", step, inverse, precision=jax.lax.Precision.HIGHEST)
