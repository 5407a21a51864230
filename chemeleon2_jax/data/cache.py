"""Files of the cache with crystals and other arrays that can be computed again.

Writing is atomic (a temporary file, then a rename), so that processes may share a cache. A file
that cannot be read counts as absent; a folder that cannot be written costs time, not the run.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from absl import logging

from chemeleon2_jax.common.atomic_files import replacing
from chemeleon2_jax.crystals.arrays import Crystals

# Errors of numpy and zipfile on files that are cut short, overwritten or no archives.
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


def load_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """Return the arrays of an .npz file, or None if it is absent or unreadable (logged)."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        return None
    except _UNREADABLE as error:
        logging.warning("Cache file %s is unreadable (%s); building it again.", path, error)
        return None


def store_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> bool:
    """Write an .npz file atomically; return False, with a warning, if that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)
    except OSError as error:
        logging.warning(
            "Cannot write the cache file %s (%s); going on without it. Set XDG_CACHE_HOME to a "
            "folder with room to keep the work for the next run.",
            path,
            error,
        )
        return False
    return True


def crystals_to_arrays(crystals: Crystals) -> dict[str, np.ndarray]:
    """Return the arrays of crystals under names for an .npz file; targets as "target/<name>"."""
    names = ("num_atoms", "atom_types", "frac_coords", "lattices", "material_ids")
    arrays = {name: getattr(crystals, name) for name in names}
    return arrays | {f"target/{name}": values for name, values in crystals.targets.items()}


def crystals_from_arrays(arrays: Mapping[str, np.ndarray]) -> Crystals:
    """Undo `crystals_to_arrays`.

    Raises:
        KeyError: an array is missing.
        ValueError: the arrays do not fit together.
    """
    prefix = "target/"
    crystals = Crystals(
        num_atoms=arrays["num_atoms"],
        atom_types=arrays["atom_types"],
        frac_coords=arrays["frac_coords"],
        lattices=arrays["lattices"],
        material_ids=arrays["material_ids"],
        targets={k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)},
    )
    num_crystals, total = len(crystals), int(crystals.num_atoms.sum())
    shapes = {
        "atom_types": (total,),
        "frac_coords": (total, 3),
        "lattices": (num_crystals, 3, 3),
        "material_ids": (num_crystals,),
    }
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{name} has shape {arrays[name].shape}, not {shape}")
    return crystals
