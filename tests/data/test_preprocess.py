"""Parsing in processes, and the cache of the results."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from chemeleon2_jax.data import parse as parsing
from chemeleon2_jax.data import preprocess
from chemeleon2_jax.data.cache import crystals_from_arrays, crystals_to_arrays
from chemeleon2_jax.data.parse import parse_crystal
from chemeleon2_jax.data.preprocess import parse_file, read_property
from chemeleon2_jax.workers import Outcome, WorkerPool


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def table(tmp_path):
    """Four rows: a crystal, nonsense, too few fields, another crystal."""
    path = tmp_path / "train.csv"
    first = Structure(Lattice.cubic(3), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    second = Structure(Lattice.hexagonal(3, 5), ["Ti"], [[0.1, 0.2, 0.3]])
    path.write_text(
        f'material_id,cif,y\n0001,"{first.to(fmt="cif")}",1\nb,nonsense,2\nc\n'
        f',"{second.to(fmt="cif")}",\n'
    )
    return path


def parse(path, **options):
    return parse_file(path, cif_column="cif", id_column="material_id", **options)


def assert_same(a, b) -> None:
    assert (a.num_rows, a.skipped, a.remarks) == (b.num_rows, b.skipped, b.remarks)
    np.testing.assert_array_equal(a.rows, b.rows)
    for name, array in crystals_to_arrays(a.crystals).items():
        np.testing.assert_array_equal(array, crystals_to_arrays(b.crystals)[name])


def test_good_and_bad_rows(table) -> None:
    parsed = parse(table)
    assert parsed.num_rows == 4
    assert parsed.rows.tolist() == [1, 4]
    assert parsed.crystals.material_ids.tolist() == [b"0001", b"4"]
    assert parsed.crystals.atom_types.tolist() == [55, 17, 22]
    assert parsed.crystals.frac_coords.dtype == parsed.crystals.lattices.dtype == np.float32
    assert [(row, name) for row, name, _ in parsed.skipped] == [(2, "b"), (3, "c")]
    assert parsed.skipped[0][2].startswith("unparsable CIF")
    assert parsed.skipped[1][2] == "wrong number of fields: 1, the header has 3"


def test_processes_and_batches_change_nothing(table, monkeypatch) -> None:
    expected = parse(table, num_workers=0)
    monkeypatch.setattr(preprocess, "VERSION", -2)
    monkeypatch.setattr(parsing, "ROWS_AT_ONCE", 3)
    monkeypatch.setattr(parsing, "CHUNK_SIZE", 1)
    assert_same(parse(table, num_workers=2), expected)


def test_a_hit_parses_nothing_and_a_copy_hits(table, tmp_path, monkeypatch) -> None:
    parsed = parse(table)
    copy = tmp_path / "copy.csv"
    copy.write_bytes(table.read_bytes())
    with monkeypatch.context() as patch:
        patch.delattr(WorkerPool, "map")
        assert_same(parse(table), parsed)
        assert_same(parse(copy), parsed)


@pytest.mark.parametrize("change", ["content", "version", "column"])
def test_other_inputs_miss_the_cache(table, monkeypatch, change) -> None:
    parse(table)
    options = {"cif_column": "cif", "id_column": "material_id"}
    if change == "content":
        table.write_text(table.read_text() + "d,nonsense,3\n")
    elif change == "version":
        monkeypatch.setattr(preprocess, "VERSION", -1)
    else:
        options["id_column"] = None
    calls = []
    nothing = parsing._collect([], [], 1)
    monkeypatch.setattr(preprocess, "parse_rows", lambda *a, **k: calls.append(a) or nothing)
    parse_file(table, **options)
    assert len(calls) == 1


def fail_with(monkeypatch, errors):
    """Let the row without a CIF fail with one of `errors` after the other, as in a worker."""
    answer, calls = WorkerPool.map, []

    def fail(self, fn, items, **options):
        outcomes = answer(self, fn, items, **options)
        calls.append(len(items))
        return [
            o if item != "nonsense" or not errors else Outcome(None, errors.pop(0))
            for item, o in zip(items, outcomes, strict=True)
        ]

    monkeypatch.setattr(WorkerPool, "map", fail)
    return calls


def test_a_row_that_a_busy_machine_failed_is_tried_again(table, monkeypatch) -> None:
    expected = parse(table)
    monkeypatch.setattr(preprocess, "VERSION", -3)
    calls = fail_with(monkeypatch, ["timeout after 60 s"])
    assert_same(parse(table), expected)
    assert_same(parse(table), expected)
    assert calls == [4, 1]  # the second time, nothing is parsed


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("timeout after 60 s", "timeout: after 60 s"),
        ("worker died (signal 9)", "worker died: signal 9"),
    ],
)
def test_rows_that_a_busy_machine_failed_are_not_cached(table, monkeypatch, caplog, error, reason):
    calls = fail_with(monkeypatch, [error, error])
    with caplog.at_level("WARNING"):
        parsed = parse(table)
    assert parsed.skipped[0] == (2, "b", reason)
    assert "1 rows were given up" in caplog.text
    again = parse(table)
    assert again.skipped[0][2].startswith("unparsable CIF")
    assert parse(table).skipped == again.skipped
    assert calls == [4, 1, 4, 0]


@pytest.mark.parametrize("damage", ["bytes", "arrays"])
def test_a_damaged_cache_is_built_again(table, tmp_path, damage) -> None:
    parsed = parse(table)
    (cached,) = (tmp_path / "cache").rglob("crystals-*.npz")
    content = cached.read_bytes()
    if damage == "bytes":
        cached.write_bytes(content[: len(content) // 2])
    else:
        np.savez(cached, num_atoms=np.array([3]), atom_types=np.array([1]))
    assert_same(parse(table), parsed)
    assert cached.read_bytes() == content


def test_without_a_cache_everything_works(table, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(parse(table).crystals) == 2
    assert read_property(table, "y")[0][:2].tolist() == [1.0, 2.0]


def test_properties_are_cached(table, monkeypatch) -> None:
    values, reasons = read_property(table, "y")
    np.testing.assert_array_equal(values, [1, 2, np.nan, np.nan])
    assert reasons == {3: "missing property 'y'", 4: "missing property 'y'"}
    monkeypatch.delattr(preprocess.csv_files, "read_numbers")
    again, reasons_again = read_property(table, "y")
    np.testing.assert_array_equal(again, values)
    assert reasons_again == reasons


def test_crystals_are_parsed_as_the_original_does() -> None:
    original = Structure(Lattice([[4, 0, 0], [8, 4, 0], [0, 0, 3]]), ["Fe"], [[0.25, 0, 0]])
    types, frac, lattice = parse_crystal(original.to(fmt="cif")).arrays
    assert types.tolist() == [26]
    reduced = original.get_reduced_structure()
    expected = Lattice.from_parameters(*reduced.lattice.parameters).matrix
    np.testing.assert_allclose(lattice, expected, atol=1e-5)
    np.testing.assert_allclose(frac, reduced.frac_coords, atol=1e-5)


def test_arrays_that_do_not_fit_are_refused(table) -> None:
    arrays = crystals_to_arrays(parse(table).crystals)
    with pytest.raises(ValueError, match="frac_coords has shape"):
        crystals_from_arrays(arrays | {"frac_coords": np.zeros((1, 3))})
    with pytest.raises(KeyError):
        crystals_from_arrays({"num_atoms": np.array([1])})


def test_short_files_start_no_process(monkeypatch) -> None:
    monkeypatch.setattr(parsing, "default_workers", lambda: 8)
    assert parsing._count_workers(None, 700) == 0
    assert parsing._count_workers(None, 1300) == 3
    assert parsing._count_workers(None, 1_000_000) == 8
    assert parsing._count_workers(1, 1_000_000) == 0
    assert parsing._count_workers(3, 2) == 3
