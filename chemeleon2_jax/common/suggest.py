"""The nearest known name for a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the known name nearest to `name`, regardless of case; None if none is similar.

    Args:
        name: of the user.
        known: all valid names.
        cutoff: least similarity, 0..1 (difflib's ratio).
    """
    folded = {n.lower(): n for n in known}
    close = difflib.get_close_matches(name.lower(), list(folded), n=1, cutoff=cutoff)
    return folded[close[0]] if close else None


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return " Did you mean 'x'?" with the nearest known name, or nothing."""
    near = nearest(name, known, cutoff=cutoff)
    return "" if near is None else f" Did you mean {near!r}?"


def suggest(name: str, known: Iterable[str]) -> str:
    """Return "did you mean 'x'? Known: ..." for a name that is not in `known`."""
    names = list(known)
    near = nearest(name, names, cutoff=0.4)
    hint = "" if near is None else f"did you mean {near!r}? "
    return f"{hint}Known: {', '.join(names) if names else 'nothing'}"
