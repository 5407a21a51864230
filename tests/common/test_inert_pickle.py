"""Pickles are data: nothing that they name is imported or called, and reading them is cheap."""

from __future__ import annotations

import collections
import copyreg
import functools
import gc
import io
import os
import pickle
import pickletools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chemeleon2_jax.common.errors import PickleError
from chemeleon2_jax.common.inert_pickle import load
from chemeleon2_jax.common.stubs import Name, Stub
from tests.torch_format.archives import Call, Global, Raw, operations, pickled

SYSTEM = operations(Global("os.system"))


def refuse(data: bytes, match: str, **options: Any) -> None:
    with pytest.raises(PickleError, match=match) as caught:
        load(data, **options)
    assert str(caught.value).isprintable()


_KEYS = st.one_of(
    st.text(max_size=5), st.integers(-(2**62), 2**62), st.booleans(), st.none(), st.binary()
)
_LEAVES = st.one_of(_KEYS, st.integers(), st.floats(allow_nan=False), st.sets(_KEYS, max_size=3))
VALUES = st.recursive(
    st.one_of(_LEAVES, st.frozensets(_KEYS, max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.one_of(_KEYS, st.tuples(_KEYS, _KEYS)), inner, max_size=4),
    ),
    max_leaves=12,
)


@given(VALUES, st.integers(0, 5), st.booleans())
@settings(max_examples=150, deadline=None)
def test_plain_values_are_what_pickle_gives(value: Any, protocol: int, optimise: bool) -> None:
    data = pickle.dumps(value, protocol=protocol)
    loaded = load(pickletools.optimize(data) if optimise else data)
    assert repr(loaded) == repr(_without_sets(value))


def _without_sets(value: Any) -> Any:
    """Return the value with sets as lists and frozen sets as tuples."""
    match value:
        case set() | list():
            return [_without_sets(item) for item in value]
        case frozenset() | tuple():
            return tuple(_without_sets(item) for item in value)
        case dict():
            return {key: _without_sets(item) for key, item in value.items()}
    return value


class Thing:
    """A class that the reader does not import."""

    def __init__(self) -> None:
        self.heads = 4
        self._modules = {"inner": 5}

    def method(self) -> None:
        """Has a name."""


class Slots:
    __slots__ = ("a", "b")

    def __init__(self) -> None:
        self.a, self.b = 1, 2


class Items(dict[str, int]):
    """A dict of its own class."""


@pytest.mark.parametrize("protocol", range(6))
def test_objects_become_stubs(protocol: int) -> None:
    thing = Thing()
    content = {"thing": thing, "items": Items(a=1), "again": thing, "class": Thing}
    loaded = load(pickle.dumps(content, protocol=protocol))
    stub = loaded["thing"]
    assert isinstance(stub, Stub)
    assert stub.name == f"{__name__}.Thing"
    assert (stub.get("heads"), stub.get("inner"), stub.get("absent", 7)) == (4, 5, 7)
    assert loaded["again"] is stub
    assert isinstance(loaded["class"], Name)
    assert loaded["class"].name == f"{__name__}.Thing"
    assert loaded["items"].name == f"{__name__}.Items"
    if protocol >= 2:
        assert loaded["items"].mapping == {"a": 1}
        assert loaded["items"].get("a") == 1
        assert load(pickle.dumps(Slots(), protocol=protocol)).get("b") == 2


def test_calls_become_stubs() -> None:
    partial = load(pickle.dumps(functools.partial(os.getenv, "HOME", default="x"), protocol=2))
    assert (partial.name, *map(repr, partial.args)) == ("functools.partial", "Name('os.getenv')")
    assert partial.get("default") == "x"
    array = load(pickle.dumps(np.arange(3), protocol=2))
    assert isinstance(array, Stub)
    assert "Stub" in repr(array)
    queue = load(pickle.dumps(collections.deque([1, 2]), protocol=2))
    assert queue.items == [1, 2]
    default = load(pickle.dumps(collections.defaultdict(list, a=[1]), protocol=2))
    assert default == {"a": [1]}
    assert isinstance(default, dict)
    ordered = load(pickle.dumps(collections.OrderedDict(b=1, a=2), protocol=2))
    assert list(ordered.items()) == [("b", 1), ("a", 2)]
    method = load(pickle.dumps(Thing.method, protocol=2))
    assert method.name in ("builtins.getattr", f"{__name__}.Thing.method")


def test_stub_reads_attributes_wherever_they_are() -> None:
    cls = load(operations(Global("a.B")) + b".")
    stub = cls()
    assert (stub.state, stub.get("x")) == (None, None)
    stub.state = (None, {"x": 1, "_parameters": {"weight": 2}, "_buffers": None})
    stub["y"] = 3
    assert [stub.get(name) for name in ("x", "weight", "y")] == [1, 2, 3]
    assert stub == stub
    assert stub != cls()
    assert repr(stub) == "Stub('a.B')"
    assert repr(cls) == "Name('a.B')"


@pytest.mark.parametrize(
    "code",
    [
        operations(Call("os.system", ("touch {}",))),
        operations(Call("posix.system", ("touch {}",))),
        operations(Call("builtins.eval", ("open('{}', 'w')",))),
        operations(Call("builtins.exec", ("open('{}', 'w')",))),
        b"(S'touch {}'\nios\nsystem\n",
        b"(cos\nsystem\nS'touch {}'\no",
        b"\x8c\x02os\x8c\x06system\x93\x8c\x08touch {}\x85\x81",
        operations(Global("os.system")) + operations(("touch {}",)) + b"}\x92",
        operations(Call("builtins.map", (Global("os.system"), ["touch {}"]))),
        operations(Call("collections.defaultdict", (Global("os.system"), {"a": "touch {}"}))),
    ],
)
def test_nothing_is_called(tmp_path, monkeypatch, code: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    data = b"\x80\x02" + code.replace(b"{}", b"ab") + b"."
    assert data != code
    loaded = load(data)
    assert isinstance(loaded, Stub | dict)
    assert list(tmp_path.iterdir()) == []


def test_the_marker_would_appear(tmp_path, monkeypatch) -> None:
    """The test above needs it: Python's own reader runs such files."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickled(Call("os.system", ("touch ab",))))
    assert [path.name for path in tmp_path.iterdir()] == ["ab"]


def test_extensions_are_not_looked_up() -> None:
    copyreg.add_extension("os", "system", 240)
    try:
        refuse(b"\x80\x02\x82\xf0.", "EXT1")
    finally:
        copyreg.remove_extension("os", "system", 240)


def test_own_calls_and_references() -> None:
    seen = []

    def refer(reference: Any) -> str:
        seen.append(reference)
        return "there"

    calls = {"a.double": lambda args: args[0] * 2 if args else NotImplemented}
    data = b"\x80\x02" + operations([Call("a.double", (3,)), Call("a.double", ()), Raw(b"K\x07Q")])
    loaded = load(data + b".", rebuild=calls, refer=refer)
    assert (loaded[0], loaded[1].name, loaded[2], seen) == (6, "a.double", "there", [7])
    refuse(b"\x80\x02K\x07Q.", "outside of it")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "damaged"),
        (b"\x80\x02", "damaged"),
        (b"\x80\x02N", "damaged"),
        (b".", "underflow"),
        (b"\xff.", "damaged"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "damaged"),
        (b"\x80\x02X\x01\x00\x00\x00\xff.", "damaged"),
        (b"I12x\n.", "damaged"),
        (b"L" + b"9" * 5000 + b"L\n.", "damaged"),
        (b"R.", "underflow"),
        (b"t.", "could not find MARK"),
        (b"N(R.", "MARK|underflow"),
        (b"N(NR.", "MARK|underflow"),
        (b"NNR.", "must be a tuple"),
        (b"N)R.", "'NoneType' object is not callable"),
        (b"Na.", "underflow"),
        (b")Na.", "'tuple' object has no attribute"),
        (b"](NNu.", "list indices"),
        (b"}(Nu.", "odd number of items"),
        (b"N(N\x90.", "'NoneType' object has no attribute"),
        (b"h\x05.", "Memo value not found at index 5"),
        (b"Nr\xff\xff\xff\xff.", "LONG_BINPUT"),
        (b"Np-1\n.", "PUT"),
        (b"Np" + b"1" * 300 + b"\n.", "PUT"),
        (b"(o.", "underflow"),
        (SYSTEM + b")N\x92.", "must be a dict"),
        (b"NN\x93.", "requires str"),
        (b"Pabc\n.", "PERSID"),
        (b"\x97.", "NEXT_BUFFER"),
        (operations("a" * 400) * 2 + b"\x93.", "801 letters"),
        (b"}]Ns.", "a list as a key"),
        (b"}}Ns.", "a dict as a key"),
        (b"})\x85Ns.", "a tuple as a key"),
        (b"}" + operations(2**64) + b"Ns.", "a int as a key"),
        (b"}" + operations("a" * 10_001) + b"Ns.", "as a key"),
    ],
)
def test_damage_is_said(data: bytes, match: str) -> None:
    refuse(data, match)


def test_names_cannot_break_the_message() -> None:
    with pytest.raises(PickleError) as caught:
        load(b"\x80\x02" + operations("x") + b"X\x03\x00\x00\x00\xed\xa0\x80a.")
    str(caught.value).encode()
    stub = load(b"\x80\x02X\x03\x00\x00\x00\xed\xa0\x80\x8c\x01b\x93)R.")
    repr(stub).encode()


def test_deep_nesting_is_read_and_freed() -> None:
    count = 200_000
    nested = {
        "stubs": SYSTEM + b"q\x000" + b"h\x00" * count + b")" + b"\x85R" * (count - 1) + b".",
        "tuples": b")" + b"\x85" * count + b".",
        "lists": b"]" * count + b"a" * (count - 1) + b".",
        "dicts": b"}N" * count + b"}" + b"s" * count + b".",
    }
    for name, data in nested.items():
        loaded = load(b"\x80\x02" + data)
        assert type(loaded).__name__ in ("Stub", "tuple", "list", "dict"), name
        del loaded
        gc.collect()


def test_members_of_sets_are_not_hashed() -> None:
    deep = b")" + b"\x85" * 500_000
    for data in (b"\x8f(" + deep + b"\x90.", b"(" + deep + b"\x91.", b"\x8f(]\x90."):
        assert len(load(data)) == 1


def test_something_that_holds_itself() -> None:
    loaded = load(b"]q\x00h\x00a.")
    assert loaded[0] is loaded
    stub = load(SYSTEM + b")Rq\x00}X\x01\x00\x00\x00ah\x00sb.")
    assert stub.get("a") is stub


def _repeated(value: bytes, use: bytes, times: int = 15_000) -> bytes:
    """Return operations that memoize a value and use it many times."""
    return value + b"q\x000" + use * times + b"N."


def _call(name: str) -> bytes:
    return operations(Global(name)) + b"q\x010"


MANY = b"(" + b"N" * 60_000
TEXT = operations("a" * 60_000)


def _colliding_tuples(num_keys: int = 200_000) -> bytes:
    # Multiples of 2**61 - 1 have the hash 0, and so their tuples have one hash.
    parts = b"".join(operations(k * (2**61 - 1)) + b"q%c0" % (k + 4) for k in range(-4, 4))
    index = np.indices((8,) * 6).reshape(6, -1).T[:num_keys]
    keys = (b"(" + b"".join(b"h%c" % i for i in row) + b"tN" for row in index)
    return parts + b"}(" + b"".join(keys) + b"u."


def _colliding_numbers(num_keys: int = 60_000) -> bytes:
    numbers = (operations(k * (2**61 - 1) % 2**63) + b"N" for k in range(num_keys))
    return b"}(" + b"".join(numbers) + b"u."


def _long_equal_keys() -> bytes:
    long = operations("a" * 20_000_000)
    return b"}" + long + b"q\x00Ns" + long + b"q\x010" + b"h\x01Ns" * 100_000 + b"."


COSTLY = {
    "frozensets": (
        _call("builtins.frozenset") + _repeated(MANY + b"l", b"h\x01h\x00\x85R0"),
        "copies",
    ),
    "calls": (_call("a.b") + _repeated(MANY + b"t", b"h\x01h\x00R0"), "copies"),
    "dicts": (_call("_.dict") + _repeated(MANY + b"t", b"h\x01h\x00R0"), "copies"),
    "objects": (_call("a.b") + _repeated(MANY + b"t", b"h\x01h\x00\x810"), "copies"),
    "bytes": (
        _call("_codecs.encode") + _repeated(TEXT, b"h\x01h\x00X\6\0\0\0latin1\x86R0"),
        "copies",
    ),
    "tuples that collide": (_colliding_tuples(), "hashes"),
    "numbers that collide": (_colliding_numbers(), "hashes"),
    "long keys": (_long_equal_keys(), "as a key"),
    "nested key": (b"})" + b"\x85" * 500_000 + b"Ns.", "a tuple as a key"),
    "memo": (b"Nr\x00\x00\x00\x40.", "LONG_BINPUT"),
    "memo in text": (b"Np999999999\n.", "PUT"),
    "length": (b"\x96" + b"\xff" * 7 + b"\x7f.", "damaged"),
    "long names": (operations("\U0001f600" * 150) + b"q\x00h\x00h\x00\x93.", "301 letters"),
    "names": (b"".join(b"ca\n%d\n0" % i for i in range(10_001)) + b"N.", "names 10001 classes"),
}


@pytest.mark.parametrize("name", COSTLY)
def test_costly_pickles_end_soon(name: str) -> None:
    """Without the guards, each takes minutes, all memory or the process."""
    refuse(*COSTLY[name])


def test_a_limit_of_operations() -> None:
    assert load(b"N0" * 500 + b"N.", max_operations=1002) is None
    refuse(b"N0" * 500 + b"N.", "more than 1001 bytes of operations", max_operations=1001)
    refuse(b"\x8f0" * 500 + b"N.", "more than 1001 bytes of operations", max_operations=1001)
    text = operations("a" * 5000)
    assert load(text + b".", max_operations=6) == "a" * 5000
    refuse(text * 2 + b".", "more than 10 bytes of operations", max_operations=10)


def test_memo_in_any_order() -> None:
    stream = io.BytesIO()
    pickle.Pickler(stream, protocol=4).dump(["a", "a", ("b", "b")])
    assert load(pickletools.optimize(stream.getvalue())) == ["a", "a", ("b", "b")]
    assert load(b"Nr\x00\x01\x00\x00\x30j\x00\x01\x00\x00.") is None
