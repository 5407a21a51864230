"""The table of an evaluation: a row for each crystal, a column for each metric."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from pymatgen.core import Composition, Element

from chemeleon2_jax.crystals.arrays import CrystalArrays
from chemeleon2_jax.data.structure_files import FAILED, OK, Entry
from chemeleon2_jax.metrics.metric import Column, CrystalMetric

_DTYPES = {"check": "boolean", "label": "string"}


def tabulate(
    entries: Sequence[Entry], metrics: Mapping[str, tuple[CrystalMetric, Column]]
) -> pd.DataFrame:
    """Return a row for each entry: name, formula, num_atoms, status, the metrics, reason, warning.

    Args:
        entries: the crystals that were asked for.
        metrics: each with its column, by name.
    """
    columns = {name: column for name, (_, column) in metrics.items()}
    statuses, reasons = [], []
    for row, entry in enumerate(entries):
        if entry.arrays is None:
            statuses.append(entry.status)
            reasons.append(entry.reason)
            continue
        # Without a label a crystal is not failed: atoms too close to each other have no symmetry.
        known = all(
            column.values[row] is not None
            for metric, column in metrics.values()
            if metric.kind != "label"
        )
        statuses.append(OK if known else FAILED)
        reasons.append(_join_reasons(row, columns))
    sizes = [None if entry.arrays is None else len(entry.arrays[0]) for entry in entries]
    content: dict[str, Any] = {
        "name": [entry.name for entry in entries],
        "formula": [None if e.arrays is None else _formula(e.arrays) for e in entries],
        "num_atoms": pd.array(sizes, dtype="Int64"),
        "status": statuses,
    }
    for name, (metric, column) in metrics.items():
        if metric.kind == "number":
            content[name] = column.numbers()
        else:
            content[name] = pd.array(list(column.values), dtype=_DTYPES[metric.kind])
    content["reason"] = reasons
    content["warning"] = [entry.warning for entry in entries]
    return pd.DataFrame(content).rename_axis("index")


def _join_reasons(row: int, columns: Mapping[str, Column]) -> str | None:
    """Return "metric: reason; metric, metric: reason", or None where there is no reason."""
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
