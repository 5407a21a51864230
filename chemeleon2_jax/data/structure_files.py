"""Crystals from files of any kind; an entry without crystal keeps its place and has a reason."""

from __future__ import annotations

import gzip
import zlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import logging

from chemeleon2_jax.common.atomic_files import REPORT_FILE, STRUCTURES_FILE
from chemeleon2_jax.common.errors import DatasetError
from chemeleon2_jax.common.json_text import parse_json
from chemeleon2_jax.common.paths import expand_path, printable
from chemeleon2_jax.crystals.arrays import CrystalArrays
from chemeleon2_jax.crystals.cif.reader import ReadCrystal
from chemeleon2_jax.data import csv_files
from chemeleon2_jax.data.members import (
    NO_CRYSTALS,
    Content,
    Member,
    arrays_from_dict,
    find_members,
    is_structure,
    kind_of,
    read_member,
)
from chemeleon2_jax.data.parse import CHUNK_SIZE, ROW_TIMEOUT_S
from chemeleon2_jax.data.preprocess import parse_file
from chemeleon2_jax.workers import Outcome, WorkerPool

OK, NOT_BUILT, FAILED = "ok", "not built", "failed"
COPY = "a copy of"
NUM_LISTED = 6

_KINDS = (
    "give a folder that sample wrote, a folder or .zip of CIFs, POSCARs and JSON files, or one "
    ".json, .csv, .cif or .vasp file, gzipped or not"
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
        warning: what the file declares that disagrees with the crystal, and what was assumed.
    """

    name: str
    arrays: CrystalArrays | None
    status: str = OK
    reason: str | None = None
    warning: str | None = None


def read_entries(
    path: str | Path, pool: WorkerPool, *, rename: Mapping[str, str] | None = None
) -> list[Entry]:
    """Return the crystals of a file or folder, in order, and log what was read and what not.

    Cells are read as they are, except in CSV files, whose crystals are Niggli-reduced and cached as
    those of data sets.

    Args:
        path: a folder that `sample` wrote (an entry for every requested crystal); a folder, with
            its subfolders, or a zip archive of CIFs, POSCARs and JSON files, by name; a list of
            pymatgen structures in JSON (null: not built), a CSV file with the column `cif`, or a
            CIF. Each data block of a CIF is an entry: `a.cif`, `a.cif#2`, ...
        pool: processes that read.
        rename: a CSV file's name of a column -> its name in this package; columns that it lacks do
            not matter.

    Raises:
        DatasetError: the path is none of these, or holds nothing.
    """
    path = expand_path(path, error=DatasetError)
    # A list beside its run.json is incomplete: crystals that were not built belong to it.
    if path.name == STRUCTURES_FILE and (path.parent / REPORT_FILE).is_file():
        path = path.parent
    try:
        entries, left_out = _read(path, pool, rename or {})
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    if not entries:
        listed = "; not read: " + _list_left_out(left_out) if left_out else ""
        raise DatasetError(f"{path} holds no structure{listed}")
    if left_out or any(e.status == FAILED or e.warning for e in entries):
        logging.warning("%s", describe_reading(printable(path), entries, left_out))
    return entries


def _read(
    path: Path, pool: WorkerPool, rename: Mapping[str, str]
) -> tuple[list[Entry], dict[str, list[str]]]:
    """Return the entries, and {why: names} of files that were not read."""
    name = path.name.lower()
    if path.is_dir():
        if (path / STRUCTURES_FILE).is_file():
            return _read_samples(path, pool), {}
        members, left_out = find_members(path)
        if not members:
            listed = f" (not read: {_list_left_out(left_out)})" if left_out else ""
            raise DatasetError(f"{path} has neither {STRUCTURES_FILE} nor CIFs{listed}; {_KINDS}")
        return _read_members(members, left_out, pool)
    if not path.exists():
        raise DatasetError(f"there is no file or folder {path}; {_KINDS}")
    if name.endswith(".zip"):
        return _read_members(*find_members(path), pool)
    if name.removesuffix(".gz").endswith(".json"):
        return _read_json(path, pool), {}
    if name.removesuffix(".gz").endswith(".csv"):
        return _read_csv(path, pool, rename), {}
    if kind_of(name) is None:
        raise DatasetError(f"{path} is of no known kind; {_KINDS}")
    return _read_members([Member(printable(path.name), path)], {}, pool)


def _read_members(
    members: Sequence[Member], left_out: dict[str, list[str]], pool: WorkerPool
) -> tuple[list[Entry], dict[str, list[str]]]:
    """Read files; those with the same bytes as another get a warning that names it."""
    outcomes = pool.map(read_member, members, timeout_s=ROW_TIMEOUT_S, chunk_size=CHUNK_SIZE)
    entries: list[Entry] = []
    first_with: dict[str, str] = {}
    left_out = dict(left_out)
    for member, outcome in zip(members, outcomes, strict=True):
        if outcome.error is not None:
            reason = outcome.error.removeprefix("ValueError: ")
            entries.append(Entry(member.name, None, FAILED, reason))
            continue
        content: Content = outcome.value
        if not content.crystals:
            left_out.setdefault(NO_CRYSTALS, []).append(member.name)
        first = first_with.setdefault(content.digest, member.name)
        copy = f"{COPY} {first}" if first != member.name else None
        for number, crystal in enumerate(content.crystals, start=1):
            name = member.name if number == 1 else f"{member.name}#{number}"
            entries.append(_entry_of(name, crystal, copy))
    return entries, left_out


def _entry_of(name: str, crystal: ReadCrystal | None, copy: str | None) -> Entry:
    if crystal is None:
        return Entry(name, None, NOT_BUILT, NOT_BUILT)
    warning = "; ".join(filter(None, (*crystal.doubts, *crystal.notes, copy))) or None
    if crystal.arrays is None:
        return Entry(name, None, FAILED, crystal.reason, warning)
    return Entry(name, crystal.arrays, warning=warning)


def describe_reading(
    source: str, entries: Sequence[Entry], left_out: Mapping[str, Sequence[str]]
) -> str:
    """Return what was read and what not, on one screen."""
    failed = [entry for entry in entries if entry.status == FAILED]
    warned = [entry for entry in entries if entry.warning and entry.arrays is not None]
    read = sum(entry.arrays is not None for entry in entries)
    lines = [f"{source}: {read} of {len(entries)} crystals read"]
    for title, rows, texts in (
        ("failed", failed, [entry.reason or "" for entry in failed]),
        ("read with a warning", warned, [entry.warning or "" for entry in warned]),
    ):
        if rows:
            kinds = Counter(
                text.partition(":")[0].partition(COPY)[1] or text.partition(":")[0]
                for text in texts
            )
            counts = ", ".join(f"{n} x {kind[:60]}" for kind, n in kinds.most_common(6))
            lines.append(f"  {title} {len(rows)} ({counts})")
            shown = list(zip(rows, texts, strict=True))[:NUM_LISTED]
            lines += [f"    {entry.name}: {text[:160]}" for entry, text in shown]
            if len(rows) > NUM_LISTED:
                lines.append(f"    and {len(rows) - NUM_LISTED} more")
    if left_out:
        lines.append(f"  not read: {_list_left_out(left_out)}")
    return "\n".join(lines)


def _list_left_out(left_out: Mapping[str, Sequence[str]]) -> str:
    """Return "3 x .docx (a.docx, ...), ..."."""
    most_first = sorted(left_out.items(), key=lambda item: -len(item[1]))
    texts = [
        f"{len(names)} x {why} ({names[0]}{', ...' if len(names) > 1 else ''})"
        for why, names in most_first
    ]
    rest = f" and {len(texts) - 8} more kinds" if len(texts) > 8 else ""
    return ", ".join(texts[:8]) + rest


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
    if is_structure(content):
        content = [content]
    if not isinstance(content, list):
        raise DatasetError(f"{path} holds a {type(content).__name__}, not a list of structures")
    names = [str(i) for i in range(len(content))]
    return _collect(arrays_from_dict, content, names=names, pool=pool)


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


def _read_csv(path: Path, pool: WorkerPool, rename: Mapping[str, str]) -> list[Entry]:
    rename = csv_files.present_renames(path, rename)
    has_ids = "material_id" in {rename.get(name, name) for name in csv_files.read_header(path)}
    parsed = parse_file(
        path,
        cif_column=csv_files.find_column(path, "cif", rename),
        id_column=csv_files.find_column(path, "material_id", rename) if has_ids else None,
        num_workers=pool.num_workers,
    )
    warnings: dict[int, list[str]] = defaultdict(list)
    for row, _, text in parsed.remarks:
        warnings[row].append(text)
    entries = {row: Entry(name, None, FAILED, reason) for row, name, reason in parsed.skipped}
    crystals = parsed.crystals
    for index, row in enumerate(parsed.rows.tolist()):
        name = crystals.material_ids[index].decode()
        warning = "; ".join(warnings[row]) if row in warnings else None
        entries[row] = Entry(name, crystals.crystal(index), warning=warning)
    return [entries[row] for row in sorted(entries)]
