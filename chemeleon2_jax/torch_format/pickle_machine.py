"""Stack, marks and memo of a pickle that is read as data, and the limits of what it may ask for.

Hashing and copying are what can cost more than a pickle's length: both are bounded here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.torch_format.stubs import Name, Stub, short

MAX_OPERATIONS = 3_000_000
"""Most operations; copying a container costs as many as it has items."""

# What keys of dicts and sets cost, in operations. Text is hashed with a secret of the process, but
# numbers can be chosen to collide, and tuples of numbers easily: each look-up then takes as long as
# there are keys.
_NUMBER_COST = 100
_TUPLE_COST = 1000
_MAX_KEY_LENGTH = 10_000
_MAX_KEY_TUPLE = 8
_MAX_NAME = 300
_NAME_CHARACTERS = 16
_CHARACTERS_PER_OPERATION = 64
_INT64 = 1 << 63

# Python 2's names, which protocol 2 writes.
_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}

Call = Callable[["Machine", tuple[Any, ...]], Any]
"""Stands for a function: the value that it returns, NotImplemented where a stub is to be made."""


class Machine:
    """Stack, marks and memo of one pickle."""

    def __init__(self, calls: Mapping[str, Call], persistent: Callable[[Any], Any] | None) -> None:
        self.calls = calls
        self.persistent = persistent
        self.operations = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: list[Any] = []

    def charge(self, operations: int) -> None:
        """Count operations; an error once there are too many."""
        self.operations += operations
        if self.operations > MAX_OPERATIONS:
            raise CheckpointError(
                f"the pickle needs more than {MAX_OPERATIONS} operations, far more than a model's"
            )

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def pop(self) -> Any:
        """Take the last value."""
        self.top()
        return self.stack.pop()

    def top(self) -> Any:
        """Return the last value, which must lie above the last mark."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise CheckpointError("the pickle is damaged: it takes a value where there is none")
        return self.stack[-1]

    def mark(self) -> None:
        """Remember how many values there are."""
        self.marks.append(len(self.stack))

    def pop_mark(self) -> list[Any]:
        """Return the values above the last mark, and take both away."""
        if not self.marks:
            raise CheckpointError("the pickle is damaged: it takes values where there is no mark")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def put(self, index: int) -> None:
        """Remember the last value under an index."""
        # A list, not a dict: an index may be up to 2**32, but picklers count from 0.
        if not 0 <= index < MAX_OPERATIONS:
            raise CheckpointError(f"the pickle is damaged: memo index {short(index)}")
        if index >= len(self.memo):
            self.memo.extend([_ABSENT] * (index + 1 - len(self.memo)))
        self.memo[index] = self.top()

    def get(self, index: int) -> None:
        """Put the value that an index remembers on the stack."""
        value = self.memo[index] if 0 <= index < len(self.memo) else _ABSENT
        if value is _ABSENT:
            raise CheckpointError(f"the pickle is damaged: nothing at memo index {short(index)}")
        self.push(value)

    def name(self, module: Any, qualified: Any) -> Name:
        """Return what stands for a class or function."""
        if not (isinstance(module, str) and isinstance(qualified, str)):
            raise CheckpointError("the pickle is damaged: a class whose name is not text")
        length = len(module) + len(qualified)
        if length > _MAX_NAME:
            raise CheckpointError(f"the pickle names a class of {length} letters")
        self.charge(length // _NAME_CHARACTERS)
        return Name(f"{_MODULES.get(module, module)}.{qualified}")

    def call(self, function: Any, args: Any, kwargs: Any = None) -> Any:
        """Return what stands for the result of a call."""
        if not isinstance(args, tuple):
            raise CheckpointError("the pickle is damaged: a call whose arguments are no tuple")
        if not isinstance(function, Name | Stub):
            raise CheckpointError(f"the pickle is damaged: a call of {short(function)}")
        name = function.name
        if isinstance(function, Name) and not kwargs and name in self.calls:
            self.charge(sum(_copy_cost(value) for value in args))
            value = self.calls[name](self, args)
            if value is not NotImplemented:
                return value
        self.charge(len(kwargs or ()))
        return Stub(name, args, kwargs)

    def key(self, key: Any) -> Any:
        """Return a key of a dict or set, once it is known to be harmless to hash."""
        if not _is_key(key):
            raise CheckpointError(f"the pickle has {short(key)} as a key of a dict or set")
        if isinstance(key, int | float):
            self.charge(_NUMBER_COST)
        elif isinstance(key, tuple):
            self.charge(_TUPLE_COST)
        return key

    def dictionary(self, values: list[Any]) -> dict[Any, Any]:
        """Return a dict of keys and values in turn."""
        if len(values) % 2:
            raise CheckpointError("the pickle is damaged: a key without a value")
        return {self.key(k): v for k, v in zip(values[::2], values[1::2], strict=True)}

    def set_items(self, values: list[Any]) -> None:
        """Set items, given as keys and values in turn, on the last value."""
        target = self.top()
        mapping = target.mapping if isinstance(target, Stub) else target
        if not isinstance(mapping, dict):
            raise CheckpointError(f"the pickle is damaged: it sets an item of {short(target)}")
        mapping.update(self.dictionary(values))

    def append(self, values: list[Any]) -> None:
        """Append to the last value."""
        target = self.top()
        items = target.items if isinstance(target, Stub) else target
        if not isinstance(items, list):
            raise CheckpointError(f"the pickle is damaged: it appends to {short(target)}")
        items.extend(values)

    def add(self, values: list[Any]) -> None:
        """Add to the last value, a set."""
        target = self.top()
        if isinstance(target, Stub):
            target.items.extend(values)
            return
        if not isinstance(target, set):
            raise CheckpointError(f"the pickle is damaged: it adds to {short(target)}")
        target.update([self.key(value) for value in values])

    def build(self, state: Any) -> None:
        """Set the last value's attributes."""
        target = self.top()
        # Attributes of an OrderedDict (a state dict's `_metadata`) and the like are not kept.
        if isinstance(target, Stub):
            target.state = state

    def refer(self, reference: Any) -> Any:
        """Return what stands for something outside of the pickle."""
        if self.persistent is None:
            raise CheckpointError("the pickle refers to data outside of it")
        return self.persistent(reference)


_ABSENT = object()


def _is_key(key: Any) -> bool:
    """Whether hashing a key, and comparing it with others, takes little time."""
    if isinstance(key, tuple):
        # Flat: hashing nested tuples recurses in C without a limit.
        return len(key) <= _MAX_KEY_TUPLE and all(
            not isinstance(part, tuple) and _is_key(part) for part in key
        )
    if isinstance(key, str | bytes):
        return len(key) <= _MAX_KEY_LENGTH
    if isinstance(key, int):
        return -_INT64 <= key < _INT64
    return key is None or isinstance(key, float | Name | Stub)


def _copy_cost(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value) // _CHARACTERS_PER_OPERATION
    return len(value) if isinstance(value, list | tuple | dict | set | frozenset) else 0
