"""Random rotations, translations and noise, keyed by crystal: what a crystal gets does not depend
on its batch.
"""

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
    """rotate and translate at random; per_crystal = False draws one rotation and one translation
    for the batch, as the original.
    """

    rotate: bool = True
    translate: bool = True
    per_crystal: bool = True


@dataclass(frozen=True)
class Noise:
    """A share `ratio` of the atoms loses its element, another is moved by N(0, corruption_scale)
    angstrom.
    """

    ratio: float = 0.0
    corruption_scale: float = 0.1


def augment(key: jax.Array, rows: Rows, options: Augmentation) -> Rows:
    """Rotate cells and translate atoms; a crystal stays the same crystal."""
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
    """Mask elements (atomic number 0) and move atoms; each atom is chosen independently."""
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
    """Return the rotation (..., 3, 3) of quaternions (..., 4), which need not be normalised."""
    q = quaternion / jnp.linalg.norm(quaternion, axis=-1, keepdims=True)
    w, x, y, z = (q[..., i] for i in range(4))
    first = jnp.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1)
    second = jnp.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], -1)
    third = jnp.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1)
    return jnp.stack([first, second, third], -2)


def _uniform_rotations(key: jax.Array, rows: Rows) -> jax.Array:
    """Uniform over rotations: normalised 4-vectors of standard normals (Shoemake 1992). (R, S, 3,
    3).
    """
    draw = jax.vmap(jax.vmap(lambda k: jax.random.normal(k, (4,))))
    return rotation_matrix(draw(crystal_keys(key, rows)))


def _batch_rotation(key: jax.Array, rows: Rows) -> jax.Array:
    """One rotation for all, its quaternion from U[0, 1]^4 as in the original: not uniform. (R, S,
    3, 3).
    """
    rotation = rotation_matrix(jax.random.uniform(key, (4,)))
    return jnp.broadcast_to(rotation, rows.lattices.shape)


def _uniform_translations(key: jax.Array, rows: Rows) -> jax.Array:
    """Uniform fractional translations, (R, S, 3)."""
    draw = jax.vmap(jax.vmap(lambda k: jax.random.uniform(k, (3,))))
    return draw(crystal_keys(key, rows))


def _batch_translation(key: jax.Array, rows: Rows) -> jax.Array:
    """One Cartesian translation for all, as in the original: normal with half the batch's mean and
    standard deviation of the cell lengths. Returned as fractions of each cell, (R, S, 3).
    """
    lengths, _ = lattice_parameters(rows.lattices)
    weights = rows.is_crystal[..., None].astype(jnp.float32)
    count = jnp.sum(weights)
    mean = jnp.sum(lengths * weights, (0, 1)) / count
    variance = jnp.sum((lengths - mean) ** 2 * weights, (0, 1)) / jnp.maximum(count - 1, 1)
    step = 0.5 * (mean + jnp.sqrt(variance) * jax.random.normal(key, (3,)))
    inverse = jnp.linalg.inv(rows.lattices)
    return jnp.einsum("j,rsjk->rsk", step, inverse, precision=jax.lax.Precision.HIGHEST)
