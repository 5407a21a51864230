"""Minkowski reduction of a cell: the shortest vectors that span its lattice."""

from __future__ import annotations

from itertools import product

import numpy as np

_AROUND = np.array(list(product((-1.0, 0.0, 1.0), repeat=2)))  # (9, 2)


def reduce_lattice(lattice: np.ndarray) -> np.ndarray:
    """Return a Minkowski-reduced basis (3, 3) of a lattice, shortest vector first.

    Nguyen and Stehlé's greedy algorithm in three dimensions.
    """
    basis = np.array(lattice, np.float64)
    while True:
        basis = basis[np.argsort((basis**2).sum(1), kind="stable")]
        a, b = _reduce_pair(basis[0], basis[1])
        c = _subtract_closest(basis[2], a, b)
        basis = np.stack([a, b, c])
        # The margin keeps rounding errors from swapping equal lengths forever.
        if c @ c >= b @ b * (1.0 - 1e-10):
            return basis


def _reduce_pair(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gauss reduction: the two shortest vectors of a plane's lattice."""
    while True:
        b = b - np.round((a @ b) / (a @ a)) * a
        if b @ b >= a @ a * (1.0 - 1e-10):
            return a, b
        a, b = b, a


def _subtract_closest(c: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Subtract from c the vector of the lattice of (a, b), Gauss-reduced, that is closest to it."""
    plane = np.stack([a, b])
    around = np.round(np.linalg.solve(plane @ plane.T, plane @ c)) + _AROUND
    candidates = c - around @ plane  # (9, 3)
    return candidates[np.argmin((candidates**2).sum(1))]
