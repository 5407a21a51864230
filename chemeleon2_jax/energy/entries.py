"""Entries of a phase diagram: compositions with energies, from files and from pymatgen's objects.

Files are read as data: no class that they name is imported.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chemeleon2_jax.common.errors import EnergyError
from chemeleon2_jax.common.json_text import parse_json
from chemeleon2_jax.common.paths import expand_path
from chemeleon2_jax.energy.entry import Entry, parse_composition

_CLASSES = ("ComputedEntry", "ComputedStructureEntry", "PDEntry")
_FORMULA = "formula"
_PER_ATOM = "energy_per_atom"


@dataclass(frozen=True)
class EntryFile:
    """Content of a file of entries.

    Attributes:
        entries: all entries.
        corrected: scale that the file states, or None.
    """

    entries: list[Entry]
    corrected: bool | None = None


def read_entries(path: str | Path) -> EntryFile:
    """Read the entries of a JSON, CSV or pickle file, compressed with gzip or not.

    - JSON: a list of pymatgen's entries as dicts (``as_dict``), or of objects with ``formula`` and
      ``energy_per_atom``; or an object with such a list under ``entries`` and optionally the scale
      under ``corrected``.
    - CSV: columns ``formula`` and ``energy_per_atom`` (eV/atom, total energies).
    - pickle (.pkl, .pickle): a list of pymatgen's entries or a phase diagram, as data.

    Raises:
        EnergyError: it cannot be read; names the entry and its fault.
    """
    path = expand_path(path, error=EnergyError)
    name = path.name.removesuffix(".gz")
    try:
        if name.endswith((".pkl", ".pickle")):
            from chemeleon2_jax.energy.entry_pickles import read_pickle

            return EntryFile(_read_all(read_pickle(path), path))
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
        if name.endswith(".csv"):
            return EntryFile(_read_all(_csv_rows(text, path), path))
        if name.endswith(".json"):
            return _read_json(parse_json(text), path)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise EnergyError(f"cannot read entries from {path}: {error}") from error
    raise EnergyError(f"{path}: a file of entries ends in .json, .csv or .pkl (and .gz)")


def _csv_rows(text: str, path: Path) -> list[dict[str, str]]:
    reader = csv.DictReader(io.StringIO(text))
    missing = [name for name in (_FORMULA, _PER_ATOM) if name not in (reader.fieldnames or ())]
    if missing:
        raise EnergyError(
            f"{path} has no column {' and '.join(missing)}; it has "
            f"{', '.join(reader.fieldnames or ['none'])}. Total energies in eV/atom are needed: a "
            "formation energy says nothing of the energy that a model predicts"
        )
    return list(reader)


def _read_json(content: Any, path: Path) -> EntryFile:
    corrected = None
    if isinstance(content, dict):
        corrected = content.get("corrected")
        content = content.get("entries")
    if not isinstance(content, list) or not isinstance(corrected, bool | None):
        raise EnergyError(
            f"{path} should hold a list of entries, or an object with such a list under 'entries' "
            "and true or false under 'corrected'"
        )
    return EntryFile(_read_all(content, path), corrected)


def _read_all(rows: Iterable[Any], path: Path) -> list[Entry]:
    entries = []
    for index, row in enumerate(rows):
        try:
            entries.append(row if isinstance(row, Entry) else parse_entry(row))
        except ValueError as error:
            raise EnergyError(f"{path}, entry {index}: {error}") from error
    return entries


def parse_entry(row: Any) -> Entry:
    """Return the entry that a dict describes.

    Raises:
        ValueError: it describes none.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"a {type(row).__name__} is no entry")
    kind = row.get("@class")
    if kind is not None and kind not in _CLASSES:
        raise ValueError(f"entries of class {kind!r} are not known; {', '.join(_CLASSES)} are")
    if _PER_ATOM in row and _FORMULA in row:
        fractions, _ = parse_composition(row[_FORMULA])
        return Entry(fractions, _number(row, _PER_ATOM))
    if not ("composition" in row and "energy" in row):
        raise ValueError(
            f"it has neither {_FORMULA} and {_PER_ATOM}, nor composition and energy, but "
            f"{', '.join(map(str, row)) or 'nothing'}"
        )
    fractions, num_atoms = parse_composition(row["composition"])
    correction = _number(row, "correction") / num_atoms if "correction" in row else None
    return Entry(fractions, _number(row, "energy") / num_atoms, correction)


def entry_of(entry: Any) -> Entry:
    """Return one of pymatgen's entries, a row of a file or an :class:`Entry` as an entry.

    Raises:
        ValueError: `entry` is no entry.
    """
    if isinstance(entry, Entry):
        return entry
    if isinstance(entry, Mapping):
        return parse_entry(entry)
    if not hasattr(entry, "as_dict"):
        raise ValueError(f"a {type(entry).__name__} is no entry")
    return parse_entry(entry.as_dict())


def _number(row: Mapping[str, Any], key: str) -> float:
    try:
        value = float(row[key])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"its {key} is {row[key]!r:.40}, not a number")
    return value
