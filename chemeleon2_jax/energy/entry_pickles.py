"""pymatgen's entries and phase diagrams out of a pickle, of which nothing is imported or called.

A pickle of a phase diagram of all of Materials Project has hundreds of millions of operations,
too many for the reader of :mod:`chemeleon2_jax.convert`. Here Python's own unpickler reads it, but
every class and function that it names is an inert stand-in, whose state is then looked at. What it
may still do is ask for memory.
"""

from __future__ import annotations

import gzip
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chemeleon2_jax.common.errors import EnergyError
from chemeleon2_jax.energy.entry import Entry, parse_composition

_DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)

_ENTRIES = {
    "ComputedEntry": True,
    "ComputedStructureEntry": True,
    "PDEntry": False,
}
"""Classes of entries, and whether they hold their corrections apart."""


_NUMPY_NUMBERS = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i"}


class _Standin:
    """Stands for an object of any class: it keeps what it is given, and does nothing."""

    __slots__ = ("args", "items", "state")
    args: tuple[Any, ...]
    items: list[Any]
    state: Any

    def __new__(cls, *args: Any, **kwargs: Any) -> _Standin:
        made = super().__new__(cls)
        made.args, made.state, made.items = args, None, []
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, value: Any) -> None:
        """Keep an item."""
        self.items.append(value)

    def extend(self, values: Any) -> None:
        """Keep items."""
        self.items.extend(values)

    add = append

    def get(self, *names: str) -> Any:
        """Return the first of some attributes that is there, or None."""
        state = self.state[0] if isinstance(self.state, tuple) else self.state
        if not isinstance(state, dict):
            return None
        return next((state[name] for name in names if name in state), None)


class _Encode(_Standin):
    """Makes bytes, which protocol 2 writes as the encoding of a text.

    A class like the others: what a function has could be set by the pickle.
    """

    __slots__ = ()

    def __new__(cls, text: Any, encoding: Any) -> Any:
        if not isinstance(text, str) or encoding != "latin1":
            raise ValueError("bytes that are written in an unknown way")
        return text.encode("latin-1")


_PLAIN: dict[tuple[str, str], Any] = {
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("__builtin__", "set"): set,
    ("__builtin__", "frozenset"): frozenset,
    ("_codecs", "encode"): _Encode,
}


class _Reader(pickle.Unpickler):
    """An unpickler that knows sets and bytes, and no other class or function."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._standins: dict[tuple[str, str], Any] = dict(_PLAIN)

    def find_class(self, module_name: str, global_name: str) -> Any:
        key = (module_name, global_name)
        if key not in self._standins:
            name = global_name.rpartition(".")[2]
            self._standins[key] = type(name, (_Standin,), {"__slots__": ()})
        return self._standins[key]


def read_pickle(path: Path) -> list[Entry]:
    """Return the entries of a pickled list of entries, or of a pickled phase diagram.

    Raises:
        EnergyError: it holds something else, or is damaged; says how to make a JSON file of it.
        OSError: it cannot be read.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            content = _Reader(stream).load()
    except (gzip.BadGzipFile, *_DAMAGE) as error:
        raise _failure(path, f"the pickle is damaged: {error}") from error
    entries = []
    for index, entry in enumerate(_find_entries(content, path)):
        try:
            entries.append(_entry(entry))
        except (ValueError, TypeError) as error:
            raise _failure(path, f"entry {index}: {error}") from error
    return entries


def _find_entries(content: Any, path: Path) -> Iterator[Any]:
    if isinstance(content, _Standin):
        content = content.get("all_entries", "entries")
    elif isinstance(content, dict):
        content = content.get("entries")
    if isinstance(content, _Standin):  # a set or list of some class of its own
        content = content.items
    if not isinstance(content, list | tuple | set | frozenset):
        raise _failure(path, "it holds neither a list of entries nor a phase diagram")
    return iter(content)


def _entry(entry: Any) -> Entry:
    kind = type(entry).__name__
    if not isinstance(entry, _Standin) or kind not in _ENTRIES:
        raise ValueError(f"a {kind} is none of {', '.join(_ENTRIES)}")
    composition = entry.get("_composition", "composition")
    energy = _number(entry.get("_energy", "energy"))
    if not isinstance(composition, _Standin) or energy is None:
        raise ValueError(f"a {kind} without a composition and an energy")
    fractions, num_atoms = parse_composition(_amounts(composition))
    if not _ENTRIES[kind]:
        return Entry(fractions, energy / num_atoms)
    adjustments = entry.get("energy_adjustments")
    if not isinstance(adjustments, list):
        raise ValueError(f"a {kind} without its energy adjustments, of an older pymatgen")
    correction = sum(_adjustment(one) for one in adjustments)
    return Entry(fractions, energy / num_atoms, correction / num_atoms)


def _amounts(composition: _Standin) -> dict[str, float]:
    amounts: dict[str, float] = {}
    data = composition.get("_data")
    for element, amount in data.items() if isinstance(data, dict) else ():
        # An Element is made of its symbol, a Species has an Element.
        species = element if element.args else element.get("_el")
        symbol = species.args[0] if isinstance(species, _Standin) and species.args else None
        number = _number(amount)
        if not isinstance(symbol, str) or number is None:
            raise ValueError("a composition of something that is no element")
        amounts[symbol] = amounts.get(symbol, 0.0) + number
    return amounts


def _adjustment(adjustment: Any) -> float:
    """Return an energy adjustment in eV."""
    if isinstance(adjustment, _Standin):
        value = _number(adjustment.get("_value"))
        if value is not None:
            return value
        per_atom, num_atoms = (_number(adjustment.get(k)) for k in ("_adj_per_atom", "n_atoms"))
        if per_atom is not None and num_atoms is not None:
            return per_atom * num_atoms
    raise ValueError(f"an energy adjustment of class {type(adjustment).__name__} is not known")


def _number(value: Any) -> float | None:
    """Return a number of Python's or numpy's, or None where it is none."""
    if isinstance(value, float | int):
        return float(value)
    # numpy pickles a scalar as scalar(dtype("f8", ...), its bytes), the dtype's state being
    # (version, byte order, ...).
    if not (isinstance(value, _Standin) and type(value).__name__ == "scalar"):
        return None
    match value.args:
        case (_Standin(args=(str(code), *_), state=(_, "<", *_)), bytes(content)):
            kind = _NUMPY_NUMBERS.get(code)
            if kind is not None and len(content) == struct.calcsize(kind):
                return float(struct.unpack(kind, content)[0])
    return None


def _failure(path: Path, problem: str) -> EnergyError:
    return EnergyError(
        f"cannot read entries from {path}: {problem}. Where you trust the file, make JSON of it in "
        "an environment with the pymatgen that wrote it:\n"
        "  import pandas; from monty.serialization import dumpfn\n"
        f"  dumpfn(pandas.read_pickle({str(path)!r}).all_entries, 'entries.json.gz')\n"
        "(without .all_entries where it is a list of entries)"
    )
