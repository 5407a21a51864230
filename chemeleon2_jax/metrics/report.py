"""How good crystals are: a table with a row for each, and a summary."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from absl import logging
from pymatgen.core import Structure

from chemeleon2_jax.crystals.geometry import as_arrays, find_problem
from chemeleon2_jax.crystals.limits import check_cell, check_num_atoms
from chemeleon2_jax.data.references import check_renames, load_reference
from chemeleon2_jax.data.structure_files import FAILED, NOT_BUILT, Entry, read_entries
from chemeleon2_jax.metrics.matching import TIMEOUT_S, Tolerances
from chemeleon2_jax.metrics.metric import Column, CrystalMetric, FeatureModel, Subject
from chemeleon2_jax.metrics.registry import FEATURES, METRICS, NEEDS, REFERENCE, choose_metrics
from chemeleon2_jax.metrics.structure import measure_all
from chemeleon2_jax.metrics.summary import (
    compare_with_random,
    count_entries,
    describe_reference,
    list_settings,
    list_versions,
    score_set,
    summarise,
)
from chemeleon2_jax.metrics.table import tabulate
from chemeleon2_jax.workers import WorkerPool


@dataclass(frozen=True)
class Report:
    """The result of `evaluate`.

    Attributes:
        table: a row for each crystal that was asked for: name, formula, num_atoms, status ("ok",
            "not built", or "failed": it cannot be read, or a metric has no value), a column for
            each metric of a crystal, the reasons of what did not pass or has no value, and
            warnings: what a file declares that disagrees with its crystal, and what was assumed.
        summary: "metrics" of the crystals, and those of the whole "set". Shares are of all crystals
            asked for: what could not be built has failed.
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
    feature_model: FeatureModel | None = None,
    unique_rule: str = "first",
    rename: Mapping[str, str] | None = None,
) -> Report:
    """Evaluate generated crystals.

    Args:
        structures: pymatgen structures, (atom_types, frac_coords, lattice) triples, or None for
            crystals that could not be built; or the path of a folder that `sample` wrote, of a
            folder of CIFs, or of a JSON, CSV or CIF file.
        reference: known crystals: the name of a data set, the path of a folder with `train.csv`,
            any path as above, or a list of structures.
        metrics: names from :data:`~chemeleon2_jax.metrics.registry.METRICS`; None is all that can
            be computed.
        reference_splits: the splits of a data set that count.
        tolerances: of StructureMatcher; None are its defaults.
        timeout_s: limit for one comparison, in seconds.
        num_workers: processes; None is one a CPU, up to 16; 0 is this one.
        rename: column of a CSV file, of the structures or the reference -> its name here.
        unique_rule: groups of the same crystals: `first` or `components`; see
            :func:`~chemeleon2_jax.metrics.uniqueness.find_unique`.
        feature_model: a VAE (`load_model("mp_20_vae")`), for metrics that compare its features.

    Raises:
        DatasetError: no such file, folder or data set, or nothing in it.
        ValueError: no structure, an unknown metric, or one that needs what is not given.
    """
    inputs = {REFERENCE: reference, FEATURES: feature_model}
    given = {need for need, value in inputs.items() if value is not None}
    names = choose_metrics(metrics, given=given)
    check_renames(rename or {}, (structures, reference))
    seconds = _Stopwatch()
    with WorkerPool(num_workers) as pool:
        source, entries = _read(structures, pool, rename or {})
        seconds.stop("structures")
        if not metrics:
            _log_left_out(given)
        known = None
        if any(REFERENCE in METRICS[name].needs for name in names):
            known = load_reference(reference, pool, splits=reference_splits, rename=rename)
            seconds.stop("reference")
        elif reference is not None:
            logging.info("None of the metrics needs the reference; it is not loaded.")
        subject = Subject(
            crystals=[entry.arrays for entry in entries],
            pool=pool,
            tolerances=tolerances or Tolerances(),
            timeout_s=timeout_s,
            reference=known,
            feature_model=feature_model,
            unique_rule=unique_rule,
        )
        columns, scores = _compute(names, subject, seconds)
    table = tabulate(entries, columns)
    summary = {
        "structures": count_entries(source, entries, table["status"].tolist()),
        "metrics": {name: summarise(*pair, entries) for name, pair in columns.items()},
        "set": scores,
        "random": compare_with_random(list(columns), subject),
        "reference": None if known is None else describe_reference(known),
        "settings": list_settings(subject),
        "versions": list_versions(),
        "seconds": seconds.laps,
    }
    return Report(table, summary)


def _compute(
    names: Sequence[str], subject: Subject, seconds: _Stopwatch
) -> tuple[dict[str, tuple[CrystalMetric, Column]], dict[str, dict[str, Any]]]:
    """Return the metrics of crystals with their columns, and the scores of the set, by name."""
    columns, scores = {}, {}
    for name in names:
        metric = METRICS[name]
        if isinstance(metric, CrystalMetric):
            columns[name] = (metric, subject.once(metric.compute))
        else:
            scores[name] = score_set(metric, subject)
        seconds.stop(name)
    return columns, scores


def _log_left_out(given: Collection[str]) -> None:
    """Log the default metrics that are not computed, and the missing input of each."""
    left_out: dict[str, list[str]] = {}
    for name, metric in METRICS.items():
        missing = [need for need in metric.needs if need not in given]
        if missing:
            left_out.setdefault(missing[0], []).append(name)
    for need, names in left_out.items():
        logging.info("Without %s: they need %s.", ", ".join(names), NEEDS[need])


class _Stopwatch:
    """Seconds since the last stop, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._start = time.perf_counter()

    def stop(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self._start, 3)
        self._start = now


def _read(structures: Any, pool: WorkerPool, rename: Mapping[str, str]) -> tuple[str, list[Entry]]:
    """Return where the crystals are from, and an entry for each that was asked for."""
    if isinstance(structures, str | Path):
        entries = read_entries(structures, pool, rename=rename)
        return str(structures), _check(entries, pool)
    if isinstance(structures, Structure):  # a sequence of its sites
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
    return f"a list of {len(entries)}", _check(entries, pool)


def _check(entries: Sequence[Entry], pool: WorkerPool) -> list[Entry]:
    """Take the arrays from entries that cannot be measured, or are beyond the limits: no metric has
    a value for them.
    """
    limited = [_check_limits(entry) for entry in entries]
    geometries = measure_all([entry.arrays for entry in limited], pool)
    return [
        entry if entry.arrays is None or geometry.error is None else _fail(entry, geometry.error)
        for entry, geometry in zip(limited, geometries, strict=True)
    ]


def _check_limits(entry: Entry) -> Entry:
    if entry.arrays is None or find_problem(*entry.arrays):
        return entry  # a broken crystal has that reason
    try:
        check_num_atoms(len(entry.arrays[0]))
        check_cell(entry.arrays[2])
    except ValueError as problem:
        return _fail(entry, str(problem))
    return entry


def _fail(entry: Entry, reason: str) -> Entry:
    return replace(entry, arrays=None, status=FAILED, reason=reason)
