"""Crystals from files of any kind; an entry without crystal keeps its place and has a reason."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pymatgen.core import Structure

from chemeleon2_jax.common.atomic_files import REPORT_FILE, STRUCTURES_FILE
from chemeleon2_jax.common.errors import DatasetError
from chemeleon2_jax.common.json_text import parse_json
from chemeleon2_jax.common.paths import expand_path, printable
from chemeleon2_jax.crystals.arrays import CrystalArrays
from chemeleon2_jax.crystals.limits import check_cell
from chemeleon2_jax.crystals.structures import arrays_from_structure, structure_from_cif
from chemeleon2_jax.data import csv_files
from chemeleon2_jax.data.parse import CHUNK_SIZE, ROW_TIMEOUT_S
from chemeleon2_jax.data.preprocess import parse_file
from chemeleon2_jax.workers import Outcome, WorkerPool

OK, NOT_BUILT, FAILED = "ok", "not built", "failed"

_KINDS = (
    "give a folder that sample wrote, a folder of CIFs, or a .json, .json.gz, .csv, .csv.gz or "
    ".cif file"
)


@dataclass(frozen=True)
class Entry:
    """One requested crystal, or the reason for its absence.

    Attributes:
        name: material id, name of the file, or position in the list.
        arrays: atom_types (n,), frac_coords (n, 3), lattice (3, 3) in angstrom; None without
            crystal.
        status: "ok", "not built" (by the generator), or "failed" (it cannot be read).
        reason: why there is no crystal.
    """

    name: str
    arrays: CrystalArrays | None
    status: str = OK
    reason: str | None = None


def read_entries(path: str | Path, pool: WorkerPool) -> list[Entry]:
    """Return the crystals of a file or folder, in order.

    Cells are read as they are, except in CSV files, whose crystals are Niggli-reduced and cached as
    those of data sets.

    Args:
        path: a folder that `sample` wrote (an entry for every requested crystal), a folder of CIFs
            (by name), a list of pymatgen structures in JSON (null: not built), a CSV file with the
            column `cif`, or a CIF.
        pool: processes that read.

    Raises:
        DatasetError: the path is none of these, or holds nothing.
    """
    path = expand_path(path, error=DatasetError)
    # A list beside its run.json is incomplete: crystals that were not built belong to it.
    if path.name == STRUCTURES_FILE and (path.parent / REPORT_FILE).is_file():
        path = path.parent
    try:
        entries = _read(path, pool)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    if not entries:
        raise DatasetError(f"{path} holds no structure")
    return entries


def _read(path: Path, pool: WorkerPool) -> list[Entry]:
    if path.is_dir():
        if (path / STRUCTURES_FILE).is_file():
            return _read_samples(path, pool)
        cifs = sorted(entry for entry in path.iterdir() if entry.suffix.lower() == ".cif")
        if not cifs:
            raise DatasetError(f"{path} has neither {STRUCTURES_FILE} nor CIFs; {_KINDS}")
        return _read_cifs(cifs, pool)
    if not path.exists():
        raise DatasetError(f"there is no file or folder {path}; {_KINDS}")
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".json"):
        return _read_json(path, pool)
    if name.endswith(".csv"):
        return _read_csv(path, pool)
    if path.suffix.lower() == ".cif":
        return _read_cifs([path], pool)
    raise DatasetError(f"{path} is of no known kind; {_KINDS}")


def _read_samples(folder: Path, pool: WorkerPool) -> list[Entry]:
    """Return an entry for every requested crystal, built or not, by index."""
    report = folder / REPORT_FILE
    if not report.is_file():
        raise DatasetError(
            f"{folder} has no {REPORT_FILE}, which lists the crystals that were not built: "
            f"sampling was interrupted. Sample again, or give {folder / STRUCTURES_FILE} for the "
            "others"
        )
    built = _read_json(folder / STRUCTURES_FILE, pool)
    try:
        content = parse_json(report.read_bytes())
        indices = [int(index) for index in content["indices"]]
        reasons = {int(item["index"]): str(item["reason"]) for item in content["failures"]}
        num_samples = int(content["num_samples"])
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{report} was not written by sample: {error!r}; sample again"
        ) from error
    if len(built) != len(indices) or sorted([*indices, *reasons]) != list(range(num_samples)):
        raise DatasetError(
            f"{report} does not belong to {STRUCTURES_FILE} beside it: {len(built)} structures, "
            f"but {len(indices)} indices and {len(reasons)} failures of {num_samples}; sample again"
        )
    entries = {i: Entry(str(i), None, NOT_BUILT, reason) for i, reason in reasons.items()}
    for index, entry in zip(indices, built, strict=True):
        entries[index] = Entry(str(index), entry.arrays, entry.status, entry.reason)
    return [entries[index] for index in range(num_samples)]


def _read_json(path: Path, pool: WorkerPool) -> list[Entry]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            content = parse_json(stream.read())
    except (EOFError, ValueError, zlib.error) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, list):
        raise DatasetError(f"{path} holds a {type(content).__name__}, not a list of structures")
    names = [str(i) for i in range(len(content))]
    return _collect(_from_dict, content, names=names, pool=pool)


def _read_cifs(paths: Sequence[Path], pool: WorkerPool) -> list[Entry]:
    return _collect(
        _from_cif_file, paths, names=[printable(path.name) for path in paths], pool=pool
    )


def _collect(
    function: Any, items: Sequence[Any], *, names: list[str], pool: WorkerPool
) -> list[Entry]:
    outcomes = pool.map(function, items, timeout_s=ROW_TIMEOUT_S, chunk_size=CHUNK_SIZE)
    return [_entry(name, outcome) for name, outcome in zip(names, outcomes, strict=True)]


def _entry(name: str, outcome: Outcome) -> Entry:
    if outcome.error is not None:
        return Entry(name, None, FAILED, outcome.error.removeprefix("ValueError: "))
    if outcome.value is None:
        return Entry(name, None, NOT_BUILT, NOT_BUILT)
    return Entry(name, outcome.value)


def _from_dict(content: Any) -> CrystalArrays | None:
    """Convert one element of a JSON list, in a worker."""
    if content is None:
        return None
    try:
        structure = Structure.from_dict(content)
    except (AttributeError, LookupError, TypeError) as error:
        text = f"{type(error).__name__} {error}"
        raise ValueError(f"not a pymatgen structure: {text}") from error
    check_cell(structure.lattice.matrix)
    return arrays_from_structure(structure)


def _from_cif_file(path: Path) -> CrystalArrays:
    """Read one CIF, in a worker."""
    return arrays_from_structure(structure_from_cif(path.read_text()))


def _read_csv(path: Path, pool: WorkerPool) -> list[Entry]:
    header = csv_files.read_header(path)
    parsed = parse_file(
        path,
        cif_column=csv_files.find_column(path, "cif", {}),
        id_column="material_id" if "material_id" in header else None,
        num_workers=pool.num_workers,
    )
    entries = {row: Entry(name, None, FAILED, reason) for row, name, reason in parsed.skipped}
    for index, row in enumerate(parsed.rows.tolist()):
        crystals = parsed.crystals
        entries[row] = Entry(crystals.material_ids[index].decode(), crystals.crystal(index))
    return [entries[row] for row in sorted(entries)]
