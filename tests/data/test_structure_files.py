"""Crystals from folders and files, whole and broken."""

import gzip
import json

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from chemeleon2_jax.common.errors import DatasetError
from chemeleon2_jax.data.structure_files import FAILED, NOT_BUILT, OK, Entry, read_entries
from chemeleon2_jax.workers import WorkerPool
from tests.tiny import BROKEN_ID, BROKEN_ROW, make_crystals, perovskite, rocksalt, write_split

HERE = WorkerPool(0)
SALT, OXIDE = rocksalt("Na", "Cl", 5.64), perovskite("Sr", "Ti", 3.905)
DISORDERED = Structure(Lattice.cubic(4.0), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])


def write_json(path, content):
    text = json.dumps(content)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def write_samples(folder, structures, failures):
    """Write the files of the sample command; failures: {index: reason}."""
    folder.mkdir(exist_ok=True)
    total = len(structures) + len(failures)
    write_json(folder / "generated_structures.json.gz", [s.as_dict() for s in structures])
    report = {
        "num_samples": total,
        "indices": [i for i in range(total) if i not in failures],
        "failures": [{"index": i, "reason": reason} for i, reason in failures.items()],
    }
    write_json(folder / "run.json", report)
    return folder


def statuses(entries):
    return [entry.status for entry in entries]


def assert_is(entry, structure):
    types, frac_coords, lattice = entry.arrays
    assert types.tolist() == [site.specie.Z for site in structure]
    np.testing.assert_allclose(frac_coords, structure.frac_coords, atol=1e-6)
    np.testing.assert_allclose(lattice, structure.lattice.matrix, atol=1e-6)


@pytest.mark.parametrize("name", ["", "generated_structures.json.gz"])
def test_samples_are_at_their_indices(tmp_path, name):
    folder = write_samples(tmp_path, [SALT, OXIDE], {0: "no cell", 2: "too flat"})
    entries = read_entries(folder / name, HERE)
    assert statuses(entries) == [NOT_BUILT, OK, NOT_BUILT, OK]
    assert [entry.name for entry in entries] == ["0", "1", "2", "3"]
    assert [entry.reason for entry in entries] == ["no cell", None, "too flat", None]
    assert_is(entries[1], SALT)
    assert_is(entries[3], OXIDE)


def test_samples_of_which_none_was_built(tmp_path):
    entries = read_entries(write_samples(tmp_path, [], {0: "no cell"}), HERE)
    assert entries == [Entry("0", None, NOT_BUILT, "no cell")]


def test_the_sample_command_writes_what_is_read(tiny_samples):
    report = json.loads((tiny_samples / "run.json").read_text())
    entries = read_entries(tiny_samples, HERE)
    assert len(entries) == report["num_samples"]
    assert [i for i, e in enumerate(entries) if e.status == OK] == report["indices"]


def test_interrupted_samples(tmp_path):
    folder = write_samples(tmp_path, [SALT], {})
    (folder / "run.json").unlink()
    with pytest.raises(DatasetError, match=r"has no run\.json.*sampling was interrupted"):
        read_entries(folder, HERE)
    assert statuses(read_entries(folder / "generated_structures.json.gz", HERE)) == [OK]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indices": [0]}, r"does not belong to .*: 2 structures, but 1 indices"),
        ({"indices": [0, 0]}, "does not belong to"),
        ({"num_samples": 7}, "does not belong to"),
        ({"failures": None}, "was not written by sample: TypeError"),
        ({"num_samples": "many"}, "was not written by sample: ValueError"),
    ],
)
def test_a_report_of_another_run(tmp_path, changes, message):
    folder = write_samples(tmp_path, [SALT, OXIDE], {})
    report = json.loads((folder / "run.json").read_text())
    write_json(folder / "run.json", report | changes)
    with pytest.raises(DatasetError, match=message):
        read_entries(folder, HERE)


def test_one_bad_element_costs_itself(tmp_path):
    bad = [None, 3, {}, {"lattice": {"matrix": [[1]]}, "sites": []}, DISORDERED.as_dict()]
    path = write_json(tmp_path / "list.json", [SALT.as_dict(), *bad, OXIDE.as_dict()])
    entries = read_entries(path, HERE)
    assert statuses(entries) == [OK, NOT_BUILT, *[FAILED] * 4, OK]
    assert entries[2].reason.startswith("not a pymatgen structure: ")
    assert entries[3].reason.startswith("not a pymatgen structure: KeyError")
    assert entries[5].reason.startswith("partial occupancy")
    assert_is(entries[6], OXIDE)


def test_cifs_by_name(tmp_path):
    SALT.to(filename=str(tmp_path / "b.cif"))
    (tmp_path / "a.cif").write_text("data_broken\n_cell_length_a what\n")
    (tmp_path / "c.CIF").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "notes.txt").write_text("not read")
    entries = read_entries(tmp_path, HERE)
    assert [entry.name for entry in entries] == ["a.cif", "b.cif", "c.CIF"]
    assert statuses(entries) == [FAILED, OK, FAILED]
    assert entries[0].reason.startswith("unparsable CIF: ")
    assert entries[2].reason.startswith("unparsable CIF: ")
    assert sorted(entries[1].arrays[0].tolist()) == [11, 17]
    assert len(read_entries(tmp_path / "b.cif", HERE)) == 1


@pytest.mark.parametrize("name", ["some.csv", "some.csv.gz"])
def test_rows_of_a_csv_file(tmp_path, name):
    crystals = make_crystals()[:8]
    write_split(tmp_path / "some.csv", crystals, broken_row=BROKEN_ROW)
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress((tmp_path / "some.csv").read_bytes()))
    entries = read_entries(tmp_path / name, HERE)
    assert [i for i, entry in enumerate(entries) if entry.status == FAILED] == [BROKEN_ROW - 1]
    assert entries[BROKEN_ROW - 1].name == BROKEN_ID
    assert "unparsable CIF" in entries[BROKEN_ROW - 1].reason
    assert entries[0].name == "some-0"
    assert len(entries) == 9


def test_nothing_to_read(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(b"[" + b"1," * 999)[:-12])
    (tmp_path / "none.json").write_text("[]")
    (tmp_path / "dict.json").write_text("{}")
    (tmp_path / "text.json").write_text("crystals")
    (tmp_path / "some.txt").write_text("crystals")
    (tmp_path / "no.csv").write_text("material_id,structure\n1,2\n")
    for name, message in {
        "empty": "has neither generated_structures.json.gz nor CIFs; give a folder",
        "missing": "there is no file or folder",
        "cut.json.gz": "cannot be read",
        "none.json": "holds no structure",
        "dict.json": "holds a dict, not a list of structures",
        "text.json": "cannot be read: Expecting value",
        "some.txt": "is of no known kind; give",
        "no.csv": "has no column 'cif'",
    }.items():
        with pytest.raises(DatasetError, match=message) as error:
            read_entries(tmp_path / name, HERE)
        assert name in str(error.value)
        assert "\n" not in str(error.value)
