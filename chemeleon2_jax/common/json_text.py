"""Parsing of JSON that others wrote."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

MAX_NESTING = 100
"""Levels of brackets; a pymatgen Structure has about ten. Far more end Python's own stack."""


def parse_json(text: str | bytes) -> Any:
    """Return the content of a JSON text.

    Raises:
        ValueError: it is no JSON, no UTF-8, or has more than `MAX_NESTING` levels of brackets.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if data.count(b"[") + data.count(b"{") > MAX_NESTING and _nesting(data) > MAX_NESTING:
        raise ValueError(f"brackets are nested in more than {MAX_NESTING} levels")
    return json.loads(text)


def _nesting(data: bytes) -> int:
    """Return the number of levels of brackets outside of strings."""
    without_escapes = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    outside = np.frombuffer(b"".join(without_escapes.split(b'"')[::2]), np.uint8)
    opening = np.isin(outside, np.frombuffer(b"[{", np.uint8))
    closing = np.isin(outside, np.frombuffer(b"]}", np.uint8))
    levels = np.cumsum(opening.astype(np.int32) - closing)
    return int(levels.max(initial=0))
