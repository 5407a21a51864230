"""Entries from JSON and CSV, and the errors of broken ones."""

import gzip
import json

import pytest
from pymatgen.analysis.phase_diagram import PDEntry
from pymatgen.core import Composition, Lattice, Structure
from pymatgen.entries.computed_entries import (
    ComputedEntry,
    ComputedStructureEntry,
    GibbsComputedStructureEntry,
)

from chemeleon2_jax.common.errors import EnergyError
from chemeleon2_jax.energy.entries import entry_of, read_entries
from chemeleon2_jax.energy.entry import Entry

LITHIUM = Structure(Lattice.cubic(3.4), ["Li", "Li"], [[0, 0, 0], [0.5, 0.5, 0.5]])
ENTRIES = [
    ComputedEntry("Li2O", -14.1, correction=-0.6),
    ComputedStructureEntry(LITHIUM, -3.8),
    PDEntry(Composition("O2"), -9.8),
]
EXPECTED = [
    Entry({3: 2 / 3, 8: 1 / 3}, -4.7, pytest.approx(-0.2)),
    Entry({3: 1.0}, -1.9, 0.0),
    Entry({8: 1.0}, -4.9, None),
]
ROWS = [{"formula": "Li2O", "energy_per_atom": -4.7}, {"formula": "D2", "energy_per_atom": -3.4}]


def check(entries, expected):
    assert len(entries) == len(expected)
    for entry, other in zip(entries, expected, strict=True):
        assert entry.fractions == pytest.approx(other.fractions)
        assert entry.energy == pytest.approx(other.energy)
        assert entry.correction == other.correction


@pytest.mark.parametrize("wrap", [list, lambda rows: {"entries": rows}])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_json_of_pymatgen(tmp_path, wrap, suffix):
    path = tmp_path / f"entries.json{suffix}"
    text = json.dumps(wrap([entry.as_dict() for entry in ENTRIES])).encode()
    path.write_bytes(gzip.compress(text) if suffix else text)
    content = read_entries(path)
    assert content.corrected is None
    check(content.entries, EXPECTED)


def test_pymatgen_s_objects():
    check([entry_of(entry) for entry in ENTRIES], EXPECTED)
    check([entry_of(EXPECTED[2])], EXPECTED[2:])


def test_tables(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"corrected": True, "entries": ROWS}))
    (tmp_path / "b.csv").write_text("id,energy_per_atom,formula\n1,-4.7,Li2O\n2,-3.4,D2\n")
    expected = [Entry({3: 2 / 3, 8: 1 / 3}, -4.7), Entry({1: 1.0}, -3.4)]
    content = read_entries(tmp_path / "a.json")
    assert content.corrected is True
    check(content.entries, expected)
    check(read_entries(tmp_path / "b.csv").entries, expected)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"formula": "Li2O", "energy_per_atom": None}, "its energy_per_atom is None, not a number"),
        ({"formula": "Li2O", "energy_per_atom": float("nan")}, "is nan, not a number"),
        ({"formula": "Xq2O", "energy_per_atom": -1}, "'Xq2O' is no composition"),
        ({"formula": "", "energy_per_atom": -1}, "'' is no composition"),
        ({"formula": 3.5, "energy_per_atom": -1}, "3.5 is no composition"),
        ({"formula": "X2O", "energy_per_atom": -1}, "'X2O' is no composition: not an element"),
        ({"composition": {"Li": -1}, "energy": -1}, "is no composition"),
        ({"composition": {"Li": 1}, "energy": "much"}, "its energy is 'much'"),
        ({"composition": {"Li": 1}, "energy": 1, "correction": None}, "its correction is None"),
        ({"formula": "Li2O", "e": 1}, "but formula, e"),
        ("Li2O", "a str is no entry"),
        (
            GibbsComputedStructureEntry(LITHIUM, 0.0).as_dict(),
            "class 'GibbsComputedStructureEntry' are not known",
        ),
    ],
)
def test_broken_entries_are_named(tmp_path, row, message):
    path = tmp_path / "entries.json"
    path.write_text(json.dumps([ROWS[0], row], default=float))
    with pytest.raises(EnergyError, match=r"entries\.json, entry 1: ") as caught:
        read_entries(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            b"formula,formation_energy_per_atom\nLi,0\n",
            "no column energy_per_atom; .*form",
        ),
        ("a.csv", b"", "no column formula and energy_per_atom; it has none"),
        ("a.json", b"{", "cannot read entries"),
        ("a.json", b"{}", "should hold a list of entries"),
        ("a.json", b'{"entries": [], "corrected": "yes"}', "true or false under 'corrected'"),
        ("a.json", b"\xff\xfe", "cannot read entries"),
        ("a.json.gz", b"[]", "cannot read entries"),
        ("a.txt", b"[]", r"ends in \.json, \.csv or \.pkl"),
        ("none.json", None, "cannot read entries"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(EnergyError, match=message):
        read_entries(tmp_path / name)


def test_no_class_of_a_file_is_imported(tmp_path):
    """What pymatgen's own reader of JSON would import and call is text here."""
    row = {**ENTRIES[0].as_dict(), "@module": "subprocess", "@class": "Popen"}
    (tmp_path / "a.json").write_text(json.dumps([row]))
    with pytest.raises(EnergyError, match="class 'Popen' are not known"):
        read_entries(tmp_path / "a.json")
