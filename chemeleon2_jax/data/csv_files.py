"""CSV files of crystals: the file of a split, its columns, and its rows one by one."""

from __future__ import annotations

import contextlib
import csv
import gzip
import math
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, cast

import numpy as np

from chemeleon2_jax.common.errors import DatasetError
from chemeleon2_jax.common.suggest import nearest, suggest

SPLITS = ("train", "val", "test")
MISSING = ("", "nan", "none", "null", "na", "n/a", "<na>")

Fields = list[str]

_SPLIT_HINT = (
    "to split one CSV file at random, set data.split=0.8,0.1,0.1 and data.data_dir to the file"
)

_LARGEST = float(np.finfo(np.float32).max)


def check_split(split: str) -> None:
    """Check the name of a split.

    Raises:
        DatasetError: `split` is none; names the nearest.
    """
    if split not in SPLITS:
        raise DatasetError(f"no split {split!r}: {suggest(split, SPLITS)}")


def find_split_file(folder: Path, split: str) -> Path:
    """Return `{split}.csv` of a folder, or else `{split}.csv.gz`.

    Raises:
        DatasetError: no such folder, split or file.
    """
    check_split(split)
    if not folder.is_dir():
        hint = f"; {_SPLIT_HINT}" if folder.is_file() else ""
        raise DatasetError(
            f"{folder} is not a folder; data.data_dir must hold {split}.csv[.gz]{hint}"
        )
    for name in (f"{split}.csv", f"{split}.csv.gz"):
        if (folder / name).is_file():
            return folder / name
    listed = ", ".join(_visible(folder)[:10]) or "nothing"
    hint = f"; {_SPLIT_HINT}" if len(_csv_files(folder)) == 1 else ""
    raise DatasetError(
        f"{folder} has neither {split}.csv nor {split}.csv.gz; it holds {listed}{hint}"
    )


def find_only_file(path: Path) -> Path:
    """Return a CSV file, or the only one of a folder, to split by shares.

    Raises:
        DatasetError: no CSV file there, or several.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise DatasetError(f"there is no file or folder {path}, the data.data_dir to split")
    files = _csv_files(path)
    if len(files) != 1:
        raise DatasetError(
            f"data.split needs one CSV file; {path} holds "
            f"{', '.join(files) or 'none'}; give the file itself as data.data_dir"
        )
    return path / files[0]


def _visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def _csv_files(folder: Path) -> list[str]:
    return [name for name in _visible(folder) if name.lower().endswith((".csv", ".csv.gz"))]


def choose_rows(num_rows: int, split: str, shares: Sequence[float]) -> np.ndarray:
    """Return the rows (1-based, ascending) of a split when one file is split by shares.

    The order is drawn with a fixed seed: the same file gives the same splits in every run.

    Args:
        num_rows: of the file.
        split: `train`, `val` or `test`.
        shares: of the three, with the sum 1.
    """
    ends = np.round(np.cumsum([0.0, *shares]) * num_rows).astype(np.int64)
    order = np.random.default_rng(0).permutation(num_rows)
    index = SPLITS.index(split)
    return np.sort(order[ends[index] : ends[index + 1]]) + 1


def read_header(path: Path) -> list[str]:
    """Return the names of the columns.

    Raises:
        DatasetError: the file is empty or corrupt, or two columns have the same name.
    """
    with _reading(path) as reader:
        header = _next_header(reader)
    if not header:
        raise DatasetError(f"{path} is empty: it has no header line")
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise DatasetError(f"{path} has the column {twice[0]!r} more than once")
    return header


def _next_header(reader: Iterator[Fields]) -> list[str]:
    """Return the first line with any text, [] for none."""
    for fields in reader:
        names = [name.strip() for name in fields]
        if any(names):
            return names
    return []


def check_rename(path: Path, rename: Mapping[str, str]) -> None:
    """Check that a file has all columns that are renamed.

    Raises:
        DatasetError: a column is missing; names the nearest.
    """
    header = read_header(path)
    for column, name in rename.items():
        if column not in header:
            raise DatasetError(
                f"{path} has no column {name!r} (column {column!r} by data.rename); "
                f"{suggest(column, filter(None, header))}"
            )


def present_renames(path: Path, rename: Mapping[str, str]) -> dict[str, str]:
    """Return the renames of columns that a file has."""
    header = read_header(path) if rename else []
    return {column: name for column, name in rename.items() if column in header}


def find_column(path: Path, name: str, rename: Mapping[str, str]) -> str:
    """Return the file's name of a column.

    Args:
        path: the CSV file.
        name: of the column in this package.
        rename: the file's name of a column -> its name in this package.

    Raises:
        DatasetError: no column has that name, or more than one.
    """
    header = read_header(path)
    renamed = {column: rename.get(column, column) for column in header if column}
    columns = [column for column, new_name in renamed.items() if new_name == name]
    if len(columns) > 1:
        raise DatasetError(
            f"{path}: columns {' and '.join(columns)} are both called {name!r}; change data.rename"
        )
    if columns:
        return columns[0]
    check_rename(path, {c: new_name for c, new_name in rename.items() if new_name == name})
    raise DatasetError(f"{path} has no column {name!r}; {_advise(path, header, name)}")


def _advise(path: Path, header: Sequence[str], name: str) -> str:
    """Return what to do about a column that is missing."""
    for separator, word in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and separator in header[0]:
            return f"its columns are separated by {word}; write it with commas"
    columns = [column for column in header if column]
    similar = nearest(name, columns)
    if name == "cif":
        similar = next((c for c in columns if _holds_cif(path, header.index(c))), similar)
    hint = "" if similar is None else f"did you mean {similar!r}? "
    return (
        f"{hint}Known: {', '.join(columns)}. Another name is mapped by --config.data.rename="
        f"{similar or '<column>'}:{name} (evaluate: --rename)"
    )


def _holds_cif(path: Path, index: int) -> bool:
    first = next(read_rows(path), [])
    return index < len(first) and "_cell_length_a" in first[index].lower()


def read_rows(path: Path) -> Iterator[Fields]:
    """Yield the fields of every data row; skip blank lines.

    Raises:
        DatasetError: the file is corrupt, cut short, or not text in UTF-8.
    """
    with _reading(path) as reader:
        _next_header(reader)
        for fields in reader:
            if fields:
                yield fields


def read_numbers(path: Path, column: str) -> tuple[np.ndarray, dict[int, str]]:
    """Return one column as numbers.

    Args:
        path: the CSV file.
        column: name in the file.

    Returns:
        values (rows,) float32, NaN for a field that is no finite number; and {row (1-based):
        reason} of those fields.

    Raises:
        DatasetError: the file is corrupt, or the whole column holds no number.
    """
    header = read_header(path)
    index = header.index(column)
    values: list[float] = []
    reasons: dict[int, str] = {}
    for row, fields in enumerate(read_rows(path), start=1):
        text = fields[index].strip() if len(fields) == len(header) else ""
        value, reason = _parse_number(text, column)
        values.append(value)
        if reason:
            reasons[row] = reason
    if values and len(reasons) == len(values):
        raise DatasetError(f"{path}: column {column!r} holds no number; row 1: {reasons[1]}")
    return np.array(values, np.float32), reasons


def _parse_number(text: str, column: str) -> tuple[float, str]:
    if text.lower() in MISSING:
        return math.nan, f"missing property {column!r}"
    try:
        value = float(text.replace("_", "?"))  # Python alone reads 1_000 as a number
    except ValueError:
        return math.nan, f"property {column!r} is not a number: {text[:40]!r}"
    if not abs(value) <= _LARGEST:
        return math.nan, f"property {column!r} is not finite: {text[:40]!r}"
    return value, ""


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Iterator[Fields]]:
    """Open a CSV file; errors in its bytes become a DatasetError."""
    reader = None
    try:
        with _open_text(path) as stream:
            previous_limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # CIFs are long
            try:
                # Strict: a file that ends inside quotes is an error, not one long last field.
                reader = csv.reader(stream, strict=True)
                yield reader
            finally:
                csv.field_size_limit(previous_limit)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        line = f" at line {reader.line_num}" if reader is not None else ""
        raise DatasetError(
            f"{path} cannot be read{line}: {error or type(error).__name__}. The file is corrupt, "
            "cut short, or not a CSV file in UTF-8; fetch or write it again"
        ) from error


def _open_text(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return cast(IO[str], gzip.open(path, "rt", encoding="utf-8-sig", newline=""))
    return path.open(encoding="utf-8-sig", newline="")


def field_of(fields: Sequence[str], index: int | None) -> str:
    """Return a field of a row, stripped; empty if the column or the field is absent."""
    return fields[index].strip() if index is not None and index < len(fields) else ""
