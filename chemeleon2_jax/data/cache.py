"""Arrays that can be computed again, in files of the cache.

Writing is atomic (a temporary file, then a rename), so that processes may share a cache. A file
that cannot be read counts as absent, and a folder that cannot be written costs time, not the run.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from absl import logging

from chemeleon2_jax.common.atomic_files import replacing

# What numpy and zipfile raise on files that were cut short, overwritten or never were archives.
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
    """Return the arrays of an .npz file, or None where it is absent or unreadable (logged)."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        return None
    except _UNREADABLE as error:
        logging.warning("Cache file %s is unreadable (%s); it is built again.", path, error)
        return None


def store_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> bool:
    """Write an .npz file atomically; return False, with a warning, where that is not possible."""
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
