"""Quality of generated crystals against the steps of the sampler, by size of the cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from chemeleon2_jax.crystals.arrays import CrystalArrays
from chemeleon2_jax.metrics.structure import covalent_check, validity_check

LARGEST_SIZES = (4, 8, 12, 16, 20)
"""Atoms in the largest cell of each group; the last group has all larger ones."""

ALL = "all"


@dataclass(frozen=True)
class Point:
    """One point of the curve: shares 0..1 of the crystals of a group of sizes.

    Attributes:
        sampler, steps: of the chain.
        sizes: of the cells, as "5-8"; "all" for all of them.
        count: crystals.
        valid, covalent: shares that pass the checks of `chemeleon2_jax.evaluate`.
        seconds: of sampling all sizes, with compilation.
    """

    sampler: str
    steps: int
    sizes: str
    count: int
    valid: float
    covalent: float
    seconds: float


def measure(
    crystals: Sequence[CrystalArrays],
    num_atoms: np.ndarray,
    *,
    sampler: str,
    steps: int,
    seconds: float,
) -> list[Point]:
    """Return a point for each group of sizes that has crystals, and one for all of them."""
    valid, covalent = validity_check(crystals).passed, covalent_check(crystals).passed
    groups = {ALL: np.ones(len(num_atoms), bool)}
    for low, high in zip((0, *LARGEST_SIZES), (*LARGEST_SIZES, None), strict=True):
        is_inside = (num_atoms > low) & (True if high is None else num_atoms <= high)
        groups[f"over {low}" if high is None else f"{low + 1}-{high}"] = is_inside
    return [
        Point(
            sampler=sampler,
            steps=steps,
            sizes=label,
            count=int(chosen.sum()),
            valid=float(valid[chosen].mean()),
            covalent=float(covalent[chosen].mean()),
            seconds=round(seconds, 2),
        )
        for label, chosen in groups.items()
        if chosen.any()
    ]


def as_table(points: Sequence[Point]) -> str:
    """Return a Markdown table: covalent shares by sampler and size of the cell, over the steps."""
    all_steps = sorted({point.steps for point in points})
    head = ["sampler", "atoms", "crystals", *(f"{steps} steps" for steps in all_steps)]
    rows = [head, ["---"] * len(head)]
    for sampler, sizes in dict.fromkeys((point.sampler, point.sizes) for point in points):
        own = {p.steps: p for p in points if (p.sampler, p.sizes) == (sampler, sizes)}
        shares = [f"{100 * own[s].covalent:.1f}" if s in own else "" for s in all_steps]
        rows.append([sampler, sizes, str(next(iter(own.values())).count), *shares])
    return "Covalent, %:\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def draw(points: Sequence[Point], path: Path) -> None:
    """Draw a panel for each sampler, a line for each group of sizes."""
    samplers = list(dict.fromkeys(point.sampler for point in points))
    figure = Figure(figsize=(4.5 * len(samplers), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(samplers), sharey=True, squeeze=False)[0]
    for panel, sampler in zip(panels, samplers, strict=True):
        own = [point for point in points if point.sampler == sampler]
        for sizes in dict.fromkeys(point.sizes for point in own):
            line = sorted((p.steps, 100 * p.covalent) for p in own if p.sizes == sizes)
            width = 2.5 if sizes == ALL else 1.2
            panel.plot(*zip(*line, strict=True), "o-", label=f"{sizes} atoms", linewidth=width)
        panel.set(title=sampler, xlabel="steps", xscale="log", ylim=(0, 101))
        ticks = sorted({point.steps for point in own})
        panel.set_xticks(ticks, [str(steps) for steps in ticks], minor=False)
        panel.minorticks_off()
    panels[0].set_ylabel("covalent, %")
    panels[-1].legend(fontsize=8)
    figure.savefig(path, dpi=110)
