"""How good crystals are: a table with a row for each, and a summary."""

from __future__ import annotations

import platform
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from absl import logging
from pymatgen.core import Composition, Element, Structure

from chemeleon2_jax.common.version import __version__
from chemeleon2_jax.crystals.arrays import CrystalArrays
from chemeleon2_jax.crystals.geometry import MIN_DISTANCE, as_arrays, measure
from chemeleon2_jax.data.references import Reference, load_reference
from chemeleon2_jax.data.structure_files import FAILED, NOT_BUILT, OK, Entry, read_entries
from chemeleon2_jax.metrics.composition import MAX_COMBINATIONS, OXIDATION_STATES
from chemeleon2_jax.metrics.matching import TIMEOUT_S
from chemeleon2_jax.metrics.reconstruction import Tolerances
from chemeleon2_jax.metrics.registry import METRICS, Column, Subject, choose_metrics
from chemeleon2_jax.metrics.structure import COVALENT_FACTOR, MIN_VOLUME_PER_ATOM
from chemeleon2_jax.metrics.uniqueness import References
from chemeleon2_jax.workers import WorkerPool


@dataclass(frozen=True)
class Report:
    """What `evaluate` found.

    Attributes:
        table: a row for each crystal that was asked for: name, formula, num_atoms, status ("ok",
            "not built", or "failed": it, or one of its metrics, could not be worked out), a column
            for each metric, and the reason of all that is not as it should be.
        summary: what it comes to. Shares are of all crystals asked for, whatever became of them.
    """

    table: pd.DataFrame = field(repr=False)
    summary: dict[str, Any]


def evaluate(
    structures: Any,
    reference: Any = None,
    metrics: Sequence[str] | None = None,
    *,
    reference_splits: Sequence[str] = ("train",),
    tolerances: Tolerances | None = None,
    timeout_s: float = TIMEOUT_S,
    num_workers: int | None = None,
) -> Report:
    """Evaluate generated crystals.

    Args:
        structures: pymatgen structures, (atom_types, frac_coords, lattice) triples, or None for
            what could not be built; or the path of a folder that `sample` wrote, of a folder of
            CIFs, or of a JSON, CSV or CIF file.
        reference: crystals that are not novel: the name of a data set, the path of a folder with
            `train.csv`, any path as above, or a list of structures.
        metrics: names from :data:`~chemeleon2_jax.metrics.registry.METRICS`; None is all that can
            be computed.
        reference_splits: the splits of a data set that count.
        tolerances: of StructureMatcher; None are its defaults.
        timeout_s: limit for one comparison, in seconds.
        num_workers: processes; None is one a CPU, up to 16; 0 is this one.

    Raises:
        DatasetError: no such file, folder or data set, or nothing in it.
        ValueError: no structure, an unknown metric, or one that needs a reference.
    """
    names = choose_metrics(metrics, has_reference=reference is not None)
    seconds = _Stopwatch()
    with WorkerPool(num_workers) as pool:
        entries = [_check(entry) for entry in _entries(structures, pool)]
        seconds.stop("structures")
        known = None
        if _is_needed(reference, names):
            known = load_reference(reference, pool, splits=reference_splits)
            seconds.stop("reference")
        subject = Subject(
            crystals=[entry.arrays for entry in entries],
            references=None if known is None else References(known.crystals),
            reference_names=[] if known is None else known.names,
            pool=pool,
            tolerances=tolerances or Tolerances(),
            timeout_s=timeout_s,
        )
        columns = {}
        for name in names:
            columns[name] = METRICS[name].compute(subject)
            seconds.stop(name)
    table = _tabulate(entries, columns)
    summary = {
        "structures": _count_entries(structures, entries, table),
        "metrics": {name: _summarise(name, column, entries) for name, column in columns.items()},
        "reference": None if known is None else _describe(known),
        "settings": _settings(subject),
        "versions": _versions(),
        "seconds": seconds.laps,
    }
    return Report(table, summary)


def _is_needed(reference: Any, names: Sequence[str]) -> bool:
    """Tell whether to load the reference, and the user where it decides what is computed."""
    needing = [name for name, metric in METRICS.items() if metric.needs_reference]
    is_needed = not set(names).isdisjoint(needing)
    if reference is None and METRICS.keys() - names == set(needing):
        logging.info("No reference is given: without %s.", ", ".join(needing))
    elif reference is not None and not is_needed:
        logging.info("None of the metrics needs the reference; it is not loaded.")
    return is_needed


class _Stopwatch:
    """Seconds since the last stop, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._start = time.perf_counter()

    def stop(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self._start, 3)
        self._start = now


def _entries(structures: Any, pool: WorkerPool) -> list[Entry]:
    if isinstance(structures, str | Path):
        return read_entries(structures, pool)
    if isinstance(structures, Structure):  # which would go through its sites
        raise ValueError("structures is one structure; give a list of structures")
    entries = []
    for index, structure in enumerate(structures):
        if structure is None:
            entries.append(Entry(str(index), None, NOT_BUILT, NOT_BUILT))
            continue
        try:
            entries.append(Entry(str(index), as_arrays(structure)))
        except (TypeError, ValueError) as error:
            entries.append(Entry(str(index), None, FAILED, f"not a crystal: {error}"))
    if not entries:
        raise ValueError("there are no structures to evaluate")
    return entries


def _check(entry: Entry) -> Entry:
    """Take the arrays from an entry that no metric could be computed of."""
    error = None if entry.arrays is None else measure(entry.arrays).error
    return entry if error is None else Entry(entry.name, None, FAILED, error)


def _tabulate(entries: Sequence[Entry], columns: dict[str, Column]) -> pd.DataFrame:
    statuses, reasons = [], []
    for row, entry in enumerate(entries):
        if entry.arrays is None:
            statuses.append(entry.status)
            reasons.append(entry.reason)
            continue
        known = all(column.values[row] is not None for column in columns.values())
        statuses.append(OK if known else FAILED)
        reasons.append(_join_reasons(row, columns))
    content: dict[str, Any] = {
        "name": [entry.name for entry in entries],
        "formula": [None if e.arrays is None else _formula(e.arrays) for e in entries],
        "num_atoms": pd.array(
            [None if e.arrays is None else len(e.arrays[0]) for e in entries], dtype="Int64"
        ),
        "status": statuses,
    }
    for name, column in columns.items():
        is_number = METRICS[name].unit is not None
        content[name] = (
            np.array(column.values, np.float64)  # None becomes NaN
            if is_number
            else pd.array(list(column.values), dtype="boolean")
        )
    content["reason"] = reasons
    return pd.DataFrame(content).rename_axis("index")


def _join_reasons(row: int, columns: dict[str, Column]) -> str | None:
    """Return "metric: reason; metric, metric: reason", or None where there is nothing to say."""
    names_of: dict[str, list[str]] = {}
    for name, column in columns.items():
        reason = column.reasons[row]
        if reason is not None:
            names_of.setdefault(reason, []).append(name)
    texts = [f"{', '.join(names)}: {reason}" for reason, names in names_of.items()]
    return "; ".join(texts) or None


def _formula(arrays: CrystalArrays) -> str:
    counts = Counter(arrays[0].tolist())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # noble gases have no electronegativity to sort by
        composition = Composition({Element.from_Z(z): count for z, count in counts.items()})
        return str(composition.reduced_formula)


def _count_entries(
    structures: Any, entries: Sequence[Entry], table: pd.DataFrame
) -> dict[str, Any]:
    is_path = isinstance(structures, str | Path)
    missing = [entry.reason for entry in entries if entry.arrays is None]
    statuses = Counter(table["status"])
    return {
        "source": str(structures) if is_path else f"a list of {len(entries)}",
        "asked": len(entries),
        "built": len(entries) - len(missing),
        "status": {status: statuses[status] for status in (OK, NOT_BUILT, FAILED)},
        "without_crystal": _count_kinds(missing),
    }


def _summarise(name: str, column: Column, entries: Sequence[Entry]) -> dict[str, Any]:
    """Return share or statistics of a metric, and its failures by kind of reason."""
    rows = list(zip(column.values, column.reasons, entries, strict=True))
    # What is no crystal is counted by what made it none.
    no_value = [
        reason if entry.arrays is not None else entry.reason
        for value, reason, entry in rows
        if value is None
    ]
    values = np.array([value for value, _, _ in rows if value is not None], np.float64)
    unit = METRICS[name].unit
    if unit is None:
        return {
            "share": float(values.sum() / len(rows)),
            "passed": int(values.sum()),
            "failed": _count_kinds([reason for value, reason, _ in rows if value is False]),
            "no_value": _count_kinds(no_value),
        }
    statistics = {
        key: float(function(values)) if len(values) else None
        for key, function in _STATISTICS.items()
    }
    return {
        "unit": unit,
        **statistics,
        "count": len(values),
        "no_value": _count_kinds(no_value),
    }


_STATISTICS: dict[str, Callable[[np.ndarray], Any]] = {
    "mean": np.mean,
    "std": np.std,
    "min": np.min,
    "median": np.median,
    "max": np.max,
}
_NUMBER = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")
_COMPARISON = re.compile(r"comparison with [^:]*: ")


def _count_kinds(reasons: Sequence[str | None]) -> dict[str, int]:
    """Return how often each kind of reason occurs, the most common first.

    A kind is the text before a colon, with # for numbers.
    """
    texts = [_COMPARISON.sub("", reason or "unknown") for reason in reasons]
    kinds = [text.removeprefix("ValueError: ").partition(":")[0] for text in texts]
    return dict(Counter(_NUMBER.sub("#", kind) for kind in kinds).most_common())


def _describe(reference: Reference) -> dict[str, Any]:
    return {
        "name": reference.name,
        "splits": list(reference.splits),
        "count": len(reference.crystals),
        "skipped": reference.num_skipped,
        "sha256": reference.sha256,
    }


def _settings(subject: Subject) -> dict[str, Any]:
    return {
        "tolerances": asdict(subject.tolerances),
        "timeout_s": subject.timeout_s,
        "min_distance": MIN_DISTANCE,
        "min_volume_per_atom": MIN_VOLUME_PER_ATOM,
        "covalent_factor": COVALENT_FACTOR,
        "oxidation_states": OXIDATION_STATES,
        "max_combinations": MAX_COMBINATIONS,
    }


def _versions() -> dict[str, str]:
    others = {name: metadata.version(name) for name in ("numpy", "pandas", "pymatgen", "smact")}
    return {"chemeleon2_jax": __version__, "python": platform.python_version(), **others}
