"""Data sets by name or folder: the one way in for crystals with their targets.

A set is a folder with `train.csv`, `val.csv` and `test.csv` (or `.csv.gz`), a published set, which
is downloaded at first use, or an embedded set (`prototypes`, `structure-types`), which is built on
this machine without a network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from absl import logging

from chemeleon2_jax.common.errors import DatasetError
from chemeleon2_jax.common.paths import expand_path
from chemeleon2_jax.common.suggest import suggest
from chemeleon2_jax.crystals.arrays import Crystals
from chemeleon2_jax.data import csv_files, embedded
from chemeleon2_jax.data.download import fetch_split
from chemeleon2_jax.data.parse import DOUBT, ParsedFile
from chemeleon2_jax.data.preprocess import parse_file, read_property
from chemeleon2_jax.data.sources import NAMED_SETS

NUM_LISTED = 5

INCONSISTENT = "inconsistent CIF"
"""Kind of reason of rows whose CIF declares something else than it holds."""


@dataclass(frozen=True)
class SkippedRow:
    """A row without crystal, or with a remark on its crystal.

    Attributes:
        file: path of the CSV file.
        row: 1 for the first row after the header.
        material_id: from the file, or the number of the row.
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
class Split:
    """One part of a data set.

    Attributes:
        crystals: of the good rows, in the order of the file.
        skipped: the other rows, in the same order.
        source: the file, or the source of built crystals.
        remarks: good rows of which something was assumed, or is doubtful.
        rows: (G,), of the crystals in their file (1 for the first); empty for built crystals.
    """

    crystals: Crystals
    skipped: tuple[SkippedRow, ...]
    source: str
    remarks: tuple[SkippedRow, ...] = ()
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32), repr=False)

    def report(self) -> str:
        """Return a few lines: number of crystals, and the reasons for the skipped rows."""
        total = len(self.crystals) + len(self.skipped)
        head = f"{self.source}: {len(self.crystals)} of {total} crystals"
        lines = [head]
        if self.skipped:
            lines = [f"{head}; skipped {_count_kinds(self.skipped)}", *_list_first(self.skipped)]
        if any(row.reason.startswith(INCONSISTENT) for row in self.skipped):
            lines.append("  data.keep_inconsistent=True keeps crystals of inconsistent CIFs")
        if self.remarks:
            lines += [f"  read with a remark {_count_kinds(self.remarks)}"]
            lines += _list_first(self.remarks)
        return "\n".join(lines)


def _count_kinds(rows: Sequence[SkippedRow]) -> str:
    kinds = Counter(row.reason.partition(":")[0] for row in rows)
    return f"{len(rows)} ({', '.join(f'{n} x {kind}' for kind, n in kinds.most_common(8))})"


def _list_first(rows: Sequence[SkippedRow]) -> list[str]:
    rest = [f"  and {len(rows) - NUM_LISTED} more"] if len(rows) > NUM_LISTED else []
    return [f"  {row.describe()}" for row in rows[:NUM_LISTED]] + rest


def canonical_name(name: str) -> str:
    """Return the canonical name of a set: `mp_20` and `MP-20` are `mp-20`.

    Raises:
        DatasetError: the set is unknown; names the nearest.
    """
    known = [*embedded.EMBEDDED_SETS, *NAMED_SETS]
    spellings = {_fold(candidate): candidate for candidate in known}
    if _fold(name) not in spellings:
        raise DatasetError(
            f"no data set {name!r}: {suggest(name, known)}. For a folder of CSV files set "
            "data.data_dir"
        )
    return spellings[_fold(name)]


def _fold(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def load_split(
    name: str,
    split: str,
    *,
    data_dir: str | Path = "",
    targets: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    max_atoms: int = 0,
    keep_inconsistent: bool = False,
    shares: Sequence[float] = (),
    num_workers: int | None = None,
) -> Split:
    """Return the crystals of one split with targets.

    Rows without crystal are skipped, listed in the result and reported in the log.

    Args:
        name: a published set, or an embedded one.
        split: `train`, `val` or `test`.
        data_dir: folder with `{split}.csv` or `{split}.csv.gz`; replaces `name`.
        targets: properties to load, by their names after `rename`.
        rename: the file's name of a column -> its name in this package.
        max_atoms: largest number of atoms in the reduced cell; 0 for no limit.
        keep_inconsistent: whether to keep crystals whose CIF declares another formula, number of
            formula units or multiplicity than it holds.
        shares: of train, val and test, when `data_dir` is one CSV file, or a folder with one, that
            is split at random; () for a file for each split.
        num_workers: processes that parse CIFs; None for one per CPU, up to 16; 0 and 1 for none.

    Raises:
        DatasetError: the name or split is unknown, a column or file is missing, a file or download
            is corrupt, there is no network, or no row is good.
    """
    rename = dict(rename or {})
    if not data_dir and canonical_name(name) in embedded.EMBEDDED_SETS:
        loaded = _load_embedded(
            canonical_name(name), split, targets=targets, rename=rename, max_atoms=max_atoms
        )
    else:
        path = _split_file(name, split, data_dir, is_shared=bool(shares))
        loaded = _load_csv(
            path,
            targets,
            rename,
            max_atoms=max_atoms,
            keep_inconsistent=keep_inconsistent,
            num_workers=num_workers,
        )
        if shares:
            loaded = _take_share(loaded, split, shares)
    if not len(loaded.crystals):
        raise DatasetError(f"no good row. {loaded.report()}")
    log = logging.warning if loaded.skipped else logging.info
    log("%s", loaded.report())
    return loaded


def _split_file(name: str, split: str, data_dir: str | Path, *, is_shared: bool) -> Path:
    if is_shared:
        csv_files.check_split(split)
        if not data_dir:
            raise DatasetError("data.split splits the CSV file of data.data_dir, which is empty")
        return csv_files.find_only_file(expand_path(data_dir, error=DatasetError))
    if data_dir:
        return csv_files.find_split_file(expand_path(data_dir, error=DatasetError), split)
    return fetch_split(NAMED_SETS[canonical_name(name)], split)


def _load_csv(
    path: Path,
    targets: Sequence[str],
    rename: Mapping[str, str],
    *,
    max_atoms: int,
    keep_inconsistent: bool,
    num_workers: int | None,
) -> Split:
    # The columns are checked first: a misspelt one shall not cost minutes of parsing.
    csv_files.check_rename(path, rename)
    cif_column = csv_files.find_column(path, "cif", rename)
    columns = {target: csv_files.find_column(path, target, rename) for target in targets}
    has_ids = "material_id" in {rename.get(c, c) for c in csv_files.read_header(path)}
    id_column = csv_files.find_column(path, "material_id", rename) if has_ids else None
    properties = {target: read_property(path, column) for target, column in columns.items()}
    parsed = parse_file(
        path,
        cif_column=cif_column,
        id_column=id_column,
        num_workers=num_workers,
    )
    if not parsed.num_rows:
        raise DatasetError(f"{path} has a header but no row")

    bad = {row: (material_id, reason) for row, material_id, reason in parsed.skipped}
    remarks = _sort_remarks(parsed, bad, str(path), keep_inconsistent=keep_inconsistent)
    for _, reasons in properties.values():
        for row in reasons.keys() - bad.keys():
            position = np.searchsorted(parsed.rows, row)
            bad[row] = (parsed.crystals.material_ids[position].decode(), reasons[row])
    values = {target: values[parsed.rows - 1] for target, (values, _) in properties.items()}
    crystals = replace(parsed.crystals, targets=values)
    split = _keep_good(crystals, parsed.rows, bad=bad, max_atoms=max_atoms, source=str(path))
    return replace(
        split,
        remarks=tuple(row for row in remarks if row.row not in bad),
        rows=parsed.rows[~np.isin(parsed.rows, list(bad))],
    )


def _take_share(whole: Split, split: str, shares: Sequence[float]) -> Split:
    """Return the part of a file that is one split."""
    chosen = csv_files.choose_rows(len(whole.crystals) + len(whole.skipped), split, shares)
    wanted = set(chosen.tolist())
    return Split(
        crystals=whole.crystals.take(np.flatnonzero(np.isin(whole.rows, chosen))),
        skipped=tuple(row for row in whole.skipped if row.row in wanted),
        source=f"{whole.source} ({split})",
        remarks=tuple(row for row in whole.remarks if row.row in wanted),
        rows=whole.rows[np.isin(whole.rows, chosen)],
    )


def _sort_remarks(
    parsed: ParsedFile, bad: dict[int, tuple[str, str]], source: str, *, keep_inconsistent: bool
) -> list[SkippedRow]:
    """Return remarks on rows; those of inconsistent CIFs are put among the bad rows instead."""
    remarks = []
    for row, kind, text in parsed.remarks:
        material_id = parsed.crystals.material_ids[np.searchsorted(parsed.rows, row)].decode()
        reason = f"{INCONSISTENT}: {text}" if kind == DOUBT else text
        if kind == DOUBT and not keep_inconsistent:
            bad.setdefault(row, (material_id, reason))
        else:
            remarks.append(SkippedRow(source, row, material_id, reason))
    return remarks


def _keep_good(
    crystals: Crystals,
    rows: np.ndarray,
    *,
    bad: dict[int, tuple[str, str]],
    max_atoms: int,
    source: str,
) -> Split:
    """Leave out crystals of `bad` rows and crystals that are too large."""
    too_large = np.flatnonzero(crystals.num_atoms > max_atoms) if max_atoms > 0 else ()
    for i in too_large:
        reason = f"too many atoms: {crystals.num_atoms[i]}, max_atoms is {max_atoms}"
        bad.setdefault(int(rows[i]), (crystals.material_ids[i].decode(), reason))
    if bad:
        crystals = crystals.take(np.flatnonzero(~np.isin(rows, list(bad))))
    return Split(crystals, tuple(SkippedRow(source, row, *bad[row]) for row in sorted(bad)), source)


def _load_embedded(
    name: str, split: str, *, targets: Sequence[str], rename: Mapping[str, str], max_atoms: int
) -> Split:
    csv_files.check_split(split)
    crystals = embedded.load_embedded(name)[split]
    for column in rename:
        if column not in crystals.targets:
            raise DatasetError(
                f"{name} has no property {column!r} (data.rename); "
                f"{suggest(column, crystals.targets)}"
            )
    known = {rename.get(name, name): values for name, values in crystals.targets.items()}
    for target in targets:
        if target not in known:
            raise DatasetError(f"{name} has no property {target!r}; {suggest(target, known)}")
    return _keep_good(
        replace(crystals, targets={target: known[target] for target in targets}),
        np.arange(1, len(crystals) + 1),
        bad={},
        max_atoms=max_atoms,
        source=f"{name}/{split}",
    )


def size_table(crystals: Crystals) -> np.ndarray:
    """Return the number of crystals by number of atoms, (largest + 1,) int64."""
    return np.bincount(crystals.num_atoms).astype(np.int64)
