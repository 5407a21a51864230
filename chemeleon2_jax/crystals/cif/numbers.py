"""Numbers of CIFs, with their uncertainty in brackets and the digits that they are given with."""

from __future__ import annotations

import math
import re

_NUMBER = re.compile(r"[+-]?(?:\d+\.?(\d*)|\.(\d+))(?:[eE]([+-]?\d{1,3}))?(?=\(|$)")
_FRACTION = re.compile(r"([+-]?\d{1,4})/(\d{1,4})$")
EXACT = 99
"""Digits of a number without rounding."""


def read_number(text: str, *, label: str) -> tuple[float, int]:
    """Return a number, and how many decimals it is given with.

    Args:
        text: "5.64(1)", "-1.2e-3" or "1/3".
        label: of the number, for the error.

    Raises:
        ValueError: no number, or one too large.
    """
    match = _NUMBER.match(text)
    if match is not None:
        exponent, value = int(match[3] or 0), float(match[0])
        if not math.isfinite(value):
            raise ValueError(f"unparsable CIF: {label} is {text[:30]!r}, too large a number")
        return value, len(match[1] or match[2] or "") - exponent
    fraction = _FRACTION.match(text)
    if fraction is not None and int(fraction[2]):
        return int(fraction[1]) / int(fraction[2]), EXACT
    problem = f"is {text[:30]!r}, no number" if text else "is not given"
    raise ValueError(f"unparsable CIF: {label} {problem}")
