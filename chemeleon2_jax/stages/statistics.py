"""Mean and standard deviation of properties: from the config, else from the training set."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.crystals.arrays import Crystals
from chemeleon2_jax.runs.config import split_names

Moments = dict[str, tuple[float, float]]
"""Name of a property -> mean and standard deviation, in its unit."""


def read_statistics(text: str, names: Iterable[str], train: Crystals, *, key: str) -> Moments:
    """Return the statistics of properties: from the text, else those of the training set.

    Args:
        text: "name:mean:std", comma-separated, in the unit of the property.
        names: of the properties.
        train: crystals with these properties.
        key: of `text` in the config, for messages.

    Raises:
        ConfigError: text of another form, an unknown property, or a constant one.
    """
    names = tuple(names)
    in_text = _parse(text, key)
    unknown = sorted(set(in_text) - set(names))
    if unknown:
        raise ConfigError(
            f"{key} names {', '.join(unknown)}; there are {', '.join(names) or 'none'}"
        )
    moments = {}
    for name in names:
        values = train.targets[name].astype(np.float64)
        mean, std = in_text.get(name, (float(values.mean()), float(values.std())))
        if not np.isfinite([mean, std]).all() or std <= 0:
            raise ConfigError(
                f"{name!r} has mean {mean:g} and standard deviation {std:g}: there is nothing to "
                "learn"
            )
        moments[name] = (mean, std)
    return moments


def _parse(text: str, key: str) -> Moments:
    moments: Moments = {}
    for part in split_names(text):
        name, *numbers = (piece.strip() for piece in part.split(":"))
        try:
            mean, std = map(float, numbers)
        except ValueError:
            raise ConfigError(
                f"{key} has the part {part!r}; it is name:mean:std, comma-separated, as in "
                "dft_band_gap:0.797:1.408"
            ) from None
        if name in moments:
            raise ConfigError(f"{key} names {name!r} twice")
        moments[name] = (mean, std)
    return moments
