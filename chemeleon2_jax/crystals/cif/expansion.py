"""Atoms of a cell: the images of the listed sites, each site once."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial import cKDTree

from chemeleon2_jax.crystals.arrays import wrap
from chemeleon2_jax.crystals.cif.sites import FULL_OCCUPANCY, SAME_SITE, Sites
from chemeleon2_jax.crystals.cif.symmetry import Operations
from chemeleon2_jax.crystals.limits import check_num_atoms

MAX_MERGED = 0.5
"""Angstrom; images of a site that are farther apart are never merged, however few the digits."""

MIN_DISTANCE = 0.3
"""Angstrom; atoms of different sites that are closer are doubted. Of bonds, H-H is 0.74."""

_LARGEST_STABILISER = 48
_NEIGHBOURS = 8


@dataclass(frozen=True)
class Atoms:
    """Atoms of a cell, N of them, in the order of their sites.

    Attributes:
        site: (N,), index of the site of each.
        coordinates: (N, 3), fractional, 0..1.
        counts: (M,), number of atoms of each site.
        doubts: atoms that are too close.
    """

    site: np.ndarray
    coordinates: np.ndarray
    counts: np.ndarray
    doubts: tuple[str, ...]


def expand(sites: Sites, operations: Operations, lattice: np.ndarray) -> Atoms:
    """Apply symmetry operations to sites.

    A site within its digits of a special position is moved onto it, so that 0.333 and 0.667 are on
    a threefold axis.

    Raises:
        ValueError: too many atoms; two sites at one position; a site not fully occupied.
    """
    check_num_atoms(len(sites) * len(operations) // _LARGEST_STABILISER or 1)
    if len(operations) == 1:
        coordinates = sites.coordinates
        orbits = [c[None] for c in (coordinates - np.floor(coordinates))]
        doubts: list[str] = []
    else:
        orbits, doubts = [], []
        for label, position, digits in zip(
            sites.labels, sites.coordinates, sites.digits, strict=True
        ):
            orbit, distance = _orbit(position, operations, lattice, digits=int(digits))
            orbits.append(orbit)
            if distance < MAX_MERGED:
                doubts.append(f"atoms of site {label} are {distance:.2f} angstrom apart")
    counts = np.array([len(orbit) for orbit in orbits])
    check_num_atoms(int(counts.sum()))
    atoms = Atoms(
        np.repeat(np.arange(len(sites)), counts), np.concatenate(orbits), counts, tuple(doubts)
    )
    atoms = _occupy(sites, atoms)
    return replace(atoms, doubts=(*atoms.doubts, *_find_close(sites, atoms, lattice)))


def _find_close(sites: Sites, atoms: Atoms, lattice: np.ndarray) -> list[str]:
    """Return a doubt if atoms of different sites are closer than `MIN_DISTANCE`."""
    points, site = wrap(atoms.coordinates), atoms.site
    margins = MIN_DISTANCE * np.linalg.norm(np.linalg.inv(lattice), axis=0)
    for axis, margin in enumerate(margins):  # repeat the atoms at each face at the opposite one
        near = points[:, axis] <= margin
        points = np.concatenate([points, points[near] + np.eye(3)[axis]])
        site = np.concatenate([site, site[near]])
    if len(points) < 2:
        return []
    tree = cKDTree(points @ lattice)
    distances, neighbours = tree.query(
        tree.data, k=min(_NEIGHBOURS, len(points)), distance_upper_bound=MIN_DISTANCE
    )
    pairs: dict[tuple[int, int], float] = {}
    for atom, column in np.argwhere(np.isfinite(distances)).tolist():
        first, second = sorted((int(site[atom]), int(site[neighbours[atom, column]])))
        if first != second:
            distance = float(distances[atom, column])
            pairs[first, second] = min(distance, pairs.get((first, second), np.inf))
    if not pairs:
        return []
    (first, second), distance = min(pairs.items(), key=lambda pair: pair[1])
    more = f", and {len(pairs) - 1} more pairs are closer than {MIN_DISTANCE}"
    return [
        f"atoms {sites.labels[first]} and {sites.labels[second]} are {distance:.2f} angstrom apart"
        + (more if len(pairs) > 1 else "")
    ]


def _orbit(
    position: np.ndarray, operations: Operations, lattice: np.ndarray, *, digits: int
) -> tuple[np.ndarray, float]:
    """Return the images (n, 3) of a position, and the distance of the closest to the first."""
    # Each coordinate is off by half a unit of its last digit, and x-y by a whole one.
    tolerance = min(max(2.0 * 10.0 ** -max(digits, 0), SAME_SITE), 0.02)
    differences = _images(position, operations) - position
    differences -= np.round(differences)
    near = (np.abs(differences) <= tolerance).all(1)
    near &= np.linalg.norm(differences @ lattice, axis=1) <= MAX_MERGED
    # The mean over the operations that keep a position is exactly on the special position.
    images = _images(position + differences[near].sum(0) / max(near.sum(), 1), operations)
    images -= np.floor(images)
    pairs = images[:, None] - images[None]
    same = (np.abs(pairs - np.round(pairs)) < SAME_SITE).all(-1)
    unique = images[same.argmax(1) == np.arange(len(images))]
    if len(unique) == 1:
        return unique, np.inf
    others = unique[1:] - unique[0]
    others -= np.round(others)
    return unique, float(np.linalg.norm(others @ lattice, axis=1).min())


def _images(position: np.ndarray, operations: Operations) -> np.ndarray:
    return operations.rotations @ position + operations.translations


def _occupy(sites: Sites, atoms: Atoms) -> Atoms:
    """Check that every position holds one atom; leave out repeated positions.

    Raises:
        ValueError: partial occupancy, or two atoms at one position.
    """
    groups = _find_shared(atoms, len(sites))
    left_out = []
    for members in groups.values():
        occupancies: dict[str, float] = defaultdict(float)
        for member in members:
            occupancies[sites.symbols[member]] += sites.occupancies[member]
        total = sum(occupancies.values())
        labels = [sites.labels[member] for member in members]
        if total > 1.0 + FULL_OCCUPANCY:
            raise ValueError(
                f"overlapping sites: {' and '.join(labels[:4])} are at the same position (by the "
                f"symmetry operations) with a total occupancy of {total:g}"
            )
        if len(occupancies) > 1 or total < 1.0 - FULL_OCCUPANCY:
            species = ", ".join(f"{symbol}:{n:.4g}" for symbol, n in occupancies.items())
            raise ValueError(f"partial occupancy: {species} at site {labels[0]}")
        left_out += members[1:]
    if not left_out:
        return atoms
    kept = ~np.isin(atoms.site, left_out)
    counts = atoms.counts.copy()
    counts[left_out] = 0
    return Atoms(atoms.site[kept], atoms.coordinates[kept], counts, atoms.doubts)


def _find_shared(atoms: Atoms, num_sites: int) -> dict[int, list[int]]:
    """Return the sites at the same position, by the first of them."""
    first_of = list(range(num_sites))
    if num_sites > 1:
        wrapped = wrap(atoms.coordinates)
        starts = np.cumsum(atoms.counts) - atoms.counts
        tree = cKDTree(wrapped, boxsize=1.0)
        count = min(_NEIGHBOURS, len(wrapped))
        _, neighbours = tree.query(
            wrapped[starts], k=count, p=np.inf, distance_upper_bound=SAME_SITE
        )
        for site, found in enumerate(np.asarray(neighbours).reshape(num_sites, -1).tolist()):
            shared = [int(atoms.site[atom]) for atom in found if atom < len(wrapped)]
            if len(shared) > 1:
                roots = {_root(first_of, member) for member in (*shared, site)}
                for root in roots:
                    first_of[root] = min(roots)
    groups: dict[int, list[int]] = defaultdict(list)
    for site in range(num_sites):
        groups[_root(first_of, site)].append(site)
    return groups


def _root(first_of: list[int], site: int) -> int:
    while first_of[site] != site:
        site = first_of[site]
    return site
