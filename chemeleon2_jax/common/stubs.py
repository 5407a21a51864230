"""Inert stand-ins for the classes and objects of a pickle, and dicts that check their keys.

Only hashing and copying may cost more than a pickle's length; a `Budget` bounds both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from chemeleon2_jax.common.errors import PickleError

Rebuild = Callable[[tuple[Any, ...]], Any]
"""Builds a value from the arguments of a call; NotImplemented where it does not understand them."""

_NUMBER_COST = 100
_MAX_KEY_LENGTH = 10_000
_MAX_KEY_PARTS = 128
_INT64 = 1 << 63
_NOTHING: Mapping[Any, Any] = MappingProxyType({})
_NUMPY_NUMBER = re.compile(r"[iu][1248]|f[248]")


class Budget:
    """Cost of reading one pickle: a unit for each item copied, 100 for each number as a key.

    Text is hashed with a secret of the process, objects by their address. Numbers can be chosen to
    collide, and so can tuples of numbers: each look-up then takes as long as there are keys.
    """

    def __init__(self, units: int) -> None:
        self._left = units

    def spend(self, units: int) -> None:
        """Raise PickleError if nothing is left."""
        self._left -= units
        if self._left < 0:
            raise PickleError("the pickle copies or hashes far more than it holds")

    def check_key(self, key: Any) -> None:
        """Raise PickleError if a key may take long to hash or to compare."""
        self.spend(_key_cost(key))


def _key_cost(key: Any) -> int:
    if key is None or isinstance(key, Name | Stub):
        return 0
    if isinstance(key, str | bytes) and len(key) <= _MAX_KEY_LENGTH:
        return 0
    if isinstance(key, float) or (isinstance(key, int) and -_INT64 <= key < _INT64):
        return _NUMBER_COST
    # Flat: hashing nested tuples recurses in C without a limit.
    if (
        isinstance(key, tuple)
        and len(key) <= _MAX_KEY_PARTS
        and not any(isinstance(part, tuple) for part in key)
    ):
        return 10 * sum(map(_key_cost, key))
    raise PickleError(f"the pickle has {short(key)} as a key of a dict")


class Name(type):
    """Stands for a class or function, such as `torch.float32`.

    It is itself a class: the unpickler makes objects of nothing else.

    Attributes:
        name: dotted name of the class or function.
    """

    name: str

    def __repr__(cls) -> str:
        return f"Name({cls.name!a})"


class Stub(metaclass=Name):
    """Stands for an object of a class, or for the result of a function.

    Attributes:
        name: dotted name of the class or function.
        args, kwargs: of the call.
        state: source of the object's attributes, mostly a dict.
        items: appended or added to it.
        mapping: set on it by key.
    """

    __slots__ = ("args", "items", "kwargs", "mapping", "state")

    name: ClassVar[str] = ""
    budget: ClassVar[Budget]
    rebuild: ClassVar[Rebuild | None] = None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    state: Any
    items: Sequence[Any]
    mapping: Mapping[Any, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Return the value that `rebuild` makes of the arguments, or else a stub with them."""
        cls.budget.spend(len(args) + len(kwargs))
        if cls.rebuild is not None and not kwargs:
            value = cls.rebuild(args)
            if value is not NotImplemented:
                return value
        stub = object.__new__(cls)
        stub.args, stub.kwargs, stub.state = args, kwargs or _NOTHING, None
        stub.items, stub.mapping = (), _NOTHING
        return stub

    def __repr__(self) -> str:
        # Without its parts: they may be nested deeply, or hold the stub itself.
        return f"Stub({self.name!a})"

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.budget.check_key(key)
        if not isinstance(self.mapping, dict):
            self.mapping = {}
        self.mapping[key] = value

    def extend(self, values: Iterable[Any]) -> None:
        """Keep items."""
        if not isinstance(self.items, list):
            self.items = []
        self.items.extend(values)

    def get(self, attribute: str, default: Any = None) -> Any:
        """Return an attribute of the object: of its state, a part of a module, or an item."""
        states = self.state if isinstance(self.state, tuple) else (self.state,)
        dicts = [state for state in states if isinstance(state, dict)]
        for values in dicts:
            if attribute in values:
                return values[attribute]
        parts = [d.get(k) for d in dicts for k in ("_modules", "_parameters", "_buffers")]
        for part in (*parts, self.mapping):
            if isinstance(part, Mapping) and attribute in part:
                return part[attribute]
        return default


class GuardedDict(dict[Any, Any]):
    """A dict that checks keys before it hashes them."""

    __slots__ = ()
    budget: ClassVar[Budget]

    def __init__(self, *keys_and_values: Any) -> None:
        super().__init__()
        self.budget.spend(len(keys_and_values))
        for key, value in zip(keys_and_values[::2], keys_and_values[1::2], strict=True):
            self[key] = value

    def __setitem__(self, key: Any, value: Any) -> None:
        if type(key) is not str or len(key) > _MAX_KEY_LENGTH:  # most are short text
            self.budget.check_key(key)
        dict.__setitem__(self, key, value)

    def __setstate__(self, state: Any) -> None:
        """Drop attributes, such as an OrderedDict's (a state dict's `_metadata`)."""


def numpy_number(value: Any) -> Any:
    """Return the number of a pickled scalar of numpy's; anything else stays."""
    if not isinstance(value, Stub) or not value.name.endswith("multiarray.scalar"):
        return value
    match value.args:
        # A dtype of a code with the state (version, byte order, ...), and bytes.
        case (Stub(args=(str(code), *_), state=(_, str(order), *_)), bytes(data)):
            kind = f"{order.replace('|', '=')}{code}"
            if order in "<>=|" and _NUMPY_NUMBER.fullmatch(code) and len(data) == int(code[1:]):
                return np.frombuffer(data, kind)[0].item()
    return value


def short(value: Any) -> str:
    """Return a few printable characters for any value."""
    if isinstance(value, str | bytes):
        return ascii(value[:60])
    if isinstance(value, int) and abs(value) < _INT64:
        return str(value)
    return repr(value) if isinstance(value, Name | Stub) else f"a {type(value).__name__}"


def printable(text: str) -> str:
    """Return any text so that a terminal can show it, up to 160 characters."""
    return ascii(text)[1:-1][:160]
