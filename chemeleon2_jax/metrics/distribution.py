"""Distances between sets of crystals: MMD, Frechet distance, average minimum distances.

Features are vectors of one width, a row for each crystal. Host side, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import numpy as np
from pymatgen.core.structure import Structure
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist

from chemeleon2_jax.crystals.arrays import CrystalArrays
from chemeleon2_jax.crystals.geometry import as_arrays
from chemeleon2_jax.crystals.limits import check_num_atoms
from chemeleon2_jax.crystals.reduction import reduce_lattice

KERNEL_DEGREE = 3
AMD_NEIGHBOURS = 100

_KERNEL_VALUES_AT_ONCE = 4_000_000  # 32 MB


def squared_mmd(samples: np.ndarray, reference: np.ndarray) -> float:
    """Return the unbiased estimate of the squared maximum mean discrepancy of two sets of features.

    Gretton et al., JMLR 13, 723 (2012), eq. 3, with the kernel (x.y / d + 1)**3 (Binkowski et al.,
    ICLR 2018). An unbiased estimate may be below 0. It takes all pairs of the reference;
    :func:`leave_one_out_mmd` does without them.

    Args:
        samples: (G, d).
        reference: (N, d).

    Raises:
        ValueError: fewer than two rows in either, another width, or numbers that are not finite.
    """
    samples, reference = _check_features(samples, reference, fewest=(2, 2))
    within = _sum_kernel(samples, samples).sum() - _own_kernel(samples).sum()
    beyond = _sum_kernel(reference, reference).sum() - _own_kernel(reference).sum()
    across = _sum_kernel(samples, reference).sum()
    num_samples, num_reference = len(samples), len(reference)
    return float(
        within / (num_samples * (num_samples - 1))
        + beyond / (num_reference * (num_reference - 1))
        - 2.0 * across / (num_samples * num_reference)
    )


def leave_one_out_mmd(samples: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the growth of :func:`squared_mmd` when a sample is left out, (G,).

    Positive where the sample brings its set nearer to the reference. The kernel of the reference
    with itself cancels in the difference, and is not computed.

    Args:
        samples: (G, d), at least three.
        reference: (N, d).

    Raises:
        ValueError: fewer than three samples, no reference, another width, or numbers that are not
            finite.
    """
    samples, reference = _check_features(samples, reference, fewest=(3, 1))
    count, num_reference = len(samples), len(reference)
    within = _sum_kernel(samples, samples) - _own_kernel(samples)  # (G,), over the other samples
    across = _sum_kernel(samples, reference)  # (G,)
    whole = within.sum() / (count * (count - 1)) - 2.0 * across.mean() / num_reference
    others = (within.sum() - 2.0 * within) / ((count - 1) * (count - 2))
    others_across = (across.sum() - across) / ((count - 1) * num_reference)
    return np.asarray(others - 2.0 * others_across - whole)


def frechet_distance(samples: np.ndarray, reference: np.ndarray) -> float:
    """Return the Frechet distance of the Gaussians with the means and covariances of two sets.

    |m - n|**2 + tr(C + D - 2 (C D)**(1/2)) (Dowson and Landau, J. Multivar. Anal. 12, 450, 1982),
    with the unbiased covariances; in the square of the features' unit.

    Args:
        samples: (G, d).
        reference: (N, d).

    Raises:
        ValueError: fewer than two rows in either, another width, or numbers that are not finite.
    """
    samples, reference = _check_features(samples, reference, fewest=(2, 2))
    gap = samples.mean(0) - reference.mean(0)
    first, second = _covariance_root(samples), _covariance_root(reference)
    # With C = A'A and D = B'B, the trace of the root is the sum of the singular values of A B':
    # no root of a number that is 0 up to rounding.
    overlap = np.linalg.svd(first @ second.T, compute_uv=False).sum()
    return max(float(gap @ gap + (first**2).sum() + (second**2).sum() - 2.0 * overlap), 0.0)


def average_minimum_distances(
    structure: Structure | CrystalArrays, k: int = AMD_NEIGHBOURS
) -> np.ndarray:
    """Return the average minimum distances of a crystal, (k,) in angstrom, ascending.

    The distance to the first, second, ... k-th neighbour of any element, each averaged over the
    atoms of the cell (Widdowson et al., MATCH 87, 529, 2022). It does not depend on the choice of
    the cell.

    Args:
        structure: a structure or (atom_types, frac_coords, lattice).
        k: number of neighbours.

    Raises:
        ValueError: k below 1, no atom, a site that is not one element, a flat cell, or numbers
            that are not finite.
    """
    atom_types, frac_coords, lattice = as_arrays(structure)
    if k < 1:
        raise ValueError(f"k is {k}; average minimum distances need at least one neighbour")
    check_num_atoms(len(atom_types))
    if not (np.isfinite(frac_coords).all() and np.isfinite(lattice).all()):
        raise ValueError("coordinates or lattice are not finite")
    volume = abs(float(np.linalg.det(lattice)))
    if volume <= 1e-9 * np.prod(np.linalg.norm(lattice, axis=1)):
        raise ValueError("cell has no volume")
    reduced = reduce_lattice(lattice)
    frac = (frac_coords @ lattice @ np.linalg.inv(reduced)) % 1.0
    for radius in _search_radii(reduced, k * volume / len(atom_types), k):
        points = _points_around(frac, reduced, radius)
        if len(points) > k:
            distances, _ = KDTree(points).query(frac @ reduced, k + 1)
            # Beyond the radius of an atom, points may be missing.
            if distances[:, -1].max() <= radius:
                break
    return np.asarray(distances[:, 1:].mean(0))


def amd_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the distances (G, H), in angstrom, of average minimum distances (G, k) and (H, k).

    The largest difference of any two: the L-infinity metric of Widdowson et al., MATCH 87, 529
    (2022).
    """
    return np.asarray(cdist(first, second, "chebyshev"))


def _check_features(
    samples: np.ndarray, reference: np.ndarray, *, fewest: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    checked = []
    for name, values, least in zip(
        ("samples", "reference"), (samples, reference), fewest, strict=True
    ):
        array = np.asarray(values, np.float64)
        if array.ndim != 2 or len(array) < least:
            raise ValueError(
                f"features of the {name} have the shape {array.shape}; (rows, width) with at least "
                f"{least} rows is needed"
            )
        if not np.isfinite(array).all():
            bad = int(np.flatnonzero(~np.isfinite(array).all(1))[0])
            raise ValueError(f"features of the {name} are not finite, first in row {bad}")
        checked.append(array)
    if checked[0].shape[1] != checked[1].shape[1]:
        raise ValueError(
            f"features of the samples are {checked[0].shape[1]} wide, "
            f"those of the reference {checked[1].shape[1]}"
        )
    return checked[0], checked[1]


def _own_kernel(features: np.ndarray) -> np.ndarray:
    """Kernel of each row with itself, (G,)."""
    return np.asarray(((features**2).mean(1) + 1.0) ** KERNEL_DEGREE)


def _sum_kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Kernel of each row of (G, d), summed over the rows of (N, d): (G,). Memory is bounded."""
    total = np.zeros(len(first))
    step = max(1, _KERNEL_VALUES_AT_ONCE // len(first))
    for start in range(0, len(second), step):
        inner = first @ second[start : start + step].T / first.shape[1] + 1.0
        total += (inner**KERNEL_DEGREE).sum(1)
    return total


def _covariance_root(features: np.ndarray) -> np.ndarray:
    """A (min(G, d), d) matrix R with R'R the unbiased covariance of (G, d) features."""
    centred = features - features.mean(0)
    return np.asarray(np.linalg.qr(centred, mode="r")) / math.sqrt(len(features) - 1)


def _search_radii(reduced: np.ndarray, volume: float, k: int) -> Iterator[float]:
    """Growing radii, in angstrom, for the search of k neighbours; the last one always suffices.

    The first is the radius of a ball of `volume`, enlarged. An atom's own images along the shortest
    vector, two a length, bound the k-th distance.
    """
    enough = float(np.linalg.norm(reduced, axis=1).min()) * ((k + 1) // 2) * (1.0 + 1e-9)
    radius = 1.2 * (3.0 * volume / (4.0 * math.pi)) ** (1.0 / 3.0)
    while radius < enough:
        yield radius
        radius *= 1.5
    yield enough


def _points_around(frac: np.ndarray, lattice: np.ndarray, radius: float) -> np.ndarray:
    """Images (P, 3), in angstrom, of atoms at `frac` (n, 3), among them all within `radius`."""
    heights = 1.0 / np.linalg.norm(np.linalg.inv(lattice), axis=0)
    reach = np.floor(radius / heights + np.ptp(frac, axis=0)).astype(int)
    images = np.array(list(product(*(range(-n, n + 1) for n in reach))), np.float64)
    points = (images[:, None, :] + frac).reshape(-1, 3) @ lattice
    home = frac @ lattice
    margin = radius * (1.0 + 1e-9)
    near = (points >= home.min(0) - margin) & (points <= home.max(0) + margin)
    return np.asarray(points[near.all(1)])
