"""Pickles are data: nothing that they name is imported or called, and they cost little to read."""

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

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.torch_format import pickles
from chemeleon2_jax.torch_format.pickles import Name, Stub
from tests.torch_format.archives import Call, Global, Raw, operations, pickled

SYSTEM = operations(Global("os.system"))


def load(data: bytes, **kwargs: Any) -> Any:
    return pickles.load(data, where="file.ckpt", **kwargs)


def refuse(data: bytes, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        load(data)
    assert str(caught.value).startswith("file.ckpt: ")


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
    found = load(pickletools.optimize(data) if optimise else data)
    assert found == value
    assert repr(found) == repr(pickle.loads(data))


class Thing:
    """Runs something when it is unpickled; is never imported by the reader."""

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
    found = load(pickle.dumps(content, protocol=protocol))
    stub = found["thing"]
    assert isinstance(stub, Stub)
    assert stub.name == f"{__name__}.Thing"
    assert (stub.get("heads"), stub.get("inner"), stub.get("absent", 7)) == (4, 5, 7)
    assert found["again"] is stub
    assert found["class"] == Name(f"{__name__}.Thing")
    assert found["items"].name == f"{__name__}.Items"
    if protocol >= 2:
        assert found["items"].mapping == {"a": 1}
        assert found["items"].get("a") == 1
        assert load(pickle.dumps(Slots(), protocol=protocol)).get("b") == 2


def test_calls_become_stubs() -> None:
    partial = load(pickle.dumps(functools.partial(os.getenv, "HOME", default="x"), protocol=2))
    assert (partial.name, partial.args) == ("functools.partial", (Name("os.getenv"),))
    assert partial.get("default") == "x"
    array = load(pickle.dumps(np.arange(3), protocol=2))
    assert isinstance(array, Stub)
    assert "Stub" in repr(array)
    queue = load(pickle.dumps(collections.deque([1, 2]), protocol=2))
    assert queue.items == [1, 2]
    default = load(pickle.dumps(collections.defaultdict(list, a=[1]), protocol=2))
    assert default == {"a": [1]}
    assert type(default) is dict
    ordered = load(pickle.dumps(collections.OrderedDict(b=1, a=2), protocol=2))
    assert list(ordered.items()) == [("b", 1), ("a", 2)]
    method = load(pickle.dumps(Thing.method, protocol=2))
    assert method.name in ("builtins.getattr", f"{__name__}.Thing.method")


def test_stub_reads_attributes_wherever_they_are() -> None:
    stub = Stub("a.B")
    assert (stub.state, stub.get("x")) == (None, None)
    stub.state = (None, {"x": 1, "_parameters": {"weight": 2}, "_buffers": None})
    stub.mapping["y"] = 3
    assert [stub.get(name) for name in ("x", "weight", "y")] == [1, 2, 3]
    assert stub == stub
    assert stub != Stub("a.B")
    assert repr(stub) == "Stub('a.B')"
    assert repr(Name("torch.float32")) == "Name('torch.float32')"


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
    found = load(data)
    assert isinstance(found, Stub | dict)
    assert list(tmp_path.iterdir()) == []


def test_the_marker_would_appear(tmp_path, monkeypatch) -> None:
    """What the test above rests on: Python's own reader does run such files."""
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
    found = load(data + b".", calls=calls, persistent=refer)
    assert (found[0], found[1].name, found[2], seen) == (6, "a.double", "there", [7])
    refuse(b"\x80\x02K\x07Q.", "outside of it")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "damaged"),
        (b"\x80\x02", "damaged"),
        (b"\x80\x02N", "damaged"),
        (b".", "no(t|) value|none"),
        (b"\xff.", "damaged"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "damaged"),
        (b"\x80\x02X\x01\x00\x00\x00\xff.", "damaged"),
        (b"I12x\n.", "damaged"),
        (b"L" + b"9" * 5000 + b"L\n.", "damaged"),
        (b"R.", "none"),
        (b"t.", "no mark"),
        (b"N(R.", "none"),
        (b"N(NR.", "none"),
        (b"NNR.", "no tuple"),
        (b"N)R.", "a call of a NoneType"),
        (b"Na.", "none"),
        (b")Na.", "appends to a tuple"),
        (b"](NNu.", "sets an item of a list"),
        (b"}(Nu.", "a key without a value"),
        (b"N(N\x90.", "adds to a NoneType"),
        (b"h\x05.", "nothing at memo index 5"),
        (b"Nr\xff\xff\xff\xff.", "memo index 4294967295"),
        (b"Np-1\n.", "memo index -1"),
        (b"Np" + b"1" * 300 + b"\n.", "memo index a int"),
        (b"(o.", "a call of a NoneType"),
        (SYSTEM + b")N\x92.", "no dict"),
        (b"NN\x93.", "not text"),
        (b"Pabc\n.", "PERSID"),
        (b"\x97.", "NEXT_BUFFER"),
        (operations("a" * 400) * 2 + b"\x93.", "400|800"),
        (b"}]Ns.", "a list as a key"),
        (b"}}Ns.", "a dict as a key"),
        (b"})\x85Ns.", "a tuple as a key"),
        (b"}" + operations(2**64) + b"Ns.", "a int as a key"),
        (b"}" + operations("a" * 10_001) + b"Ns.", "as a key"),
        (b"\x8f(\x8f\x90.", "a set as a key"),
        (b"(]\x91.", "a list as a key"),
        (operations(Call("builtins.set", ([[1]],))) + b".", "a list as a key"),
        (operations(Call("collections.OrderedDict", ([[[], 1]],))) + b".", "a list as a key"),
    ],
)
def test_damage_is_said(data: bytes, match: str) -> None:
    refuse(data, match)


def test_names_cannot_break_the_message() -> None:
    with pytest.raises(CheckpointError) as caught:
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
        found = load(b"\x80\x02" + data)
        assert type(found).__name__ in ("Stub", "tuple", "list", "dict"), name
        del found
        gc.collect()


def test_something_that_holds_itself() -> None:
    found = load(b"]q\x00h\x00a.")
    assert found[0] is found
    stub = load(SYSTEM + b")Rq\x00}X\x01\x00\x00\x00ah\x00sb.")
    assert stub.get("a") is stub


def _copies() -> bytes:
    numbers = b"(" + b"N" * 1_000_000 + b"lq\x000"
    return numbers + operations(Global("builtins.list")) + b"q\x01" + b"h\x00\x85Rh\x01" * 400_000


def _long_names() -> bytes:
    return operations("\U0001f600" * 150) + b"q\x00" + b"h\x00h\x00\x93" * 900_000 + b"."


def _colliding_tuples() -> bytes:
    # Multiples of 2**61 - 1 have the hash 0, and so their tuples have one hash.
    parts = [operations(k * (2**61 - 1)) for k in range(-4, 4)]
    index = np.indices((8,) * 6).reshape(6, -1).T[:200_000]
    keys = (b"(" + b"".join(parts[i] for i in row) + b"tN" for row in index)
    return b"}(" + b"".join(keys) + b"u."


def _long_equal_keys() -> bytes:
    long = operations("a" * 20_000_000)
    return b"}" + long + b"q\x00Ns" + long + b"q\x010" + b"h\x01Ns" * 100_000 + b"."


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (_copies, "operations"),
        (_colliding_tuples, "operations"),
        (_long_names, "operations"),
        (_long_equal_keys, "as a key"),
        (lambda: b"N" * 3_000_001 + b".", "operations"),
        (lambda: b"N0" * 40_000_000, "bytes are more"),
    ],
    ids=["copies", "collisions", "names", "long keys", "operations", "length"],
)
def test_costly_pickles_end_soon(make: Any, match: str) -> None:
    """Without the limits, each takes minutes or all memory."""
    refuse(make(), match)


def test_memo_in_any_order() -> None:
    stream = io.BytesIO()
    pickle.Pickler(stream, protocol=4).dump(["a", "a", ("b", "b")])
    assert load(pickletools.optimize(stream.getvalue())) == ["a", "a", ("b", "b")]
    assert load(b"Nr\x00\x01\x00\x00\x30j\x00\x01\x00\x00.") is None
