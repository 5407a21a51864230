"""The summary of an evaluation: shares, means, counts, and what failed and why."""

from __future__ import annotations

import platform
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from types import MappingProxyType
from typing import Any

import numpy as np

from chemeleon2_jax.common.version import __version__
from chemeleon2_jax.data.references import Reference
from chemeleon2_jax.data.structure_files import FAILED, NOT_BUILT, OK, Entry
from chemeleon2_jax.metrics.metric import Column, CrystalMetric, SetMetric, SetScore, Subject
from chemeleon2_jax.metrics.registry import METRICS

_STATISTICS: Mapping[str, Callable[[np.ndarray], Any]] = MappingProxyType(
    {"mean": np.mean, "std": np.std, "min": np.min, "median": np.median, "max": np.max}
)
_NUMBER = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")
_COMPARISON = re.compile(r"comparison with [^:]*: ")


def count_entries(source: str, entries: Sequence[Entry], statuses: Sequence[str]) -> dict[str, Any]:
    """Return how many crystals were asked for and built, and why the others were not."""
    missing = [entry.reason for entry in entries if entry.arrays is None]
    counts = Counter(statuses)
    return {
        "source": source,
        "asked": len(entries),
        "built": len(entries) - len(missing),
        "status": {status: counts[status] for status in (OK, NOT_BUILT, FAILED)},
        "without_crystal": _count_kinds(missing),
        "warnings": _count_kinds([entry.warning for entry in entries if entry.warning]),
    }


def summarise(metric: CrystalMetric, column: Column, entries: Sequence[Entry]) -> dict[str, Any]:
    """Return share, statistics or counts of a metric, and its failures by kind of reason."""
    rows = list(zip(column.values, column.reasons, entries, strict=True))
    # An entry without a crystal is counted by its own reason.
    no_value = _count_kinds(
        [
            reason if entry.arrays is not None else entry.reason
            for value, reason, entry in rows
            if value is None
        ]
    )
    known = [value for value in column.values if value is not None]
    if metric.kind == "check":
        return {
            "share": sum(map(bool, known)) / len(rows),
            "passed": sum(map(bool, known)),
            "failed": _count_kinds([reason for value, reason, _ in rows if value is False]),
            "no_value": no_value,
        }
    if metric.kind == "label":
        counts = dict(Counter(known).most_common())
        return {"counts": counts, "count": len(known), "no_value": no_value}
    numbers = column.numbers()[[value is not None for value in column.values]]
    statistics = {
        key: float(function(numbers)) if len(numbers) else None
        for key, function in _STATISTICS.items()
    }
    return {"unit": metric.unit, **statistics, "count": len(known), "no_value": no_value}


def score_set(metric: SetMetric, subject: Subject) -> dict[str, Any]:
    """Return a metric's value of the whole set, or the reason why there is none."""
    score, reason = SetScore(np.nan, 0), None
    try:
        score = subject.once(metric.compute)
    except ValueError as error:
        reason = str(error)
    if reason is None and not np.isfinite(score.value):
        reason = f"not finite: {score.value}"
    value = None if reason else float(score.value)
    return {"value": value, "unit": metric.unit, "count": score.count, "reason": reason}


def describe_reference(reference: Reference) -> dict[str, Any]:
    """Return name, splits, size and checksum of a reference."""
    return {
        "name": reference.name,
        "splits": list(reference.splits),
        "count": len(reference.crystals),
        "skipped": reference.num_skipped,
        "sha256": reference.sha256,
    }


def list_settings(subject: Subject) -> dict[str, Any]:
    """Return the tolerances and limits, and the constants of all metrics."""
    settings = {"tolerances": asdict(subject.tolerances), "timeout_s": subject.timeout_s}
    for metric in METRICS.values():
        settings |= metric.settings
    return settings


def list_versions() -> dict[str, str]:
    """Return the versions of this package and of those that metrics depend on."""
    others = {name: metadata.version(name) for name in ("numpy", "pandas", "pymatgen", "smact")}
    return {"chemeleon2_jax": __version__, "python": platform.python_version(), **others}


def _count_kinds(reasons: Sequence[str | None]) -> dict[str, int]:
    """Return how often each kind of reason occurs, the most common first.

    A kind is the text before a colon, with # for numbers.
    """
    texts = [_COMPARISON.sub("", reason or "unknown") for reason in reasons]
    kinds = [text.removeprefix("ValueError: ").partition(":")[0] for text in texts]
    return dict(Counter(_NUMBER.sub("#", kind) for kind in kinds).most_common())
