"""What stands for the classes and functions that a pickle names: inert, but readable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function that the pickle names and does not call, such as `torch.float32`."""

    name: str

    def __repr__(self) -> str:
        return f"Name({self.name!r})"


class Stub:
    """Stands for an object of a class, or for what a function would return.

    Attributes:
        name: dotted name of the class or function.
        args, kwargs: what it is called with.
        state: what the object's attributes are set from: mostly a dict.
        items: what is appended to it (or added).
        mapping: items that are set on it.
    """

    __slots__ = ("args", "items", "kwargs", "mapping", "name", "state")

    def __init__(
        self, name: str, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> None:
        self.name = name
        self.args = args
        self.kwargs: dict[str, Any] = dict(kwargs or {})
        self.state: Any = None
        self.items: list[Any] = []
        self.mapping: dict[Any, Any] = {}

    def __repr__(self) -> str:
        # Not what it holds: that may be nested deeply, or hold the stub itself.
        return f"Stub({self.name!r})"

    def get(self, attribute: str, default: Any = None) -> Any:
        """Return an attribute of the object: of its state, a part of a module, or an item."""
        states = self.state if isinstance(self.state, tuple) else (self.state,)
        dicts = [state for state in states if isinstance(state, dict)]
        parts = [d.get(k) for d in dicts for k in ("_modules", "_parameters", "_buffers")]
        for values in (*dicts, *parts, self.mapping):
            if isinstance(values, dict) and attribute in values:
                return values[attribute]
        return default


def printable(text: str) -> str:
    """Return a name as it can be shown on a terminal, whatever it holds."""
    return ascii(text)[1:-1][:160]


def short(value: Any) -> str:
    """Return a few printable characters that say what a value is, whatever it holds."""
    if isinstance(value, str | bytes):
        return ascii(value[:60])
    if isinstance(value, int) and abs(value) < 1 << 63:
        return str(value)
    return ascii(value) if isinstance(value, Name | Stub) else f"a {type(value).__name__}"
