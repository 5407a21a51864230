"""A pickle as data: nothing that it names is imported or called.

What a pickle would build by calling a class or a function becomes a `Stub`, whose name, arguments
and attributes can be read. Only containers and plain values are what they would be in Python, and
what the caller's own functions rebuild (`calls`). A pickle is bytes that anybody may have written:
time and memory are bounded by its length, whatever it says.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Mapping
from typing import Any

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.torch_format.pickle_machine import Call, Machine
from chemeleon2_jax.torch_format.stubs import Name, Stub

__all__ = ["MAX_BYTES", "Name", "Stub", "load"]

MAX_BYTES = 64 << 20
"""Longest pickle. That of a model with hundreds of millions of parameters has well below 1 MB."""

# What the tokeniser and conversions of damaged values raise (a Warning where those are errors).
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
    struct.error,
)

Rebuild = Callable[[tuple[Any, ...]], Any]
"""Builds a value from the arguments of a call; NotImplemented where it does not understand them."""


def load(
    data: bytes,
    *,
    where: str,
    calls: Mapping[str, Rebuild] | None = None,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Return what a pickle (protocol 0 to 5) holds.

    Args:
        data: the pickle.
        where: begins each error: the file that the pickle is in.
        calls: dotted name of a class or function -> what stands for calling it.
        persistent: what stands for a reference to something outside of the pickle.

    Raises:
        CheckpointError: the pickle is damaged, or built to do harm.
    """
    if len(data) > MAX_BYTES:
        raise CheckpointError(f"{where}: {len(data)} bytes are more than any checkpoint's pickle")
    adapted = {name: _adapt(rebuild) for name, rebuild in (calls or {}).items()}
    machine = Machine({**_OWN, **adapted}, persistent)
    try:
        return _run(machine, data)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from None
    except _DAMAGE as error:
        what = type(error).__name__
        raise CheckpointError(
            f"{where}: the pickle is damaged at operation {machine.operations} ({what}); "
            "get the file again"
        ) from error


def _run(machine: Machine, data: bytes) -> Any:
    for opcode, argument, _ in pickletools.genops(data):
        machine.charge(1)
        operation = _OPERATIONS.get(opcode.name)
        if operation is None:
            raise CheckpointError(f"the pickle uses {opcode.name}, which torch.save does not")
        operation(machine, argument)
    return machine.pop()


def _adapt(rebuild: Rebuild) -> Call:
    return lambda machine, args: rebuild(args)


# --- calls that are what they would be in Python; NotImplemented makes a stub ---------------------


def _make_dict(machine: Machine, args: tuple[Any, ...]) -> Any:
    """A dict: of nothing, of a dict, or of a list of pairs."""
    source = args[0] if len(args) == 1 else {} if not args else None
    if isinstance(source, dict):
        return dict(source)
    if not isinstance(source, list | tuple):
        return NotImplemented
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in source):
        return NotImplemented
    return machine.dictionary([part for pair in source for part in pair])


def _make_defaultdict(machine: Machine, args: tuple[Any, ...]) -> Any:
    return _make_dict(machine, args[1:])


def _make_set(machine: Machine, args: tuple[Any, ...]) -> Any:
    values = _sequence(args)
    return NotImplemented if values is None else {machine.key(value) for value in values}


def _make_frozenset(machine: Machine, args: tuple[Any, ...]) -> Any:
    values = _make_set(machine, args)
    return NotImplemented if values is NotImplemented else frozenset(values)


def _make_list(machine: Machine, args: tuple[Any, ...]) -> Any:
    values = _sequence(args)
    return NotImplemented if values is None else list(values)


def _make_tuple(machine: Machine, args: tuple[Any, ...]) -> Any:
    values = _sequence(args)
    return NotImplemented if values is None else tuple(values)


def _sequence(args: tuple[Any, ...]) -> Any:
    if not args:
        return ()
    return args[0] if len(args) == 1 and isinstance(args[0], list | tuple | set) else None


def _make_plain(machine: Machine, args: tuple[Any, ...]) -> Any:
    """A number or text that is given as what it is."""
    plain = len(args) == 1 and isinstance(args[0], bool | int | float | str | bytes)
    return args[0] if plain else NotImplemented


def _make_bytes(machine: Machine, args: tuple[Any, ...]) -> Any:
    return b"" if not args else _make_plain(machine, args)


def _encode(machine: Machine, args: tuple[Any, ...]) -> Any:
    """Bytes, which protocol 2 writes as the encoding of a text."""
    if len(args) != 2 or not isinstance(args[0], str) or args[1] != "latin1":
        return NotImplemented
    return args[0].encode("latin-1")


def _reconstruct(machine: Machine, args: tuple[Any, ...]) -> Any:
    """An object as protocols 0 and 1 write it: class, base, what the base is made of."""
    if len(args) != 3 or not isinstance(args[0], Name):
        return NotImplemented
    return Stub(args[0].name, () if args[2] is None else (args[2],))


_OWN: dict[str, Call] = {
    "_codecs.encode": _encode,
    "builtins.bool": _make_plain,
    "builtins.bytes": _make_bytes,
    "builtins.dict": _make_dict,
    "builtins.float": _make_plain,
    "builtins.frozenset": _make_frozenset,
    "builtins.int": _make_plain,
    "builtins.list": _make_list,
    "builtins.set": _make_set,
    "builtins.str": _make_plain,
    "builtins.tuple": _make_tuple,
    "collections.OrderedDict": _make_dict,
    "collections.defaultdict": _make_defaultdict,
    "copyreg._reconstructor": _reconstruct,
}


# --- operations -----------------------------------------------------------------------------------


def _ignore(machine: Machine, argument: Any) -> None:
    """Nothing to do: what says how the rest is written."""


def _push(machine: Machine, argument: Any) -> None:
    machine.stack.append(argument)


def _drop(machine: Machine, argument: Any) -> None:
    if machine.marks and machine.marks[-1] == len(machine.stack):
        machine.marks.pop()
    else:
        machine.pop()


def _drop_to_mark(machine: Machine, argument: Any) -> None:
    machine.pop_mark()


def _tuple_of(length: int) -> Callable[[Machine, Any], None]:
    def operation(machine: Machine, argument: Any) -> None:
        values = [machine.pop() for _ in range(length)]
        machine.push(tuple(reversed(values)))

    return operation


def _global(machine: Machine, argument: Any) -> None:
    machine.push(machine.name(*argument.split(" ", 1)))


def _stack_global(machine: Machine, argument: Any) -> None:
    qualified, module = machine.pop(), machine.pop()
    machine.push(machine.name(module, qualified))


def _call(machine: Machine, argument: Any) -> None:
    args, function = machine.pop(), machine.pop()
    machine.push(machine.call(function, args))


def _call_with_names(machine: Machine, argument: Any) -> None:
    kwargs, args, function = machine.pop(), machine.pop(), machine.pop()
    if not isinstance(kwargs, dict):
        raise CheckpointError("the pickle is damaged: named arguments that are no dict")
    machine.push(machine.call(function, args, kwargs))


def _object(machine: Machine, argument: Any) -> None:
    function, *args = machine.pop_mark() or [None]
    machine.push(machine.call(function, tuple(args)))


def _instance(machine: Machine, argument: Any) -> None:
    function = machine.name(*argument.split(" ", 1))
    machine.push(machine.call(function, tuple(machine.pop_mark())))


def _set_item(machine: Machine, argument: Any) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


_VALUES = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG"),
    *("LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING"),
    *("BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
)

_OPERATIONS: dict[str, Callable[[Machine, Any], None]] = {
    **dict.fromkeys(["PROTO", "FRAME", "STOP"], _ignore),
    **dict.fromkeys(_VALUES, _push),
    **dict.fromkeys(["BINPUT", "LONG_BINPUT", "PUT"], lambda m, a: m.put(a)),
    **dict.fromkeys(["BINGET", "LONG_BINGET", "GET"], lambda m, a: m.get(a)),
    **dict.fromkeys(["REDUCE", "NEWOBJ"], _call),
    "ADDITEMS": lambda m, _: m.add(m.pop_mark()),
    "APPEND": lambda m, _: m.append([m.pop()]),
    "APPENDS": lambda m, _: m.append(m.pop_mark()),
    "BINPERSID": lambda m, _: m.push(m.refer(m.pop())),
    "BUILD": lambda m, _: m.build(m.pop()),
    "BYTEARRAY8": lambda m, a: m.push(bytes(a)),
    "DICT": lambda m, _: m.push(m.dictionary(m.pop_mark())),
    "DUP": lambda m, _: m.push(m.top()),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_SET": lambda m, _: m.push(set()),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "FROZENSET": lambda m, _: m.push(frozenset([m.key(v) for v in m.pop_mark()])),
    "GLOBAL": _global,
    "INST": _instance,
    "LIST": lambda m, _: m.push(m.pop_mark()),
    "MARK": lambda m, _: m.mark(),
    "MEMOIZE": lambda m, _: m.put(len(m.memo)),
    "NEWFALSE": lambda m, _: m.push(False),
    "NEWOBJ_EX": _call_with_names,
    "NEWTRUE": lambda m, _: m.push(True),
    "NONE": lambda m, _: m.push(None),
    "OBJ": _object,
    "POP": _drop,
    "POP_MARK": _drop_to_mark,
    "SETITEM": _set_item,
    "SETITEMS": lambda m, _: m.set_items(m.pop_mark()),
    "STACK_GLOBAL": _stack_global,
    "TUPLE": lambda m, _: m.push(tuple(m.pop_mark())),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
}
