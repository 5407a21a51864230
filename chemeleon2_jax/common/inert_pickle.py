"""Reads pickles as data: nothing that they name is imported or called.

Python's own unpickler does it, and finds no classes but those of `stubs`. Even so, a few bytes
could cost all memory, hours or the process. Guards bound time and memory by the pickle's length:

- A memo index makes the unpickler allocate a list of that length, 64 GB for 5 bytes: bounded.
- The registry of extensions holds real classes: refused.
- Hashing nested tuples overflows C's stack, and numbers that collide take hours: dicts check their
  keys first, sets are read as lists.
- Arguments and encoded text are copied: about as much as the pickle holds.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any

from chemeleon2_jax.common.errors import PickleError, UserError
from chemeleon2_jax.common.stubs import (
    Budget,
    GuardedDict,
    Name,
    Rebuild,
    Stub,
    printable,
)

_MIN_BUDGET = 3_000_000
_MAX_NAME_LENGTH = 300
_MAX_NAMES = 10_000  # of 1 kB each

# Exceptions of the unpickler at damaged values (a Warning where warnings are errors).
_DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
    Warning,
    pickle.UnpicklingError,
    struct.error,
)

_REPLACED = {
    b"}": b"(i_\ndict\n",  # EMPTY_DICT, DICT: calls with what follows the last mark
    b"d": b"i_\ndict\n",
    b"\x8f": b"]",  # EMPTY_SET, ADDITEMS, FROZENSET: list, append, tuple
    b"\x90": b"e",
    b"\x91": b"t",
    b"\x95": b"",  # FRAME, which is optional, would have another length
}
_FRAME_ARGUMENT = 8

# Operations with text, and the number of bytes of its length.
_TEXTS = {
    **dict.fromkeys((b"U", b"C", b"\x8a", b"\x8c"), 1),
    **dict.fromkeys((b"T", b"X", b"B", b"\x8b"), 4),
    **dict.fromkeys((b"\x8d", b"\x8e", b"\x96"), 8),
}

# All others except STOP, EXT1, EXT2, EXT4, PERSID and those on buffers outside of the pickle:
# without argument, with one of 1, 2, 4 or 8 bytes, of one or two lines, with a memo index.
_OTHERS = rb"""(?:
    [()\]012NQRabelostu\x81\x85-\x89\x92-\x94] | [Khq\x80]. | M.. | [Jj].{4} | G.{8}
    | [FILSVg][^\n]*\n | [ci][^\n]*\n[^\n]*\n | p[0-9]{1,%d}\n | r%b
){1,4096}"""


def load(
    data: bytes,
    *,
    rebuild: Mapping[str, Rebuild] | None = None,
    refer: Callable[[Any], Any] | None = None,
    max_operations: int | None = None,
) -> Any:
    """Return what a pickle (protocol 0 to 5) holds.

    Plain values, lists, tuples and dicts stay what they are; dicts of every kind become dicts, sets
    lists, frozen sets tuples, and all else a `Name` or a `Stub`.

    Args:
        data: the pickle.
        rebuild: functions that replace calls, by dotted name.
        refer: returns the value of a reference to something outside of the pickle.
        max_operations: limit of the pickle's bytes without its text.

    Raises:
        PickleError: the pickle is damaged, or built to do harm.
        UserError: `rebuild` or `refer` raise it.
    """
    try:
        stream = io.BufferedReader(_replace_containers(data, max_operations), 1 << 17)
        return _Reader(stream, Budget(_MIN_BUDGET + len(data)), rebuild or {}, refer).load()
    except UserError:
        raise
    except _DAMAGE as error:
        what = printable(str(error)) or type(error).__name__
        raise PickleError(f"the pickle is damaged ({what}); get the file again") from error


def _replace_containers(data: bytes, max_operations: int | None) -> Any:
    """Check the arguments of operations; return a stream with guarded dicts and without sets."""
    others = _pattern(len(data))
    out, view = io.BytesIO(), memoryview(data)
    copied = position = operations = 0
    while True:
        match = others.match(data, position)  # most, in C
        at = match.end() if match else position
        code = data[at : at + 1]
        operations += at - position + 1 + _TEXTS.get(code, 0)
        if max_operations is not None and operations > max_operations:
            raise PickleError(f"the pickle has more than {max_operations} bytes of operations")
        if code == pickle.STOP:
            break
        if code in _REPLACED:
            out.write(view[copied:at])
            out.write(_REPLACED[code])
            copied = position = at + 1 + (_FRAME_ARGUMENT if code == pickle.FRAME else 0)
        elif code in _TEXTS:
            start = at + 1 + _TEXTS[code]
            position = start + int.from_bytes(data[at + 1 : start], "little")
        elif at > position:
            position = at
        else:
            names = {opcode.code: opcode.name for opcode in pickletools.opcodes}
            what = names.get(code.decode("latin-1"), "no operation")
            raise PickleError(f"the pickle is damaged, or built to do harm, at byte {at}: {what}")
    out.write(view[copied : at + 1])
    out.seek(0)
    return out


def _pattern(length: int) -> re.Pattern[bytes]:
    """Pattern of operations whose arguments are harmless, with memo indices up to about `length`.

    It matches some thousands at a time: an endless match would remember every one.
    """
    high = length >> 16
    index = b"..[\\x00-\\x%02x]\\x00" % high
    if high > 255:
        index = b"...[\\x00-\\x%02x]" % min(high >> 8, 255)
    return re.compile(_OTHERS % (len(str(length)), index), re.DOTALL | re.VERBOSE)


class _Reader(pickle.Unpickler):
    """Python's unpickler, which finds no classes but those that are made here."""

    def __init__(
        self,
        stream: io.BufferedReader,
        budget: Budget,
        rebuild: Mapping[str, Rebuild],
        refer: Callable[[Any], Any] | None,
    ) -> None:
        super().__init__(stream, encoding="latin-1")
        self._budget, self._refer = budget, refer
        new_dict: Any = type("dict", (GuardedDict,), {"__slots__": (), "budget": budget})
        self._names: dict[tuple[str, str], type] = {("_", "dict"): new_dict}

        def encode(args: tuple[Any, ...]) -> Any:
            """Bytes, which protocol 2 writes as the encoding of a text."""
            if len(args) != 2 or not isinstance(args[0], str) or args[1] != "latin1":
                return NotImplemented
            budget.spend(len(args[0]))
            return args[0].encode("latin-1")

        def freeze(args: tuple[Any, ...]) -> Any:
            """A frozen set, which protocols 0 to 3 write as one of a list."""
            if len(args) != 1 or not isinstance(args[0], list):
                return NotImplemented
            budget.spend(len(args[0]))
            return tuple(args[0])

        self._rebuild: dict[str, Rebuild] = {
            "_codecs.encode": encode,
            "builtins.bytes": lambda args: NotImplemented if args else b"",
            "builtins.frozenset": freeze,
            "builtins.set": lambda args: args[0] if args else [],
            "collections.OrderedDict": lambda args: NotImplemented if args else new_dict(),
            "collections.defaultdict": lambda args: NotImplemented if args[1:] else new_dict(),
            "copyreg._reconstructor": _reconstruct,
            **rebuild,
        }

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return the class that stands for a name."""
        key = (module_name, global_name)
        if key not in self._names:
            # Protocols 0 to 2 write Python 2's names.
            modules = {"__builtin__": "builtins", "copy_reg": "copyreg"}
            name = f"{modules.get(module_name, module_name)}.{global_name}"
            if len(name) > _MAX_NAME_LENGTH or len(self._names) > _MAX_NAMES:
                raise PickleError(
                    f"the pickle names {len(self._names)} classes, this one with {len(name)} "
                    f"letters: {printable(name):.40}"
                )
            members = {"budget": self._budget, "rebuild": self._rebuild.get(name)}
            self._names[key] = Name("Stub", (Stub,), {"__slots__": (), "name": name, **members})
        return self._names[key]

    def persistent_load(self, pid: Any) -> Any:
        """Return the value of a reference to something outside of the pickle."""
        if self._refer is None:
            raise PickleError("the pickle refers to data outside of it")
        return self._refer(pid)


def _reconstruct(args: tuple[Any, ...]) -> Any:
    """An object as protocols 0 and 1 write it: class, base, argument of the base."""
    if len(args) != 3 or not isinstance(args[0], Name):
        return NotImplemented
    return args[0]() if args[2] is None else args[0](args[2])
