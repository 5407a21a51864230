"""Figure of a VAE's latents: tolerance curves, and what each channel carries."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from chemeleon2_jax.crystals.visualize import figure_pixels
from chemeleon2_jax.metrics.latents import Posteriors, TolerancePoint

_DOTS_PER_INCH = 120


def draw_latents(posteriors: Posteriors, points: Sequence[TolerancePoint]) -> np.ndarray:
    """Draw the shares of crystals that match and that are covalent over the noise, and nats and
    posterior width of each channel.

    Args:
        posteriors: of the latents.
        points: of one or more curves, one after the other.

    Returns:
        (height, width, 3) uint8.
    """
    figure = Figure(figsize=(9.6, 3.2), dpi=_DOTS_PER_INCH, layout="constrained")
    match, covalent, channels = figure.subplots(1, 3)
    for scale, group in groupby(points, lambda point: point.posterior_scale):
        curve = list(group)
        levels = [100.0 * point.level for point in curve]
        label = "means" if scale == 0.0 else f"posterior x {scale:g}"
        match.plot(levels, [100.0 * p.match_rate for p in curve], marker=".", label=label)
        covalent.plot(levels, [100.0 * p.covalent_share for p in curve], marker=".", label=label)
    for axes, name in ((match, "match, %"), (covalent, "covalent, %")):
        axes.set_xlabel("noise, % of each channel's spread")
        axes.set_ylabel(name)
        axes.set_ylim(0.0, 102.0)
        axes.legend(fontsize=7)
    _draw_channels(channels, posteriors)
    return figure_pixels(figure)


def _draw_channels(axes: Axes, posteriors: Posteriors) -> None:
    nats = posteriors.nats()
    places = np.arange(len(nats))
    axes.bar(places, nats, color="0.75", label=f"nats an atom ({nats.sum():.1f} in all)")
    widths = posteriors.widths() / posteriors.spread(1.0)
    axes.plot(places, widths, "o", color="black", markersize=3, label="posterior width / spread")
    axes.set_xlabel("channel")
    axes.legend(fontsize=7)
