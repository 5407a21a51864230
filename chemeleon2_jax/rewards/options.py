"""Checks of options of rewards, as configs give them: texts, numbers, true and false."""

from __future__ import annotations

import math
import numbers

from chemeleon2_jax.common.errors import RewardError


def check_flag(value: object, name: str) -> bool:
    """Return an option that is true or false.

    Raises:
        RewardError: it is neither; the text "false" would count as true.
    """
    if not isinstance(value, bool):
        raise RewardError(f"{name} is {value!r}; it must be true or false")
    return value


def check_positive(value: object, name: str, *, or_zero: bool = False) -> float:
    """Return an option that is a positive number, or 0 where that means "none".

    Raises:
        RewardError: no number, not finite, or not positive.
    """
    if not isinstance(value, bool) and isinstance(value, numbers.Real):
        number = float(value)
        if math.isfinite(number) and (number > 0 or (or_zero and number == 0)):
            return number
    hint = " or 0 for none" if or_zero else ""
    raise RewardError(f"{name} is {value!r}; it must be a positive number{hint}")


def check_text(value: object, name: str) -> str:
    """Return an option that is a text.

    Raises:
        RewardError: it is none.
    """
    if not isinstance(value, str):
        raise RewardError(f"{name} is {value!r}; it must be a text")
    return value


def read_number(text: str, name: str) -> float | None:
    """Read an option that is a number as a text; '' is None.

    Raises:
        RewardError: no number, or not finite.
    """
    if not str(text).strip():
        return None
    try:
        value = float(text)
    except ValueError:
        raise RewardError(f"{name} is {text!r}; it is a number, or '' for none") from None
    if not math.isfinite(value):
        raise RewardError(f"{name} is {text!r}; it must be finite")
    return value
