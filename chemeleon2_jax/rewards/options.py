"""Checks of the options of rewards, which come from configs: texts, numbers, true and false."""

from __future__ import annotations

import math
import numbers


def check_flag(value: object, name: str) -> bool:
    """Return an option that is true or false.

    Raises:
        ValueError: it is neither; a text such as "false" would count as true.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; it must be true or false")
    return value


def check_positive(value: object, name: str, *, or_zero: bool = False) -> float:
    """Return an option that is a positive number, or 0 where that means that it is absent.

    Raises:
        ValueError: no number, not finite, or not positive.
    """
    if not isinstance(value, bool) and isinstance(value, numbers.Real):
        number = float(value)
        if math.isfinite(number) and (number > 0 or (or_zero and number == 0)):
            return number
    hint = " or 0 for none" if or_zero else ""
    raise ValueError(f"{name} is {value!r}; it must be a positive number{hint}")


def check_text(value: object, name: str) -> str:
    """Return an option that is a text.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r}; it must be a text")
    return value
