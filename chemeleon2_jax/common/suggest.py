"""The nearest of the known names for one that is misspelt."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def suggest(name: str, known: Iterable[str]) -> str:
    """Return "did you mean 'x'? Known: ..." for a name that is none of `known`."""
    names = list(known)
    folded = {n.lower(): n for n in names}
    close = difflib.get_close_matches(name.lower(), list(folded), n=1, cutoff=0.4)
    hint = f"did you mean {folded[close[0]]!r}? " if close else ""
    return f"{hint}Known: {', '.join(names) if names else 'nothing'}"
