"""Folders and archives of mixed files: what is read, what is not, and why."""

import gzip
import json
import zipfile

import pytest

from chemeleon2_jax.common.errors import DatasetError
from chemeleon2_jax.crystals.poscar import read_poscar
from chemeleon2_jax.data.members import (
    HIDDEN,
    NO_CRYSTALS,
    Member,
    arrays_from_dict,
    find_members,
    read_member,
)
from chemeleon2_jax.data.structure_files import FAILED, OK, describe_reading, read_entries
from chemeleon2_jax.workers import WorkerPool
from tests.tiny import perovskite, rocksalt

HERE = WorkerPool(0)
SALT = rocksalt("Na", "Cl", 5.64)
CIF = SALT.to(fmt="cif")
OTHER = perovskite("Sr", "Ti", 3.905).to(fmt="cif")
HUGE = CIF.replace("5.64", "30.0") + "".join(f" C C{i} 1 0.{i} 0 0 1\n" for i in range(1000, 7000))

FILES = {
    "b.cif": CIF.encode(),
    "sub/a.CIF": OTHER.encode(),
    "packed.cif.gz": gzip.compress(rocksalt("K", "F", 5.3).to(fmt="cif").encode()),
    "sub/deep/POSCAR": SALT.to(fmt="poscar").encode(),
    "e.vasp": OTHER.encode(),  # no POSCAR
    "one.json": json.dumps(SALT.as_dict()).encode(),
    "list.json": json.dumps([SALT.as_dict(), None, {}]).encode(),
    "two.cif": (CIF + OTHER).encode(),
    "z_copy.cif": CIF.encode(),
    "huge.cif": HUGE.encode(),
    "run.json": b'{"num_samples": 3}',
    "._b.cif": b"\0\5\x16\7",
    "__MACOSX/._b.cif": b"\0\5\x16\7",
    "sub/.hidden/c.cif": CIF.encode(),
    "paper.docx": b"PK",
    "a.xyz": b"1\n\nNa 0 0 0\n",
    "b.xyz": b"1\n\nNa 0 0 0\n",
    "OUTCAR": b"",
}


@pytest.fixture(params=["folder", "archive"])
def source(request, tmp_path):
    if request.param == "archive":
        path = tmp_path / "mail.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in FILES.items():
                archive.writestr(name, content)
            archive.mkdir("empty")
        return path
    folder = tmp_path / "mail"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_every_file_is_read_or_counted(source) -> None:
    members, left_out = find_members(source)
    assert [member.name for member in members] == [
        *("b.cif", "e.vasp", "huge.cif", "list.json", "one.json", "packed.cif.gz", "run.json"),
        *("sub/a.CIF", "sub/deep/POSCAR", "two.cif", "z_copy.cif"),
    ]
    assert {why: len(names) for why, names in left_out.items()} == {
        HIDDEN: 3,
        ".docx": 1,
        ".xyz": 2,
        "no suffix": 1,
    }


def test_entries_have_their_crystals_reasons_and_warnings(source, caplog) -> None:
    with caplog.at_level("WARNING"):
        entries = {entry.name: entry for entry in read_entries(source, HERE)}
    read = [name for name, entry in entries.items() if entry.status == OK]
    assert read == [
        *("b.cif", "list.json", "one.json", "packed.cif.gz", "sub/a.CIF", "sub/deep/POSCAR"),
        *("two.cif", "two.cif#2", "z_copy.cif"),
    ]
    failed = {name: entry.reason for name, entry in entries.items() if entry.status == FAILED}
    assert list(failed) == ["e.vasp", "huge.cif", "list.json#3"]
    assert failed["e.vasp"].startswith("unparsable POSCAR")
    assert "atoms in a crystal are too many" in failed["huge.cif"]
    assert entries["z_copy.cif"].warning == "a copy of b.cif"
    assert sorted(entries["two.cif#2"].arrays[0].tolist()) == [8, 8, 8, 22, 38]
    text = caplog.text
    assert "9 of 13 crystals read" in text
    assert "2 x .xyz (a.xyz, ...)" in text
    assert NO_CRYSTALS in text
    assert len(text.splitlines()) < 24


def test_a_long_list_fits_on_a_screen(tmp_path) -> None:
    for i in range(60):
        (tmp_path / f"bad_{i}.cif").write_text(f"data_x\n_cell_length_a x{i}\n")
        (tmp_path / f"file.x{i}").write_text("")
    (tmp_path / "good.cif").write_text(CIF)
    text = describe_reading("x", read_entries(tmp_path, HERE), find_members(tmp_path)[1])
    assert len(text.splitlines()) < 24
    assert max(map(len, text.splitlines())) < 600
    assert "failed 60 (60 x unparsable CIF)" in text
    assert "and 54 more" in text


def test_broken_archives_and_files(tmp_path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(b"PK no archive")
    with pytest.raises(DatasetError, match="no zip archive, or a broken one"):
        read_entries(path, HERE)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.cif", CIF)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"_cell_length_a", b"_cell_length_x"))  # its checksum fails
    (entry,) = read_entries(path, HERE)
    assert entry.reason.startswith("unreadable file: Bad CRC-32")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "")
    with pytest.raises(DatasetError, match=r"holds no structure; not read: 1 x .txt"):
        read_entries(path, HERE)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("\u00e9.cif", CIF)
    path.write_bytes(path.read_bytes().replace("\u00e9".encode(), b"\xe9\xe9"))  # no UTF-8
    with pytest.raises(DatasetError, match="no zip archive, or a broken one"):
        read_entries(path, HERE)
    cut = tmp_path / "cut.cif.gz"
    cut.write_bytes(gzip.compress(CIF.encode())[:-20])
    with pytest.raises(ValueError, match="unreadable file"):
        read_member(Member("cut.cif.gz", cut))


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("chemeleon2_jax.data.members.MAX_BYTES", 10_000)
    bomb = tmp_path / "bomb.cif.gz"
    bomb.write_bytes(gzip.compress(b" " * 20_000))
    with pytest.raises(ValueError, match="too long a file"):
        read_member(Member("bomb.cif.gz", bomb))


POSCAR = "salt\n1.0\n4 0 0\n0 4 0\n0 0 4\n{} Cl\n1 1\nDirect\n{} 0 0\n0.5 0.5 0.5\n"


@pytest.mark.parametrize(
    ("element", "coordinate", "reason"),
    [("X", "0", "not an element: X"), ("Na", "nan", "not finite")],
)
def test_poscars_with_what_is_no_crystal(element, coordinate, reason):
    with pytest.raises(ValueError, match=reason):
        read_poscar(POSCAR.format(element, coordinate))


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"abc": [float("nan"), 0, 0]}, "not finite"), ({"abc": [10**400, 0, 0]}, "OverflowError")],
)
def test_json_with_what_is_no_number(change, reason):
    content = SALT.as_dict()
    content["sites"][0].update(change)
    with pytest.raises(ValueError, match=reason):
        arrays_from_dict(content)


def test_an_occupancy_rounded_below_one_is_full():
    content = SALT.as_dict()
    content["sites"][0]["species"][0]["occu"] = 0.9999
    assert len(arrays_from_dict(content)[0]) == len(SALT)
    content["sites"][0]["species"][0]["occu"] = 0.99
    with pytest.raises(ValueError, match="partial occupancy"):
        arrays_from_dict(content)
