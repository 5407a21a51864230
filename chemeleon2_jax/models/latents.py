"""Moments of latents, channel by channel, with which a diffusion model standardises them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

STANDARDISATIONS = ("global", "channel")
"""Ways to standardise latents: one divisor for all, or mean and deviation of each channel."""


@dataclass(frozen=True)
class ChannelMoments:
    """Mean and standard deviation of each of L channels, over a training set's sampled latents."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check the values."""
        if not 0 < len(self.mean) == len(self.std):
            raise ValueError(f"{len(self.mean)} means and {len(self.std)} standard deviations")
        if not all(map(math.isfinite, self.mean)) or not all(0 < s < math.inf for s in self.std):
            raise ValueError("means must be finite, and standard deviations above 0")

    def standardise(self, latents: Any) -> Any:
        """Return (latents - mean) / std, (..., L); numpy or JAX arrays."""
        return (latents - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)

    def restore(self, standardised: Any) -> Any:
        """Undo `standardise`, (..., L)."""
        return standardised * np.asarray(self.std, np.float32) + np.asarray(self.mean, np.float32)

    def to_dict(self) -> dict[str, list[float]]:
        """Plain dict, for JSON."""
        return {name: list(values) for name, values in asdict(self).items()}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> ChannelMoments:
        """Undo `to_dict`.

        Raises:
            ValueError: not numbers, or numbers out of range.
        """
        if not all(type(v) in (int, float) for numbers in values.values() for v in numbers):
            raise ValueError("not lists of numbers")
        return ChannelMoments(**{name: tuple(map(float, v)) for name, v in values.items()})
