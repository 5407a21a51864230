"""Crystals and properties of CSV files, cached by content.

The key of a cache file holds the bytes of the CSV file, the columns that are read, `VERSION` and
the versions of gemmi and pymatgen. Limits on size, the choice of properties and that of rows whose
CIF is inconsistent apply after the cache.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import logging

from chemeleon2_jax.common.cache import cache_dir, hash_file
from chemeleon2_jax.common.errors import DatasetError
from chemeleon2_jax.data import csv_files
from chemeleon2_jax.data.cache import (
    crystals_from_arrays,
    crystals_to_arrays,
    load_arrays,
    store_arrays,
)
from chemeleon2_jax.data.parse import ParsedFile, parse_rows

VERSION = 3
"""Part of every cache key; raise it when the same file must give other arrays."""

_READERS = ("gemmi", "pymatgen")


def parse_file(
    path: Path,
    *,
    cif_column: str,
    id_column: str | None,
    num_workers: int | None = None,
) -> ParsedFile:
    """Return the reduced crystals of a CSV file, from the cache if it has them.

    Args:
        path: CSV file, gzipped or not.
        cif_column: name in the file of the column of CIFs.
        id_column: the same for the ids; None numbers the rows.
        num_workers: processes; None for one per CPU, up to 16 (fewer for short files); 0 and 1
            parse in this process.

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
    parsed = parse_rows(path, cif_column, id_column, num_workers=num_workers)
    if parsed.num_given_up:
        logging.warning(
            "%s: %d rows were given up after a timeout or the death of their process. They are "
            "skipped in this run; nothing is cached, so that the next run retries them.",
            *(path, parsed.num_given_up),
        )
    else:
        store_arrays(cache, _pack(parsed))
    return parsed


def read_property(path: Path, column: str) -> tuple[np.ndarray, dict[int, str]]:
    """Return `csv_files.read_numbers`, from the cache if it has them."""
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
    fields = [content, str(VERSION), *map(importlib.metadata.version, _READERS), *columns]
    key = hashlib.sha256("\0".join(fields).encode()).hexdigest()[:32]
    return cache_dir() / "preprocessed" / f"{kind}-{key}.npz"


def _pack(parsed: ParsedFile) -> dict[str, np.ndarray]:
    return crystals_to_arrays(parsed.crystals) | {
        "rows": parsed.rows,
        "num_rows": np.array(parsed.num_rows),
        "skipped": _encode(parsed.skipped),
        "remarks": _encode(parsed.remarks),
    }


def _unpack(arrays: Mapping[str, np.ndarray]) -> ParsedFile:
    crystals = crystals_from_arrays(arrays)
    if arrays["rows"].shape != (len(crystals),):
        raise ValueError(f"rows has shape {arrays['rows'].shape}, not ({len(crystals)},)")
    skipped = tuple((row, name, reason) for row, name, reason in _decode(arrays["skipped"]))
    remarks = tuple((row, kind, text) for row, kind, text in _decode(arrays["remarks"]))
    return ParsedFile(crystals, arrays["rows"], int(arrays["num_rows"]), skipped, remarks)


def _encode(values: Sequence[object]) -> np.ndarray:
    return np.frombuffer(json.dumps(values).encode(), np.uint8)


def _decode(array: np.ndarray) -> list[list]:
    return json.loads(array.tobytes())
