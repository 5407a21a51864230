"""Known crystals to compare others with, under a name and a checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from chemeleon2_jax.common.errors import DatasetError
from chemeleon2_jax.common.paths import expand_path
from chemeleon2_jax.common.suggest import suggest
from chemeleon2_jax.crystals.arrays import Crystals
from chemeleon2_jax.crystals.limits import check_cell, check_num_atoms
from chemeleon2_jax.crystals.structures import arrays_from_structure
from chemeleon2_jax.data.csv_files import SPLITS, find_split_file, present_renames, read_header
from chemeleon2_jax.data.datasets import canonical_name, load_split
from chemeleon2_jax.data.embedded import EMBEDDED_SETS
from chemeleon2_jax.data.sources import NAMED_SETS
from chemeleon2_jax.data.structure_files import read_entries
from chemeleon2_jax.workers import WorkerPool


@dataclass(frozen=True)
class Reference:
    """Known crystals and their origin.

    Attributes:
        name: of the data set, or the path.
        crystals: the known crystals.
        splits: of the data set; empty for other sources.
        num_skipped: number of rows or files without crystal.
    """

    name: str
    crystals: Crystals
    splits: tuple[str, ...] = ()
    num_skipped: int = 0

    @property
    def names(self) -> list[str]:
        """Names of the crystals: material ids, names of files, or positions in a list."""
        return [name.decode() for name in self.crystals.material_ids.tolist()]

    @cached_property
    def sha256(self) -> str:
        """Checksum of the crystals, whatever their file: numbers of atoms, atomic numbers,
        fractional coordinates and cells as loaded, in that order.
        """
        digest = hashlib.sha256()
        crystals = self.crystals
        for array, dtype in (
            (crystals.num_atoms, "<i4"),
            (crystals.atom_types, "i1"),
            (crystals.frac_coords, "<f4"),
            (crystals.lattices, "<f4"),
        ):
            digest.update(np.ascontiguousarray(array, dtype).tobytes())
        return digest.hexdigest()


def load_reference(
    source: Any,
    pool: WorkerPool,
    *,
    splits: Sequence[str] = ("train",),
    rename: Mapping[str, str] | None = None,
) -> Reference:
    """Load known crystals.

    Args:
        source: the name of a data set; a folder with `train.csv`, `val.csv` or `test.csv`; a path
            for :func:`~chemeleon2_jax.data.structure_files.read_entries`; or a list of structures
            or (atom_types, frac_coords, lattice) triples.
        pool: processes that read.
        splits: of a data set.
        rename: a CSV file's name of a column -> its name in this package; columns that it lacks do
            not matter.

    Raises:
        DatasetError: the source is none of these, or holds no crystal.
        ValueError: an element of a list is no crystal; names it.
    """
    if not isinstance(source, str | Path):
        return _from_list(source)
    name = str(source)
    if not name:  # the path would be the working directory
        raise DatasetError("the reference has no name; give a data set, a file or a folder")
    if _is_named(name):
        return _from_splits(canonical_name(name), splits, data_dir="", pool=pool)
    folder = expand_path(name, error=DatasetError)
    if not folder.exists():
        known = [*EMBEDDED_SETS, *NAMED_SETS]
        raise DatasetError(f"no data set, file or folder {name!r}: {suggest(name, known)}")
    if folder.is_dir() and _csv_files_of(folder):
        return _from_splits(name, splits, data_dir=name, pool=pool, rename=rename)
    return _from_files(name, pool, rename)


def check_renames(rename: Mapping[str, str], sources: Sequence[Any]) -> None:
    """Check that each renamed column is in a CSV file of one of the sources.

    Args:
        rename: name of a column -> its name in this package.
        sources: as for `load_reference`.

    Raises:
        DatasetError: a column is in none.
    """
    header: list[str] = []
    for source in sources if rename else ():
        if isinstance(source, str | Path):
            for path in _csv_files_of(expand_path(source, error=DatasetError)):
                header += read_header(path)
    for column, name in rename.items():
        if column not in header:
            raise DatasetError(
                f"no CSV file has the column {column!r}, which is renamed to {name!r}; "
                f"{suggest(column, dict.fromkeys(filter(None, header)))}"
            )


def _csv_files_of(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.name.lower().removesuffix(".gz").endswith(".csv") else []
    candidates = [path / f"{split}.csv{z}" for split in SPLITS for z in ("", ".gz")]
    return [candidate for candidate in candidates if candidate.is_file()]


def _is_named(name: str) -> bool:
    """Tell whether a text names a data set. A folder of the same name is `./<name>`."""
    try:
        canonical_name(name)
    except DatasetError:
        return False
    return True


def _from_list(structures: Any) -> Reference:
    arrays = []
    for index, structure in enumerate(structures):
        try:
            triple = structure if isinstance(structure, tuple) else arrays_from_structure(structure)
            check_num_atoms(len(triple[0]))
            check_cell(np.asarray(triple[2]))
            arrays.append(triple)
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"reference {index} is not a crystal: {error}") from error
    if not arrays:
        raise ValueError("the reference holds no structure")
    return Reference(f"a list of {len(arrays)}", Crystals.from_list(arrays))


def _from_splits(
    name: str,
    splits: Sequence[str],
    *,
    data_dir: str,
    pool: WorkerPool,
    rename: Mapping[str, str] | None = None,
) -> Reference:
    rename = dict(rename or {}) if data_dir else {}
    if not splits:
        raise DatasetError(f"no split of {name}; give one or more of {', '.join(SPLITS)}")
    if rename:
        rename = present_renames(
            find_split_file(expand_path(data_dir, error=DatasetError), splits[0]), rename
        )
    loaded = [
        load_split(
            "" if data_dir else name,
            split,
            data_dir=data_dir,
            rename=rename,
            num_workers=pool.num_workers,
        )
        for split in dict.fromkeys(splits)
    ]
    return Reference(
        name=name,
        crystals=Crystals.concatenate([part.crystals for part in loaded]),
        splits=tuple(dict.fromkeys(splits)),
        num_skipped=sum(len(part.skipped) for part in loaded),
    )


def _from_files(path: str, pool: WorkerPool, rename: Mapping[str, str] | None) -> Reference:
    entries = read_entries(path, pool, rename=rename)
    bad = [entry for entry in entries if entry.arrays is None]
    good = [(entry.name, entry.arrays) for entry in entries if entry.arrays is not None]
    if bad:
        logging.warning(
            "reference %s: left out %d of %d entries without crystal, first %s: %s",
            *(path, len(bad), len(entries), bad[0].name, bad[0].reason),
        )
    if not good:
        raise DatasetError(f"no crystal in the reference {path}; {bad[0].name}: {bad[0].reason}")
    crystals = Crystals.from_list(
        [arrays for _, arrays in good], material_ids=[name for name, _ in good]
    )
    return Reference(path, crystals, num_skipped=len(bad))
