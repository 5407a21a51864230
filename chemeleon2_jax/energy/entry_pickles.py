"""Reads pickles of pymatgen's entries and phase diagrams as data, without importing them."""

from __future__ import annotations

import gc
import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pymatgen.core import Element

from chemeleon2_jax.common.errors import EnergyError, PickleError
from chemeleon2_jax.common.inert_pickle import load
from chemeleon2_jax.common.stubs import Stub, numpy_number
from chemeleon2_jax.energy.entry import Entry, parse_composition

_ENTRIES = {
    "ComputedEntry": True,
    "ComputedStructureEntry": True,
    "PDEntry": False,
}
"""Classes of entries, and whether their corrections are apart from the energy."""

_MAX_RATIO = 50  # of gzip; pickles of entries have 3 to 10
_MAX_PARTS = 1000  # of one composition or correction, which all entries may share


def read_pickle(path: Path) -> list[Entry]:
    """Return the entries of a pickled list of entries, or of a pickled phase diagram.

    Raises:
        EnergyError: the pickle holds something else or is damaged; the message says how to make a
            JSON file of it.
        OSError: the file cannot be read.
    """
    collecting = gc.isenabled()
    gc.disable()  # among up to 100 million objects, it takes half of the time
    try:
        return list(_read_entries(path))
    finally:
        if collecting:
            gc.enable()


def _read_entries(path: Path) -> Iterator[Entry]:
    try:
        content = load(_read(path))
    except PickleError as error:
        raise _failure(path, str(error)) from error
    for index, entry in enumerate(_find_entries(content, path)):
        try:
            yield _entry(entry)
        except (ValueError, TypeError, OverflowError) as error:
            raise _failure(path, f"entry {index}: {error}") from error


def _read(path: Path) -> bytes:
    if path.suffix != ".gz":
        return path.read_bytes()
    most = _MAX_RATIO * path.stat().st_size + (1 << 20)
    try:
        with gzip.open(path) as stream:
            data = stream.read(most + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise PickleError(f"the pickle is damaged: {error}") from error
    if len(data) > most:
        raise PickleError(f"the pickle has more than {_MAX_RATIO} times the size of the gzip file")
    return data


def _find_entries(content: Any, path: Path) -> Sequence[Any]:
    if isinstance(content, Stub):
        content = _first(content, "all_entries", "entries")
    elif isinstance(content, dict):
        content = content.get("entries")
    if isinstance(content, Stub):  # a set or list of some class of its own
        content = content.items
    if not isinstance(content, list | tuple):
        raise _failure(path, "it holds neither a list of entries nor a phase diagram")
    return content


def _entry(entry: Any) -> Entry:
    kind = _class_name(entry)
    if kind not in _ENTRIES:
        raise ValueError(f"a {kind} is none of {', '.join(_ENTRIES)}")
    composition = _first(entry, "_composition", "composition")
    energy = _number(_first(entry, "_energy", "energy"))
    if not isinstance(composition, Stub) or energy is None:
        raise ValueError(f"a {kind} without a composition and an energy")
    fractions, num_atoms = parse_composition(_amounts(composition))
    if not _ENTRIES[kind]:
        return Entry(fractions, energy / num_atoms)
    adjustments = entry.get("energy_adjustments")
    if not isinstance(adjustments, list) or len(adjustments) > _MAX_PARTS:
        raise ValueError(f"a {kind} without its energy adjustments, of an older pymatgen")
    correction = sum(_adjustment(one) for one in adjustments)
    return Entry(fractions, energy / num_atoms, correction / num_atoms)


def _first(stub: Stub, *names: str) -> Any:
    """First of some attributes that the object has, or None."""
    values = (stub.get(name) for name in names)
    return next((value for value in values if value is not None), None)


def _class_name(value: Any) -> str:
    """Name of an object's class, without its module."""
    return value.name.rpartition(".")[2] if isinstance(value, Stub) else type(value).__name__


def _amounts(composition: Stub) -> dict[str, float]:
    amounts: dict[str, float] = {}
    data = composition.get("_data")
    if not isinstance(data, dict) or len(data) > _MAX_PARTS:
        raise ValueError("a composition without its elements")
    for element, amount in data.items():
        # The argument of an Element is its symbol; a Species has an Element.
        species = element if not isinstance(element, Stub) or element.args else element.get("_el")
        symbol = species.args[0] if isinstance(species, Stub) and species.args else None
        number = _number(amount)
        # pymatgen evaluates parts of other texts.
        if not (isinstance(symbol, str) and Element.is_valid_symbol(symbol)) or number is None:
            raise ValueError("a composition of something that is no element")
        amounts[symbol] = amounts.get(symbol, 0.0) + number
    return amounts


def _adjustment(adjustment: Any) -> float:
    """Return an energy adjustment in eV."""
    if isinstance(adjustment, Stub):
        value = _number(adjustment.get("_value"))
        if value is not None:
            return value
        per_atom, num_atoms = (_number(adjustment.get(k)) for k in ("_adj_per_atom", "n_atoms"))
        if per_atom is not None and num_atoms is not None:
            return per_atom * num_atoms
    raise ValueError(f"an energy adjustment of class {_class_name(adjustment)} is not known")


def _number(value: Any) -> float | None:
    """Return a number of Python's or numpy's as a float; None for anything else."""
    number = numpy_number(value)
    return float(number) if isinstance(number, float | int) else None


def _failure(path: Path, problem: str) -> EnergyError:
    return EnergyError(
        f"cannot read entries from {path}: {problem}. Where you trust the file, make JSON of it in "
        "an environment with the pymatgen that wrote it:\n"
        "  import pandas; from monty.serialization import dumpfn\n"
        f"  dumpfn(pandas.read_pickle({str(path)!r}).all_entries, 'entries.json.gz')\n"
        "(without .all_entries where it is a list of entries)"
    )
