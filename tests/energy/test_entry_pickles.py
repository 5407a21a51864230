"""Pickles of entries and phase diagrams, read as data."""

import gzip
import os
import pickle

import numpy as np
import pytest
from pymatgen.analysis.phase_diagram import PatchedPhaseDiagram, PDEntry, PhaseDiagram
from pymatgen.core import Composition, Lattice, Structure
from pymatgen.entries.computed_entries import (
    CompositionEnergyAdjustment,
    ComputedEntry,
    ComputedStructureEntry,
    ConstantEnergyAdjustment,
    TemperatureEnergyAdjustment,
)

from chemeleon2_jax.common.errors import EnergyError
from chemeleon2_jax.energy.entries import entry_of, read_entries

LITHIUM = Structure(Lattice.cubic(3.4), ["Li", "Li"], [[0, 0, 0], [0.5, 0.5, 0.5]])
ENTRIES = [
    ComputedEntry(
        "Li2O",
        -14.1,
        energy_adjustments=[
            ConstantEnergyAdjustment(-0.1, name="a"),
            CompositionEnergyAdjustment(-0.5, 1, name="b"),
        ],
    ),
    ComputedStructureEntry(LITHIUM, -3.8),
    PDEntry(Composition("O2"), -9.8),
    PDEntry(Composition({"Li+": 2, "O2-": 2}), -16.0),
    PDEntry(Composition("Li"), -1.5),
    PDEntry(Composition("Li"), np.float64(-1.25)),
    PDEntry(Composition({"O": np.int64(2)}), np.float32(-9.5)),
]


def write(path, content, protocol=pickle.DEFAULT_PROTOCOL):
    data = pickle.dumps(content, protocol)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def summary(entries):
    return sorted(
        (sorted(entry.fractions.items()), round(entry.energy, 9), round(entry.correction or 0, 9))
        for entry in entries
    )


@pytest.mark.parametrize("name", ["a.pkl", "a.pkl.gz", "a.pickle"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(
    "wrap", [list, tuple, lambda entries: {"entries": entries}, PhaseDiagram, PatchedPhaseDiagram]
)
def test_entries_are_those_that_were_pickled(tmp_path, wrap, name, protocol):
    neutral = [e for e in ENTRIES if not any(hasattr(s, "oxi_state") for s in e.composition)]
    entries = neutral if isinstance(wrap, type) and wrap.__name__.endswith("Diagram") else ENTRIES
    path = write(tmp_path / name, wrap(list(entries)), protocol)
    assert summary(read_entries(path).entries) == summary(map(entry_of, entries))


class Harm:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_nothing_is_run(tmp_path, protocol):
    mark = tmp_path / "mark"
    path = write(tmp_path / "a.pkl", [ENTRIES[0], Harm(mark)], protocol)
    with pytest.raises(EnergyError, match=r"entry [01]: a \w+ is none of ComputedEntry"):
        read_entries(path)
    assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists()  # elsewhere it is


def test_nothing_is_imported(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(b"(lcantigravity\nfly\np0\na.")  # a list of one name
    with pytest.raises(EnergyError, match="entry 0: a Name is none of"):
        read_entries(path)
    import sys

    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "target",
    [
        *(b"c_codecs\nencode\n", b"cbuiltins\nset\n", b"cany\nthing\n"),
        *(b"c_\nset\n", b"c_\ndict\n", b"c_\nfrozenset\n", b"ccollections\nOrderedDict\n"),
    ],
)
def test_what_pickles_are_made_of_cannot_be_changed(tmp_path, target):
    """An attribute that is set on a class or function would be there for the next file."""
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x02" + target + b"N}U\x01aU\x01bs\x86b.")
    with pytest.raises(EnergyError, match="the pickle is damaged"):
        read_entries(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (3, "neither a list of entries nor a phase diagram"),
        ({"energies": []}, "neither a list of entries nor a phase diagram"),
        (LITHIUM, "neither a list of entries nor a phase diagram"),
        ([ENTRIES[0], 1.0], "entry 1: a float is none of"),
        ([TemperatureEnergyAdjustment(0.1, 300, 2)], "a TemperatureEnergyAdjustment is none of"),
        (
            [
                ComputedEntry(
                    "Li", -1, energy_adjustments=[TemperatureEnergyAdjustment(0.1, 300, 1)]
                )
            ],
            "an energy adjustment of class TemperatureEnergyAdjustment is not known",
        ),
    ],
)
def test_what_is_refused_says_how_to_make_json(tmp_path, content, message):
    path = write(tmp_path / "a.pkl", content)
    with pytest.raises(EnergyError, match=message) as caught:
        read_entries(path)
    assert f"dumpfn(pandas.read_pickle('{path}').all_entries" in str(caught.value)


@pytest.mark.parametrize("damage", [lambda d: d[:-30], lambda d: b"", lambda d: b"\x80\x05K"])
@pytest.mark.parametrize("name", ["a.pkl", "a.pkl.gz"])
def test_damaged_files(tmp_path, damage, name):
    path = write(tmp_path / name, ENTRIES)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(EnergyError, match=r"the pickle is damaged|holds neither"):
        read_entries(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(EnergyError, match="cannot read entries"):
        read_entries(tmp_path / "none.pkl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"Nr\x00\x00\x00\x40.", "LONG_BINPUT"),  # a memo of 16 GB
        (b"})" + b"\x85" * 500_000 + b"Ns.", "a tuple as a key"),  # overflows the stack when hashed
        (gzip.compress(b"N" * 20_000_000 + b"."), "more than 50 times the size"),
    ],
)
def test_harm_by_a_few_bytes(tmp_path, content, message):
    path = tmp_path / f"a.pkl{'.gz' if content.startswith(bytes([31])) else ''}"
    path.write_bytes(content)
    assert len(content) < 1_000_000
    with pytest.raises(EnergyError, match=message):
        read_entries(path)


@pytest.mark.parametrize("symbol", [b"Li,spin=__import__('os')", b"Xx", b""])
def test_what_is_no_element(tmp_path, symbol):
    """pymatgen evaluates a part of some texts."""
    lithium, other = (b"X%b%b" % (len(x).to_bytes(4, "little"), x) for x in (b"Li", symbol))
    data = pickle.dumps([ComputedEntry("Li", -1)], 2)
    assert lithium in data
    path = tmp_path / "a.pkl"
    path.write_bytes(data.replace(lithium, other))
    with pytest.raises(EnergyError, match="entry 0: a composition of something that is no element"):
        read_entries(path)


@pytest.mark.parametrize("key", ["_composition", "_energy", "energy_adjustments", "_data"])
def test_entries_of_another_pymatgen(tmp_path, key):
    """An attribute with another name raises an error, and gives no wrong energy."""
    data = pickle.dumps([ENTRIES[0]]).replace(key.encode(), b"x" * len(key))
    path = tmp_path / "a.pkl"
    path.write_bytes(data)
    with pytest.raises(EnergyError, match="entry 0: "):
        read_entries(path)
