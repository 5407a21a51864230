"""Known crystals: by name, by path, as a list."""

import json

import pytest
from pymatgen.core import Lattice, Structure

from chemeleon2_jax.common.errors import DatasetError
from chemeleon2_jax.crystals.arrays import Crystals
from chemeleon2_jax.data.references import load_reference
from chemeleon2_jax.workers import WorkerPool
from tests.tiny import make_crystals, perovskite, rocksalt

HERE = WorkerPool(0)
SALT, OXIDE = rocksalt("Na", "Cl", 5.64), perovskite("Sr", "Ti", 3.905)
DISORDERED = Structure(Lattice.cubic(4.0), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])


def test_a_reference_is_known_by_its_crystals(tmp_path, tiny_data):
    structures = [SALT, OXIDE]
    listed = load_reference(structures, HERE)
    path = tmp_path / "known.json"
    path.write_text(json.dumps([*(s.as_dict() for s in structures), None]))
    filed = load_reference(path, HERE)
    assert (listed.name, filed.name) == ("a list of 2", str(path))
    assert (listed.num_skipped, filed.num_skipped) == (0, 1)
    assert len(listed.crystals) == len(filed.crystals) == 2
    triples = [Crystals.concatenate([filed.crystals]).crystal(i) for i in range(2)]
    assert listed.sha256 == filed.sha256 == load_reference(triples, HERE).sha256
    assert listed.sha256 != load_reference(structures[::-1], HERE).sha256
    moved = [SALT, OXIDE.copy().translate_sites([0], [1e-3, 0, 0])]
    assert listed.sha256 != load_reference(moved, HERE).sha256


def test_splits_that_count(tiny_data):
    train = load_reference(tiny_data, HERE)
    both = load_reference(str(tiny_data), HERE, splits=["train", "val", "train"])
    assert (train.splits, both.splits) == (("train",), ("train", "val"))
    assert len(both.crystals) == len(train.crystals) + len(make_crystals()[2::6])
    assert train.num_skipped == 1
    assert train.name == str(tiny_data)


def test_a_reference_by_name_comes_before_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prototypes").mkdir()
    SALT.to(filename=str(tmp_path / "prototypes" / "salt.cif"))
    assert len(load_reference("Prototypes", HERE).crystals) > 100
    assert len(load_reference("./prototypes", HERE).crystals) == 1


@pytest.mark.parametrize(
    ("source", "splits", "error", "message"),
    [
        ("mp_02", ["train"], DatasetError, "no data set, file or folder 'mp_02': did you mean"),
        ("", ["train"], DatasetError, "the reference has no name"),
        ("prototypes", ["trian"], DatasetError, "no split 'trian': did you mean 'train'"),
        ("prototypes", [], DatasetError, "no split of prototypes"),
        ([], ["train"], ValueError, "the reference holds no structure"),
        ([SALT, DISORDERED], ["train"], ValueError, "reference 1 is not a crystal: partial"),
        ([SALT, None], ["train"], ValueError, "reference 1 is not a crystal"),
    ],
)
def test_sources_that_are_no_reference(source, splits, error, message):
    with pytest.raises(error, match=message):
        load_reference(source, HERE, splits=splits)


def test_a_reference_without_a_crystal(tmp_path):
    path = tmp_path / "bad.json"
    path.write_text("[null]")
    with pytest.raises(DatasetError, match=r"no crystal in the reference .*; 0: not built"):
        load_reference(path, HERE)
