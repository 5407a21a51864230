"""Bringing rewards of different units to one scale, before they are weighted and summed."""

from __future__ import annotations

import numpy as np

NORMALISATIONS = ("", "norm", "std", "subtract_mean")

EPSILON = 1e-4
"""Added to the range or the standard deviation that is divided by."""


def normalise(values: np.ndarray, how: str, *, eps: float = EPSILON) -> np.ndarray:
    """Return a reward's values (G,) on another scale.

    What is not finite (no value) becomes NaN and counts in no statistic.

    Args:
        values: (G,).
        how: "norm", (v - min) / (max - min + eps), so 0 to about 1; "std", (v - mean) /
            (std + eps) with the unbiased standard deviation; "subtract_mean"; or "", unchanged.
        eps: keeps values that are all alike from being divided by 0.

    Raises:
        ValueError: an unknown normalisation.
    """
    if how not in NORMALISATIONS:
        names = ", ".join(repr(name) for name in NORMALISATIONS)
        raise ValueError(f"normalisation {how!r} of rewards is unknown; choose one of {names}")
    values = np.array(values, np.float64)
    values[~np.isfinite(values)] = np.nan
    known = values[np.isfinite(values)]
    if not len(known) or how == "":
        return values
    if how == "norm":
        return (values - known.min()) / (np.ptp(known) + eps)
    centred = values - known.mean()
    if how == "subtract_mean":
        return centred
    spread = known.std(ddof=1) if len(known) > 1 else 0.0
    return np.asarray(centred / (spread + eps))
