"""Loss terms of the VAE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from chemeleon2_jax.crystals.arrays import lattice_parameters, scale_lengths
from chemeleon2_jax.models.vae import Decoded, Posterior
from chemeleon2_jax.rows.rows import (
    Rows,
    gather_slots,
    mean_over_crystal,
    slot_matrix,
    weighted_mean,
)

# Margins of the foundation alignment: the distance-matrix and point-wise losses of VA-VAE (Yao et
# al. 2025).
PAIR_MARGIN = 0.25
POINT_MARGIN = 0.5


@dataclass(frozen=True)
class CoordsLoss:
    """Comparison of coordinates in `loss_frac_coords`.

    Attributes:
        unit: "fraction" takes the mean square of differences of fractional coordinates; "spacing"
            that of displacements over the crystal's (volume / number of atoms) ** (1/3), the unit
            of StructureMatcher: an angstrom is worth the same in large cells as in small ones.
        periodic: share of a comparison modulo the cell in the loss, 0 to 1; the rest is without.
        shift_weight: weight of the square of each crystal's mean displacement, beside that of the
            displacements from it. A crystal that is shifted as a whole is the same crystal.
    """

    unit: str = "fraction"
    periodic: float | jax.Array = 0.0
    shift_weight: float = 1.0


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms; `fa` is foundation alignment."""

    atom_types: float = 1.0
    lengths: float = 1.0
    angles: float = 10.0
    frac_coords: float = 10.0
    kl: float | jax.Array = 1e-5
    fa: float = 0.0


_PLAIN = CoordsLoss()

# name -> (sum, weight), which add up exactly over batches of any sizes.
Terms = Mapping[str, tuple[Any, Any]]


def vae_terms(
    decoded: Decoded, posterior: Posterior, target: Rows, *, coords: CoordsLoss = _PLAIN
) -> Terms:
    """Return the loss terms: sum and count over atoms (elements, coordinates, KL) or crystals.

    The KL is summed over the latent width.

    Args:
        decoded: the decoder's output.
        posterior: the encoder's.
        target: the clean crystals.
        coords: comparison of the coordinates; by default that of the original, of fractions
            without wrapping.
    """
    lengths, angles = lattice_parameters(target.lattices)
    lengths_scaled = scale_lengths(lengths, target.num_atoms)

    def squared(difference: jax.Array) -> jax.Array:
        return jnp.mean(difference**2, -1)

    crystals, atoms = target.is_crystal, target.is_atom
    terms = {
        "loss_lengths": _total(squared(decoded.lengths_scaled - lengths_scaled), crystals),
        "loss_angles": _total(squared(decoded.angles - angles), crystals),
        "loss_frac_coords": _total(_coords_error(decoded.frac_coords, target, coords), atoms),
        "loss_kl": _total(kl_divergence(posterior), atoms),
    }
    if decoded.atom_logits is not None:
        logits, types = decoded.atom_logits, target.atom_types
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, types)
        terms["loss_atom_types"] = _total(entropy, atoms)
        terms["atom_type_accuracy"] = _total(jnp.argmax(logits, -1) == types, atoms)
    return terms


def total_loss(terms: Terms, weights: LossWeights) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the weighted sum of the terms' means, and the means."""
    means = {name: total / jnp.maximum(count, 1.0) for name, (total, count) in terms.items()}
    return jnp.asarray(sum(weighted_means(means, weights).values())), means


def weighted_means(
    means: Mapping[str, jax.Array], weights: LossWeights
) -> dict[str, float | jax.Array]:
    """Return name -> weight times mean of each term, which add up to the loss: `weighted_kl` of
    `loss_kl`.
    """
    factors = {f"loss_{name}": (name, factor) for name, factor in asdict(weights).items()}
    pairs = [(*factors[name], mean) for name, mean in means.items() if name in factors]
    return {f"weighted_{name}": factor * mean for name, factor, mean in pairs}


def _coords_error(frac_coords: jax.Array, target: Rows, options: CoordsLoss) -> jax.Array:
    """Return the squared error of coordinates (R, T, 3), the mean over three axes: (R, T)."""
    difference = frac_coords - target.frac_coords

    def squared(difference: jax.Array) -> jax.Array:
        if options.unit == "spacing":
            difference = _over_spacing(difference, target)
        if options.shift_weight == 1.0:
            return jnp.mean(difference**2, -1)
        membership = slot_matrix(target)
        shift = gather_slots(membership, mean_over_crystal(target, membership, difference))
        squares = (difference - shift) ** 2 + options.shift_weight * shift**2
        return jnp.mean(squares, -1)

    if isinstance(options.periodic, float) and options.periodic == 0.0:
        return squared(difference)
    # Each fraction to its own nearest image: in reduced cells mostly that of the atom as well.
    wrapped = squared(difference - jnp.round(difference))
    return (1.0 - options.periodic) * squared(difference) + options.periodic * wrapped


def _over_spacing(difference: jax.Array, rows: Rows) -> jax.Array:
    """Return Cartesian displacements over (volume / number of atoms) ** (1/3), (R, T, 3)."""
    volume = jnp.abs(jnp.linalg.det(rows.lattices))
    spacing = jnp.cbrt(volume / jnp.maximum(rows.num_atoms, 1))
    cells = rows.lattices / spacing[..., None, None]
    cells = gather_slots(slot_matrix(rows), cells.reshape(*rows.num_atoms.shape, 9))
    cells = cells.reshape(*rows.position.shape, 3, 3)
    return jnp.einsum("rtj,rtjk->rtk", difference, cells)


def _total(values: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    weights = mask.astype(jnp.float32)
    return jnp.sum(values * weights), jnp.sum(weights)


def kl_divergence(posterior: Posterior) -> jax.Array:
    """KL(N(mean, exp(logvar)) || N(0, 1)) summed over L: (R, T)."""
    mean, logvar = posterior.mean, posterior.logvar
    return 0.5 * jnp.sum(mean**2 + jnp.exp(logvar) - 1.0 - logvar, -1)


def foundation_alignment(
    projected: jax.Array, features: jax.Array, is_atom: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Align projected latents with features of a foundation model.

    mean over all pairs of atoms of the batch of relu(|cos(p_i, p_j) - cos(f_i, f_j)| - 0.25), plus
    mean over atoms of relu(0.5 - cos(f_i, p_i)).

    Args:
        projected: (R, T, W).
        features: (R, T, W).
        is_atom: (R, T) bool.

    Returns:
        A term: the loss times the number of atoms, and that number.
    """
    weights = is_atom.reshape(-1).astype(jnp.float32)
    p = _normalise(projected.reshape(-1, projected.shape[-1]))
    f = _normalise(features.reshape(-1, features.shape[-1]))
    exact = jax.lax.Precision.HIGHEST
    distance = jnp.abs(jnp.dot(p, p.T, precision=exact) - jnp.dot(f, f.T, precision=exact))
    pairs = weighted_mean(jax.nn.relu(distance - PAIR_MARGIN), weights[:, None] * weights[None, :])
    points = weighted_mean(jax.nn.relu(POINT_MARGIN - jnp.sum(p * f, -1)), weights)
    count = jnp.sum(weights)
    return (pairs + points) * count, count


def _normalise(x: jax.Array) -> jax.Array:
    """Unit vectors; a zero vector stays zero and has a finite gradient."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x**2, -1, keepdims=True), 1e-16))
