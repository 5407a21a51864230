"""Splits by folder and by name, skipped rows with reasons, and errors with advice."""

import gzip

import numpy as np
import pytest
from absl import logging as absl_logging
from pymatgen.core import Lattice, Structure

from chemeleon2_jax.common.errors import DatasetError
from chemeleon2_jax.crystals.arrays import Crystals
from chemeleon2_jax.data import datasets, embedded
from chemeleon2_jax.data.cache import crystals_to_arrays
from chemeleon2_jax.data.datasets import canonical_name, load_split, size_table
from chemeleon2_jax.data.sources import NAMED_SETS
from chemeleon2_jax.workers import WorkerPool

CESIUM_CHLORIDE = Structure(Lattice.cubic(4), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


@pytest.fixture
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_table(path, rows, header="material_id,cif,band_gap") -> None:
    lines = [header, *(f'{name},"{cif}",{value}' for name, cif, value in rows)]
    content = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def cif_of(*species) -> str:
    positions = [[i / len(species)] * 3 for i in range(len(species))]
    return Structure(Lattice.cubic(6), list(species), positions).to(fmt="cif")


@pytest.fixture
def folder(tmp_path, _own_cache):
    """A training file with one row for every reason to skip one."""
    good = CESIUM_CHLORIDE.to(fmt="cif")
    rows = [
        ("good", good, 1.5),
        ("nonsense", "this is no CIF", 1),
        ("disordered", cif_of({"Fe": 0.5, "Ni": 0.5}), 1),
        ("heavy", cif_of("Fm"), 1),
        ("large", cif_of(*["C"] * 6), 1),
        ("absent", good, ""),
        ("text", good, "high"),
        ("infinite", good, "inf"),
        ("empty", "", 1),
        ("", good, 2.5),
    ]
    write_table(tmp_path / "train.csv", rows)
    write_table(tmp_path / "val.csv.gz", rows[:1])
    (tmp_path / "test.csv").write_text("material_id,cif,band_gap\n")
    return tmp_path


def load(folder, split="train", **options):
    return load_split("", split, data_dir=folder, **options)


def test_every_bad_row_is_listed_with_its_reason(folder) -> None:
    split = load(folder, targets=["band_gap"], max_atoms=5)
    assert split.crystals.material_ids.tolist() == [b"good", b"10"]
    assert split.crystals.targets["band_gap"].tolist() == [1.5, 2.5]
    kinds = {(row.row, row.material_id): row.reason.partition(":")[0] for row in split.skipped}
    assert kinds == {
        (2, "nonsense"): "unparsable CIF",
        (3, "disordered"): "partial occupancy",
        (4, "heavy"): "element above Z = 99",
        (5, "large"): "too many atoms",
        (6, "absent"): "missing property 'band_gap'",
        (7, "text"): "property 'band_gap' is not a number",
        (8, "infinite"): "property 'band_gap' is not finite",
        (9, "empty"): "missing CIF",
    }
    assert {row.file for row in split.skipped} == {str(folder / "train.csv")}
    assert split.skipped[3].reason == "too many atoms: 6, max_atoms is 5"


def test_columns_that_are_not_loaded_skip_nothing(folder) -> None:
    split = load(folder)
    assert split.crystals.material_ids.tolist() == [
        b"good",
        b"large",
        b"absent",
        b"text",
        b"infinite",
        b"10",
    ]
    assert split.crystals.targets == {}


def test_the_report_counts_and_lists(folder, caplog, monkeypatch) -> None:
    monkeypatch.setattr(datasets, "NUM_LISTED", 2)
    with caplog.at_level("WARNING", absl_logging.get_absl_logger().name):
        split = load(folder, targets=["band_gap"])
    report = split.report()
    assert "3 of 10 crystals; skipped 7 (1 x unparsable CIF, " in report
    assert "row 3 (disordered): partial occupancy" in report
    assert "heavy" not in report
    assert "and 5 more" in report
    assert report in caplog.text


def test_other_targets_do_not_parse_again(folder, monkeypatch) -> None:
    load(folder)
    monkeypatch.delattr(WorkerPool, "map")
    split = load(folder, targets=["gap"], rename={"band_gap": "gap"})
    assert split.crystals.targets["gap"].tolist() == [1.5, 1.0, 2.5]


def test_columns_can_be_renamed(folder) -> None:
    write_table(folder / "val.csv", [("a", cif_of("C"), 3)], header="name,structure,Eg (eV)")
    rename = {"structure": "cif", "name": "material_id", "Eg (eV)": "gap"}
    split = load(folder, "val", targets=["gap"], rename=rename)
    assert split.crystals.material_ids.tolist() == [b"a"]
    assert split.crystals.targets["gap"].tolist() == [3.0]


def test_ids_are_optional_and_text(folder) -> None:
    write_table(folder / "val.csv", [("0012", cif_of("C"), 1), ("7", cif_of("C"), 1)])
    assert load(folder, "val").crystals.material_ids.tolist() == [b"0012", b"7"]
    (folder / "val.csv").write_text(f'cif\n"{cif_of("C")}"\n')
    assert load(folder, "val").crystals.material_ids.tolist() == [b"1"]


def test_missing_columns_are_found_before_anything_is_parsed(folder, monkeypatch) -> None:
    monkeypatch.delattr(datasets, "parse_file")
    with pytest.raises(
        DatasetError, match=r"train.csv has no column 'bandgap'; did you mean 'band"
    ):
        load(folder, targets=["bandgap"])
    with pytest.raises(DatasetError, match="has no column 'cif'"):
        load(folder, rename={"cif": "structure"})
    write_table(folder / "val.csv", [("a", "x", "NaCl")], header="material_id,cif,formula")
    with pytest.raises(DatasetError, match="'formula' holds no number"):
        load(folder, "val", targets=["formula"])


def test_empty_splits_are_errors(folder) -> None:
    with pytest.raises(DatasetError, match=r"test.csv has a header but no row"):
        load(folder, "test")
    write_table(folder / "test.csv", [("a", "nonsense", 1)])
    with pytest.raises(DatasetError, match=r"no good row.*skipped 1 \(1 x unparsable CIF"):
        load(folder, "test")
    with pytest.raises(DatasetError, match="no good row"):
        load(folder, "val", max_atoms=1)


def test_corrupt_files_are_errors(folder) -> None:
    content = (folder / "val.csv.gz").read_bytes()
    (folder / "val.csv.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match=r"val.csv.gz cannot be read"):
        load(folder, "val")


def test_the_folder_beats_the_name(folder) -> None:
    split = load_split("mp-20", "val", data_dir=str(folder))
    assert len(split.crystals) == 1
    with pytest.raises(DatasetError, match="is not a folder"):
        load_split("prototypes", "val", data_dir="/nowhere")


def test_names_in_any_spelling() -> None:
    assert canonical_name("mp_20") == canonical_name("MP-20") == "mp-20"
    assert canonical_name("alex-mp-20-bandgap") == "alex_mp_20_bandgap"
    assert canonical_name("alex_mp_20") == "alex-mp-20"
    assert canonical_name("prototypes") == "prototypes"
    assert canonical_name("Structure_Types") == "structure-types"
    with pytest.raises(DatasetError, match=r"no data set 'mp_200': did you mean 'mp-20'"):
        canonical_name("mp_200")
    with pytest.raises(DatasetError, match=r"data\.data_dir"):
        load_split("my_set", "train")


def test_seven_sets_are_known() -> None:
    assert set(NAMED_SETS) == {
        "mp-20",
        "alex-mp-20",
        "alex_mp_20_bandgap",
        "mp-120",
        "perov-5",
        "carbon-24",
        "mpts-52",
    }
    for name, entry in NAMED_SETS.items():
        expected = {"train", "val"} if name.startswith("alex") else {"train", "val", "test"}
        assert set(entry.files) == expected
        if entry.archive is None:
            assert all(len(file.git_blob_sha1) == 40 for file in entry.files.values())


def test_size_table() -> None:
    crystals = Crystals.from_list([([1] * n, np.zeros((n, 3)), np.eye(3)) for n in (1, 3, 3)])
    assert size_table(crystals).tolist() == [0, 1, 0, 2]


@pytest.fixture
def _few_prototypes(monkeypatch):
    crystals = embedded.build_embedded("prototypes", max_prototypes=12)
    monkeypatch.setattr(embedded, "load_embedded", lambda _: crystals)


@pytest.mark.usefixtures("_few_prototypes")
def test_prototypes_by_name() -> None:
    split = load_split("prototypes", "train", targets=["density"])
    assert set(split.crystals.targets) == {"density"}
    renamed = load_split("prototypes", "val", targets=["rho"], rename={"density": "rho"})
    assert set(renamed.crystals.targets) == {"rho"}
    small = load_split("prototypes", "train", max_atoms=4)
    assert small.crystals.num_atoms.max() <= 4
    assert len(small.crystals) + len(small.skipped) == len(split.crystals)
    with pytest.raises(DatasetError, match="no property 'densty'; did you mean 'density'"):
        load_split("prototypes", "val", targets=["densty"])
    with pytest.raises(DatasetError, match="no split 'validation'"):
        load_split("prototypes", "validation")


@pytest.mark.usefixtures("_own_cache")
def test_real_sets(shared_dir) -> None:
    cases = {"perov-5": "heat_all", "carbon-24": "energy_per_atom"}
    for name, target in cases.items():
        folder = shared_dir / "data" / name
        split = load_split("", "val", data_dir=folder, targets=[target])
        assert not split.skipped
        assert np.isfinite(split.crystals.targets[target]).all()
        assert (np.linalg.det(split.crystals.lattices.astype(float)) > 0).all()
        # Standard orientation: c along z, a in the xz plane.
        assert np.abs(split.crystals.lattices[:, [2, 2, 0], [0, 1, 1]]).max() < 1e-5


def test_a_million_crystals_fit_in_a_gigabyte() -> None:
    """13 bytes an atom, 40 a crystal, and the ids: the flat arrays hold nothing else."""
    num_crystals, atoms = 10_000, 15
    crystals = Crystals.from_list(
        [(np.ones(atoms), np.zeros((atoms, 3)), np.eye(3))] * num_crystals,
        material_ids=[f"agm{i:09d}" for i in range(num_crystals)],
        targets={"band_gap": np.zeros(num_crystals)},
    )
    arrays = [*crystals_to_arrays(crystals).values(), crystals.offsets]
    assert sum(array.nbytes for array in arrays) / num_crystals < 1000


def inconsistent(cif: str) -> str:
    """A CIF whose formula has one atom more than its sites."""
    return cif.replace("_chemical_formula_sum   'Cs1 Cl1'", "_chemical_formula_sum   'Cs1 Cl1 H1'")


@pytest.mark.usefixtures("_own_cache")
def test_inconsistent_cifs_are_skipped_unless_asked_for(tmp_path) -> None:
    good = CESIUM_CHLORIDE.to(fmt="cif")
    write_table(tmp_path / "train.csv", [("a", good, 1), ("b", inconsistent(good), 2)])
    split = load(tmp_path, targets=["band_gap"])
    assert split.crystals.material_ids.tolist() == [b"a"]
    assert [row.describe() for row in split.skipped] == [
        "row 2 (b): inconsistent CIF: formula: read Cl1 Cs1, declared Cl1 Cs1 H1"
    ]
    assert "data.keep_inconsistent=True keeps" in split.report()
    kept = load(tmp_path, targets=["band_gap"], keep_inconsistent=True)
    assert kept.crystals.material_ids.tolist() == [b"a", b"b"]
    assert kept.crystals.targets["band_gap"].tolist() == [1, 2]
    assert not kept.skipped
    assert kept.remarks[0].row == 2
    assert "read with a remark 1 (1 x inconsistent CIF)" in kept.report()


@pytest.mark.usefixtures("_own_cache")
def test_the_first_of_several_blocks_is_a_rows_crystal(tmp_path) -> None:
    good = CESIUM_CHLORIDE.to(fmt="cif")
    write_table(tmp_path / "train.csv", [("a", good + good, 1)])
    split = load(tmp_path)
    assert len(split.crystals) == 1
    assert "alone is read, of 2 with crystals" in split.remarks[0].reason


@pytest.mark.usefixtures("_own_cache")
def test_a_rename_of_a_column_that_there_is_not(tmp_path) -> None:
    write_table(tmp_path / "train.csv", [("a", CESIUM_CHLORIDE.to(fmt="cif"), 1)])
    with pytest.raises(DatasetError, match=r"no column 'cif' \(column 'foo' by data.rename\)"):
        load(tmp_path, rename={"foo": "cif"})
    with pytest.raises(DatasetError, match="no property 'foo'"):
        load_split("structure-types", "val", rename={"foo": "density"})


@pytest.mark.usefixtures("_own_cache")
def test_one_file_split_by_shares(tmp_path) -> None:
    good = CESIUM_CHLORIDE.to(fmt="cif")
    rows = [(f"m{i}", "broken" if i == 7 else good, i) for i in range(20)]
    write_table(tmp_path / "all.csv.gz", rows)
    shares = (0.7, 0.2, 0.1)
    parts = [load(tmp_path, name, shares=shares) for name in ("train", "val", "test")]
    assert [len(part.crystals) + len(part.skipped) for part in parts] == [14, 4, 2]
    ids = [name.decode() for part in parts for name in part.crystals.material_ids]
    skipped = [row.material_id for part in parts for row in part.skipped]
    assert sorted(ids + skipped) == sorted(name for name, _, _ in rows)
    assert skipped == ["m7"]
    file = load_split("", "train", data_dir=tmp_path / "all.csv.gz", shares=shares)
    assert file.crystals.material_ids.tolist() == parts[0].crystals.material_ids.tolist()
    with pytest.raises(DatasetError, match=r"data\.data_dir, which is empty"):
        load_split("mp-20", "train", shares=shares)
