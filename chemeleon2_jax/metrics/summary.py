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
from chemeleon2_jax.crystals.geometry import randomise_coordinates
from chemeleon2_jax.data.references import Reference
from chemeleon2_jax.data.structure_files import FAILED, NOT_BUILT, OK, Entry
from chemeleon2_jax.metrics.metric import Column, CrystalMetric, SetMetric, SetScore, Subject
from chemeleon2_jax.metrics.registry import METRICS
from chemeleon2_jax.metrics.structure import covalent_check, measure_all, validity_check

_STATISTICS: Mapping[str, Callable[[np.ndarray], Any]] = MappingProxyType(
    {"mean": np.mean, "std": np.std, "min": np.min, "median": np.median, "max": np.max}
)
_GEOMETRY_CHECKS = {"valid": validity_check, "covalent": covalent_check}
_NUM_RESAMPLES = 1000
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
        passed = sum(map(bool, known))
        undecided = sum(value is None and entry.arrays is not None for value, _, entry in rows)
        decided = len(rows) - undecided
        return {
            "share": passed / decided if decided else None,
            "interval": _share_interval(passed, decided),
            "passed": passed,
            "undecided": undecided,
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
    return {
        "unit": metric.unit,
        **statistics,
        "interval": _mean_interval(numbers),
        "count": len(known),
        "no_value": no_value,
    }


def _share_interval(passed: int, count: int) -> list[float] | None:
    """Return the 95 % bootstrap interval of a share: crystals drawn again with replacement."""
    if not count:
        return None
    rng = np.random.default_rng(0)
    return _percentiles(rng.binomial(count, passed / count, _NUM_RESAMPLES) / count)


def _mean_interval(numbers: np.ndarray) -> list[float] | None:
    """Return the 95 % bootstrap interval of a mean."""
    if not len(numbers):
        return None
    rng = np.random.default_rng(0)
    means = [
        numbers[rng.integers(len(numbers), size=len(numbers))].mean() for _ in range(_NUM_RESAMPLES)
    ]
    return _percentiles(np.array(means))


def _percentiles(values: np.ndarray) -> list[float]:
    return [float(value) for value in np.percentile(values, (2.5, 97.5))]


def compare_with_random(names: Sequence[str], subject: Subject) -> dict[str, Any]:
    """Return the shares of random crystals that pass the chosen checks of geometry.

    They have the cells and atoms of the crystals, and coordinates drawn uniformly: what passes a
    check no more often than these has no structure. They are unique and novel nearly always.
    """
    randomised = randomise_coordinates(subject.crystals)
    chosen = {name: check for name, check in _GEOMETRY_CHECKS.items() if name in names}
    geometries = measure_all(randomised, subject.pool) if chosen else []
    count = sum(crystal is not None for crystal in randomised)
    shares = {
        name: check(geometries).passed.sum() / max(count, 1) for name, check in chosen.items()
    }
    return {"count": count, "shares": {name: float(share) for name, share in shares.items()}}


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
    settings = {
        "tolerances": asdict(subject.tolerances),
        "timeout_s": subject.timeout_s,
        "unique_rule": subject.unique_rule,
    }
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
