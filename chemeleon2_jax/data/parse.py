"""From a CSV of CIFs to reduced crystals in flat arrays, in parallel processes."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from chemeleon2_jax.crystals.arrays import CrystalArrays, Crystals
from chemeleon2_jax.data import csv_files
from chemeleon2_jax.workers import Outcome, WorkerPool, default_workers

ROWS_AT_ONCE = 16384
"""Rows whose text is held in memory at a time."""

ROWS_A_WORKER = 400
"""A worker process takes as long to start as these rows take to parse."""

ROW_TIMEOUT_S = 60.0
CHUNK_SIZE = 32

DOUBT, NOTE = "doubt", "note"

_TRANSIENT = ("timeout", "worker died")  # kinds of reasons that a retry may mend


@dataclass(frozen=True)
class ParsedFile:
    """The crystals of a CSV file and their rows.

    Attributes:
        crystals: G crystals, without targets.
        rows: (G,) int32, the data row (1-based) of each crystal.
        num_rows: number of data rows in the file.
        skipped: (row, material id, "kind: detail" of the reason) of each row without crystal.
        remarks: (row, `DOUBT` or `NOTE`, text) of rows with a crystal: what the file declares that
            disagrees with it, or what was assumed.
    """

    crystals: Crystals
    rows: np.ndarray
    num_rows: int
    skipped: tuple[tuple[int, str, str], ...]
    remarks: tuple[tuple[int, str, str], ...] = ()

    @property
    def num_given_up(self) -> int:
        """Number of rows skipped for a reason that lies in the machine as much as in the row."""
        return sum(_is_transient(reason) for _, _, reason in self.skipped)


@dataclass(frozen=True)
class ParsedCrystal:
    """A crystal of a CIF with its cell reduced.

    Attributes:
        arrays: atom_types (n,) int8, frac_coords (n, 3) float32, lattice (3, 3) float32 in
            angstrom.
        remarks: (`DOUBT` or `NOTE`, text).
    """

    arrays: CrystalArrays
    remarks: tuple[tuple[str, str], ...] = ()


def parse_crystal(cif: str) -> ParsedCrystal:
    """Parse a CIF and reduce its cell; runs in worker processes.

    Raises:
        ValueError: the CIF gives no crystal; its text is the reason.
    """
    # pymatgen takes half a second to import, which a run with a warm cache saves.
    from chemeleon2_jax.crystals.cif.reader import first_crystal
    from chemeleon2_jax.crystals.structures import (
        arrays_from_structure,
        reduce_structure,
        structure_from_arrays,
    )

    crystal = first_crystal(cif)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reduced = reduce_structure(structure_from_arrays(*crystal.found))
    except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
        raise ValueError(f"irreducible cell: {error}") from error
    types, frac, lattice = arrays_from_structure(reduced)
    if not (np.isfinite(frac).all() and np.isfinite(lattice).all()):
        raise ValueError("irreducible cell: the reduction is not finite")
    remarks = [(DOUBT, text) for text in crystal.doubts] + [(NOTE, text) for text in crystal.notes]
    arrays = types, frac.astype(np.float32), lattice.astype(np.float32)
    return ParsedCrystal(arrays, tuple(remarks))


def parse_rows(
    path: Path,
    cif_column: str,
    id_column: str | None,
    *,
    num_workers: int | None = None,
) -> ParsedFile:
    """Parse the rows of a CSV file; see :func:`~chemeleon2_jax.data.preprocess.parse_file`.

    Raises:
        DatasetError: the file is corrupt.
    """
    header = csv_files.read_header(path)
    cif_index = header.index(cif_column)
    id_index = None if id_column is None else header.index(id_column)
    num_rows = sum(1 for _ in csv_files.read_rows(path))
    batches = [_collect([], [], 1)]
    first_row = 1
    bar = tqdm(total=num_rows, desc=path.name, unit="row", disable=None)
    with bar, WorkerPool(_count_workers(num_workers, num_rows)) as pool:
        for batch in _batches(csv_files.read_rows(path), ROWS_AT_ONCE):
            cifs = [_cif_of(fields, cif_index, len(header)) for fields in batch]
            outcomes = _parse_batch(cifs, pool, bar)
            ids = [
                csv_files.field_of(fields, id_index) or str(row)
                for row, fields in enumerate(batch, first_row)
            ]
            batches.append(_collect(outcomes, ids, first_row))
            first_row += len(batch)
    return ParsedFile(
        crystals=Crystals.concatenate([batch.crystals for batch in batches]),
        rows=np.concatenate([batch.rows for batch in batches]),
        num_rows=num_rows,
        skipped=tuple(itertools.chain.from_iterable(batch.skipped for batch in batches)),
        remarks=tuple(itertools.chain.from_iterable(batch.remarks for batch in batches)),
    )


def _batches(rows: Iterator[list[str]], size: int) -> Iterator[list[list[str]]]:
    while batch := list(itertools.islice(rows, size)):
        yield batch


def _cif_of(fields: Sequence[str], index: int, num_columns: int) -> str | tuple[int, int]:
    """Return the CIF of a row, or (fields, columns) of a row with another number of fields."""
    return fields[index] if len(fields) == num_columns else (len(fields), num_columns)


def _parse_batch(
    cifs: Sequence[str | tuple[int, int]], pool: WorkerPool, bar: tqdm
) -> list[Outcome]:
    """Parse rows; retry those that may have failed because the machine was busy."""
    outcomes = pool.map(
        _parse_or_fail, cifs, timeout_s=ROW_TIMEOUT_S, chunk_size=CHUNK_SIZE, on_done=bar.update
    )
    again = [i for i, outcome in enumerate(outcomes) if _is_transient(outcome.error)]
    second = pool.map(_parse_or_fail, [cifs[i] for i in again], timeout_s=ROW_TIMEOUT_S)
    for i, outcome in zip(again, second, strict=True):
        outcomes[i] = outcome
    return outcomes


def _parse_or_fail(cif: str | tuple[int, int]) -> ParsedCrystal:
    if isinstance(cif, tuple):
        raise ValueError(f"wrong number of fields: {cif[0]}, the header has {cif[1]}")
    if not cif.strip():
        raise ValueError("missing CIF")
    return parse_crystal(cif)


def _collect(outcomes: Sequence[Outcome], ids: Sequence[str], first_row: int) -> ParsedFile:
    """Separate the rows with a crystal from the others."""
    good = [i for i, outcome in enumerate(outcomes) if outcome.error is None]
    return ParsedFile(
        crystals=Crystals.from_list(
            [outcomes[i].value.arrays for i in good], material_ids=[ids[i] for i in good]
        ),
        rows=first_row + np.array(good, np.int32),
        num_rows=len(outcomes),
        skipped=tuple(
            (first_row + i, ids[i], _reason(outcome.error))
            for i, outcome in enumerate(outcomes)
            if outcome.error is not None
        ),
        remarks=tuple(
            (first_row + i, *remark) for i in good for remark in outcomes[i].value.remarks
        ),
    )


def _reason(error: str) -> str:
    for kind in _TRANSIENT:
        if error.startswith(kind):
            return f"{kind}: {error.removeprefix(kind).strip(' ()')}"
    return error.removeprefix("ValueError: ")


def _is_transient(reason: str | None) -> bool:
    return reason is not None and reason.startswith(_TRANSIENT)


def _count_workers(num_workers: int | None, num_rows: int) -> int:
    if num_workers is None:
        num_workers = min(default_workers(), num_rows // ROWS_A_WORKER)
    # One worker is no faster than this process, and takes time to start.
    return num_workers if num_workers > 1 else 0
