"""Bringing rewards of different units to one scale, before they are weighted and summed."""

from __future__ import annotations

import numpy as np

NORMALISATIONS = ("", "norm", "std", "subtract_mean", "clip")

EPSILON = 1e-4
"""Added to the range or the standard deviation that is divided by."""


def normalise(
    values: np.ndarray,
    how: str,
    *,
    low: float | None = None,
    high: float | None = None,
    eps: float = EPSILON,
) -> np.ndarray:
    """Return a reward's values (G,) on another scale.

    What is not finite (no value) becomes NaN and counts in no statistic.

    Args:
        values: (G,).
        how: "norm", (v - min) / (max - min + eps), so 0 to about 1; "std", (v - mean) /
            (std + eps) with the unbiased standard deviation; "subtract_mean"; "clip", to the
            bounds; or "", as they are.
        low: lower bound, for "clip"; None is no bound.
        high: upper bound, for "clip"; None is no bound.
        eps: keeps values that are all alike from being divided by 0.

    Raises:
        ValueError: an unknown normalisation, "clip" without bounds or with bounds that cross, or
            bounds with another normalisation.
    """
    check_normalisation(how, low=low, high=high)
    values = np.array(values, np.float64)
    values[~np.isfinite(values)] = np.nan
    known = values[np.isfinite(values)]
    if not len(known) or how == "":
        return values
    if how == "norm":
        return (values - known.min()) / (np.ptp(known) + eps)
    if how == "clip":
        return np.asarray(np.clip(values, low, high))
    centred = values - known.mean()
    if how == "subtract_mean":
        return centred
    spread = known.std(ddof=1) if len(known) > 1 else 0.0
    return np.asarray(centred / (spread + eps))


def check_normalisation(how: str, *, low: float | None, high: float | None) -> None:
    """Check the arguments of :func:`normalise`, before there are values.

    Raises:
        ValueError: as :func:`normalise`.
    """
    if how not in NORMALISATIONS:
        names = ", ".join(repr(name) for name in NORMALISATIONS)
        raise ValueError(f"normalisation {how!r} of rewards is unknown; choose one of {names}")
    if how != "clip":
        if low is not None or high is not None:
            raise ValueError(f"bounds {low}, {high} are for 'clip', not for normalisation {how!r}")
        return
    if low is None and high is None:
        raise ValueError("normalisation 'clip' needs a lower or an upper bound, or both")
    if low is not None and high is not None and low > high:
        raise ValueError(f"normalisation 'clip' has a lower bound {low} above the upper one {high}")
