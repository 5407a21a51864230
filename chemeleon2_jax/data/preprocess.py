"""From a CSV of CIFs to reduced crystals in flat arrays, in parallel processes, cached by content.

What is kept depends on the bytes of the file, the two columns that are read, `VERSION` and the
version of pymatgen, and on nothing else: properties and limits on size are applied to what comes
from the cache.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import logging
from tqdm import tqdm

from chemeleon2_jax.common.cache import cache_dir, hash_file
from chemeleon2_jax.common.errors import DatasetError
from chemeleon2_jax.crystals.arrays import CrystalArrays, Crystals
from chemeleon2_jax.data import csv_files
from chemeleon2_jax.data.cache import load_arrays, store_arrays
from chemeleon2_jax.data.csv_files import field_of
from chemeleon2_jax.workers import Outcome, WorkerPool, default_workers

VERSION = 2
"""Part of every cache key; raise it when the same file is to give other arrays."""

ROWS_AT_ONCE = 16384
"""Rows whose text is held in memory at a time."""

ROWS_A_WORKER = 400
"""A worker process takes as long to start as these rows take to parse."""

ROW_TIMEOUT_S = 60.0
CHUNK_SIZE = 32

TRANSIENT = ("timeout", "worker died")
"""Kinds of reasons that lie in the machine as much as in the row, and may be gone the next time."""


@dataclass(frozen=True)
class SkippedRow:
    """A row that gave no crystal.

    Attributes:
        file: path of the CSV file.
        row: 1 for the first row after the header.
        material_id: as in the file, or the row's number.
        reason: "kind: detail".
    """

    file: str
    row: int
    material_id: str
    reason: str

    def describe(self) -> str:
        """Return "row 3 (mp-17): reason"."""
        return f"row {self.row} ({self.material_id}): {self.reason}"


@dataclass(frozen=True)
class ParsedFile:
    """The crystals of a CSV file and where they stood in it.

    Attributes:
        crystals: G crystals, without targets.
        rows: (G,) int32, the data row (1-based) of each.
        num_rows: data rows of the file.
        skipped: (row, material id, reason) of the other rows.
    """

    crystals: Crystals
    rows: np.ndarray
    num_rows: int
    skipped: tuple[tuple[int, str, str], ...]


def parse_crystal(cif: str) -> CrystalArrays:
    """Parse a CIF and reduce its cell; runs in worker processes.

    Returns:
        atom_types (n,) int8, frac_coords (n, 3) float32, lattice (3, 3) float32 in angstrom.

    Raises:
        ValueError: with the reason why the row gives no crystal.
    """
    # pymatgen takes half a second to import, which a run with a warm cache need not spend.
    from chemeleon2_jax.crystals.structures import (
        arrays_from_structure,
        reduce_structure,
        structure_from_cif,
    )

    structure = structure_from_cif(cif)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reduced = reduce_structure(structure)
    except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
        raise ValueError(f"irreducible cell: {error}") from error
    types, frac, lattice = arrays_from_structure(reduced)
    if not (np.isfinite(frac).all() and np.isfinite(lattice).all()):
        raise ValueError("irreducible cell: the reduction is not finite")
    return types, frac.astype(np.float32), lattice.astype(np.float32)


def parse_file(
    path: Path,
    *,
    cif_column: str,
    id_column: str | None,
    num_workers: int | None = None,
    progress: bool = True,
) -> ParsedFile:
    """Return the reduced crystals of a CSV file, from the cache where it has them.

    Args:
        path: CSV file, gzipped or not.
        cif_column: name in the file of the column of CIFs.
        id_column: the same for the ids; None numbers the rows.
        num_workers: processes; None is one a CPU, up to 16 (fewer for short files); 0 and 1 work
            in this one.
        progress: show a progress bar on a terminal.

    Raises:
        DatasetError: the file is corrupt.
    """
    cache = _cache_file(path, "crystals", cif_column, id_column or "")
    arrays = load_arrays(cache)
    if arrays is not None:
        try:
            return _unpack(arrays)
        except (KeyError, ValueError) as error:
            logging.warning("Cache file %s is incomplete (%s); building it again.", cache, error)
    parsed = _parse(path, cif_column, id_column, num_workers=num_workers, progress=progress)
    given_up = sum(_is_transient(reason) for _, _, reason in parsed.skipped)
    if given_up:
        logging.warning(
            "%s: %d rows were given up after a timeout or the death of their process. They are "
            "skipped this time; nothing is cached, so that the next run tries them again.",
            *(path, given_up),
        )
    else:
        store_arrays(cache, _pack(parsed))
    return parsed


def read_property(path: Path, column: str) -> tuple[np.ndarray, dict[int, str]]:
    """Return `csv_files.read_numbers`, from the cache where it has them."""
    cache = _cache_file(path, "property", column)
    arrays = load_arrays(cache)
    if arrays is not None and {"values", "reasons"} <= set(arrays):
        grouped = _decode(arrays["reasons"])
        return arrays["values"], {row: reason for reason, rows in grouped for row in rows}
    values, reasons = csv_files.read_numbers(path, column)
    rows_of: dict[str, list[int]] = {}
    for row, reason in reasons.items():
        rows_of.setdefault(reason, []).append(row)
    store_arrays(cache, {"values": values, "reasons": _encode(list(rows_of.items()))})
    return values, reasons


def _cache_file(path: Path, kind: str, *columns: str) -> Path:
    try:
        content = hash_file(path)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    parts = [content, str(VERSION), importlib.metadata.version("pymatgen"), *columns]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    return cache_dir() / "preprocessed" / f"{kind}-{key}.npz"


def _parse(
    path: Path, cif_column: str, id_column: str | None, *, num_workers: int | None, progress: bool
) -> ParsedFile:
    header = csv_files.read_header(path)
    cif_index = header.index(cif_column)
    id_index = None if id_column is None else header.index(id_column)
    num_rows = sum(1 for _ in csv_files.read_rows(path))
    parts: list[ParsedFile] = []
    bar = tqdm(total=num_rows, desc=path.name, unit="row", disable=None if progress else True)
    with bar, WorkerPool(_count_workers(num_workers, num_rows)) as pool:
        for batch in _batches(csv_files.read_rows(path), ROWS_AT_ONCE):
            first_row = sum(part.num_rows for part in parts) + 1
            cifs = [_cif_of(fields, cif_index, len(header)) for fields in batch]
            outcomes = _parse_batch(cifs, pool, bar)
            rows = range(first_row, first_row + len(batch))
            ids = [
                field_of(fields, id_index) or str(row)
                for row, fields in zip(rows, batch, strict=True)
            ]
            parts.append(_sort_out(outcomes, ids, first_row))
    return ParsedFile(
        crystals=Crystals.concatenate([part.crystals for part in parts or [_sort_out([], [], 1)]]),
        rows=np.concatenate([np.zeros(0, np.int32), *(part.rows for part in parts)]),
        num_rows=num_rows,
        skipped=tuple(itertools.chain.from_iterable(part.skipped for part in parts)),
    )


def _parse_batch(
    cifs: Sequence[str | tuple[int, int]], pool: WorkerPool, bar: tqdm
) -> list[Outcome]:
    """Parse rows, and once more those that a busy machine may have failed."""
    outcomes = pool.map(
        _parse_or_fail, cifs, timeout_s=ROW_TIMEOUT_S, chunk_size=CHUNK_SIZE, on_done=bar.update
    )
    again = [i for i, outcome in enumerate(outcomes) if _is_transient(outcome.error)]
    second = pool.map(_parse_or_fail, [cifs[i] for i in again], timeout_s=ROW_TIMEOUT_S)
    for i, outcome in zip(again, second, strict=True):
        outcomes[i] = outcome
    return outcomes


def _sort_out(outcomes: Sequence[Outcome], ids: Sequence[str], first_row: int) -> ParsedFile:
    """Separate the rows that gave a crystal from the others."""
    good = [i for i, outcome in enumerate(outcomes) if outcome.error is None]
    return ParsedFile(
        crystals=Crystals.from_list(
            [outcomes[i].value for i in good], material_ids=[ids[i] for i in good]
        ),
        rows=first_row + np.array(good, np.int32),
        num_rows=len(outcomes),
        skipped=tuple(
            (first_row + i, ids[i], _reason(outcome))
            for i, outcome in enumerate(outcomes)
            if outcome.error is not None
        ),
    )


def _parse_or_fail(cif: str | tuple[int, int]) -> CrystalArrays:
    if isinstance(cif, tuple):
        raise ValueError(f"wrong number of fields: {cif[0]}, the header has {cif[1]}")
    if not cif.strip():
        raise ValueError("missing CIF")
    return parse_crystal(cif)


def _cif_of(fields: Sequence[str], index: int, num_columns: int) -> str | tuple[int, int]:
    return fields[index] if len(fields) == num_columns else (len(fields), num_columns)


def _reason(outcome: Outcome) -> str:
    error = outcome.error or ""
    for kind in TRANSIENT:
        if error.startswith(kind):
            return f"{kind}: {error.removeprefix(kind).strip(' ()')}"
    return error.removeprefix("ValueError: ")


def _is_transient(reason: str | None) -> bool:
    return reason is not None and reason.startswith(TRANSIENT)


def _count_workers(num_workers: int | None, num_rows: int) -> int:
    if num_workers is None:
        num_workers = min(default_workers(), num_rows // ROWS_A_WORKER)
    # One worker is no faster than this process, and costs its start.
    return num_workers if num_workers > 1 else 0


def _batches(rows: Iterator[list[str]], size: int) -> Iterator[list[list[str]]]:
    while batch := list(itertools.islice(rows, size)):
        yield batch


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


def _pack(parsed: ParsedFile) -> dict[str, np.ndarray]:
    return crystals_to_arrays(parsed.crystals) | {
        "rows": parsed.rows,
        "num_rows": np.array(parsed.num_rows),
        "skipped": _encode(parsed.skipped),
    }


def _unpack(arrays: Mapping[str, np.ndarray]) -> ParsedFile:
    crystals = crystals_from_arrays(arrays)
    if arrays["rows"].shape != (len(crystals),):
        raise ValueError(f"rows has shape {arrays['rows'].shape}, not ({len(crystals)},)")
    skipped = tuple((row, name, reason) for row, name, reason in _decode(arrays["skipped"]))
    return ParsedFile(crystals, arrays["rows"], int(arrays["num_rows"]), skipped)


def _encode(values: Sequence[object]) -> np.ndarray:
    return np.frombuffer(json.dumps(values).encode(), np.uint8)


def _decode(array: np.ndarray) -> list[list]:
    return json.loads(array.tobytes())
