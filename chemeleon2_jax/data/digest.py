"""Digests of the crystals of a data set: whether a run still reads what it read before."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from chemeleon2_jax.crystals.arrays import Crystals

# Another machine may reduce a cell with other last digits; a run goes on there.
_STEPS = 1e4  # a length of 1e-4 angstrom, and 1e-4 of a cell
_OFFSET = 0.2371  # the edges of the steps lie beside fractions such as 1/8


def digest_crystals(crystals: Crystals) -> dict[str, Any]:
    """Return a JSON-able digest: number of crystals and atoms, and a hash for each kind of content.

    Cells and positions count to 1e-4 angstrom and 1e-4 of a cell, targets to 6 digits.
    """
    return {
        "crystals": len(crystals),
        "atoms": int(crystals.num_atoms.sum()),
        "ids": _hash(crystals.material_ids),
        "elements": _hash(crystals.num_atoms, crystals.atom_types),
        "geometry": _hash(
            _steps(crystals.lattices), _steps(crystals.frac_coords % 1.0) % int(_STEPS)
        ),
        "targets": {
            name: _hash(_rounded(values)) for name, values in sorted(crystals.targets.items())
        },
    }


def describe_difference(saved: Mapping[str, Any], present: Mapping[str, Any]) -> str:
    """Return a clause about what differs between two digests; '' for the same contents.

    Targets that only one of them has do not count: a run may read more columns than another.
    """
    for name, unit in (("crystals", "crystals"), ("atoms", "atoms")):
        if saved.get(name) != present.get(name):
            return f"{present.get(name)} {unit}, not {saved.get(name)}"
    named = {
        "ids": "other ids",
        "elements": "other elements",
        "geometry": "other cells or positions",
    }
    differing = [text for name, text in named.items() if saved.get(name) != present.get(name)]
    targets, targets_then = present.get("targets", {}), saved.get("targets", {})
    differing += [
        f"other values of {name}"
        for name in targets
        if name in targets_then and targets[name] != targets_then[name]
    ]
    return (
        f"{saved['crystals']} crystals as before, but {', '.join(differing)}" if differing else ""
    )


def _steps(values: np.ndarray) -> np.ndarray:
    return np.floor(values.astype(np.float64) * _STEPS + _OFFSET).astype(np.int64)


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.array([f"{value:.6g}" for value in values.tolist()], dtype="S")


def _hash(*arrays: np.ndarray) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
