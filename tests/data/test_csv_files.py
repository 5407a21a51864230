"""Finding and reading CSV files."""

import gzip

import numpy as np
import pytest

from chemeleon2_jax.common.errors import DatasetError
from chemeleon2_jax.common.suggest import suggest
from chemeleon2_jax.data.csv_files import (
    check_rename,
    choose_rows,
    find_column,
    find_only_file,
    find_split_file,
    present_renames,
    read_header,
    read_numbers,
    read_rows,
)

TABLE = 'material_id,cif,band_gap\n0012,"two\nlines, and a comma",1.5\n\nb,x,\n'


def test_rows_keep_text_as_it_is(tmp_path) -> None:
    path = tmp_path / "train.csv"
    path.write_text(TABLE)
    assert read_header(path) == ["material_id", "cif", "band_gap"]
    rows = list(read_rows(path))
    assert rows == [["0012", "two\nlines, and a comma", "1.5"], ["b", "x", ""]]


def test_gzip_and_byte_order_marks(tmp_path) -> None:
    path = tmp_path / "train.csv.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + TABLE.encode()))
    assert read_header(path)[0] == "material_id"


def test_long_fields(tmp_path) -> None:
    path = tmp_path / "train.csv"
    path.write_text(f'cif\n"{"x" * 300_000}"\n')
    assert len(next(read_rows(path))[0]) == 300_000


def test_the_plain_file_comes_first(tmp_path) -> None:
    (tmp_path / "val.csv.gz").write_bytes(b"")
    assert find_split_file(tmp_path, "val").name == "val.csv.gz"
    (tmp_path / "val.csv").write_text("")
    assert find_split_file(tmp_path, "val").name == "val.csv"


def test_missing_files_and_folders(tmp_path) -> None:
    (tmp_path / "Train.csv").write_text("")
    with pytest.raises(DatasetError, match=r"neither train.csv nor train.csv.gz; it holds Train"):
        find_split_file(tmp_path, "train")
    with pytest.raises(DatasetError, match="is not a folder"):
        find_split_file(tmp_path / "nowhere", "train")
    with pytest.raises(DatasetError, match="did you mean 'val'"):
        find_split_file(tmp_path, "valid")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv.gz", gzip.compress(TABLE.encode() * 100, mtime=0)[:-20]),
        ("x.csv.gz", b"not gzip at all"),
        ("x.csv", TABLE.encode()[:50]),
        ("x.csv", "material_id,cif\na,b\xff\n".encode("latin-1")),
    ],
)
def test_corrupt_files_are_named(tmp_path, name, content) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=rf"{path}.*corrupt, cut short"):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("content", "message"), [("", "no header"), ("a,b,a\n1,2,3\n", "'a' more than once")]
)
def test_bad_headers(tmp_path, content, message) -> None:
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(DatasetError, match=message):
        read_header(tmp_path / "x.csv")


def test_columns_by_their_new_names(tmp_path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(TABLE)
    assert find_column(path, "cif", {}) == "cif"
    assert find_column(path, "gap", {"band_gap": "gap"}) == "band_gap"
    with pytest.raises(DatasetError, match=r"no column 'bandgap'; did you mean 'band_gap'"):
        find_column(path, "bandgap", {})
    with pytest.raises(DatasetError, match=r"no column 'gap' \(column 'gaps' by data.rename\)"):
        find_column(path, "gap", {"gaps": "gap"})
    with pytest.raises(DatasetError, match="material_id and band_gap are both called 'x'"):
        find_column(path, "x", {"material_id": "x", "band_gap": "x"})


def test_blank_lines_before_the_header(tmp_path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("\n , ,\n" + TABLE)
    assert read_header(path) == ["material_id", "cif", "band_gap"]
    assert len(list(read_rows(path))) == 2


def test_a_missing_column_of_cifs_is_found_by_its_content(tmp_path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('id,structure\n1,"data_x\n_cell_length_a 4\n"\n')
    with pytest.raises(DatasetError, match=r"did you mean 'structure'.*data.rename=structure:cif"):
        find_column(path, "cif", {})
    path.write_text("id,formula\n1,NaCl\n")
    with pytest.raises(DatasetError, match=r"'cif'; Known: id, formula.*rename=<column>:cif"):
        find_column(path, "cif", {})
    path.write_text("id;cif\n1;x\n")
    with pytest.raises(DatasetError, match="separated by semicolons"):
        find_column(path, "cif", {})


def test_renames_of_columns_that_are_not_there(tmp_path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(TABLE)
    check_rename(path, {"band_gap": "gap"})
    with pytest.raises(DatasetError, match=r"no column 'cif' \(column 'foo' by data.rename\)"):
        check_rename(path, {"foo": "cif"})
    assert present_renames(path, {"foo": "cif", "band_gap": "gap"}) == {"band_gap": "gap"}


def test_one_file_in_place_of_three(tmp_path) -> None:
    (tmp_path / "all.csv").write_text(TABLE)
    with pytest.raises(DatasetError, match=r"it holds all.csv; .*data.split=0.8,0.1,0.1"):
        find_split_file(tmp_path, "train")
    with pytest.raises(DatasetError, match=r"is not a folder.*data.split=0.8,0.1,0.1"):
        find_split_file(tmp_path / "all.csv", "train")
    assert find_only_file(tmp_path) == find_only_file(tmp_path / "all.csv") == tmp_path / "all.csv"
    (tmp_path / "more.csv.gz").write_text("")
    with pytest.raises(DatasetError, match=r"holds all.csv, more.csv.gz; give the file"):
        find_only_file(tmp_path)
    with pytest.raises(DatasetError, match="there is no file or folder"):
        find_only_file(tmp_path / "nowhere")


@pytest.mark.parametrize("num_rows", [0, 1, 7, 100])
def test_shares_are_a_partition(num_rows) -> None:
    parts = [choose_rows(num_rows, split, (0.8, 0.1, 0.1)) for split in ("train", "val", "test")]
    assert sorted(np.concatenate(parts).tolist()) == list(range(1, num_rows + 1))
    assert abs(len(parts[0]) - 0.8 * num_rows) <= 1
    np.testing.assert_array_equal(parts[0], choose_rows(num_rows, "train", (0.8, 0.1, 0.1)))


def test_numbers_and_why_there_is_none(tmp_path) -> None:
    texts = ["1.5", "-2e3", "", "NaN", "None", "inf", "abc", "1_000", "1e300", "True"]
    path = tmp_path / "x.csv"
    path.write_text("id,y\n" + "".join(f"i,{text}\n" for text in texts) + "short\n")
    values, reasons = read_numbers(path, "y")
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values[:2], [1.5, -2000])
    assert np.isnan(values[2:]).all()
    assert sorted(reasons) == list(range(3, 12))
    assert reasons[3] == reasons[4] == reasons[5] == reasons[11] == "missing property 'y'"
    assert reasons[6] == "property 'y' is not finite: 'inf'"
    assert reasons[7] == "property 'y' is not a number: 'abc'"
    assert "not a number" in reasons[8]
    assert "not finite" in reasons[9]
    assert "not a number" in reasons[10]


def test_a_column_of_text_is_an_error(tmp_path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("id,formula\n1,NaCl\n2,KCl\n")
    with pytest.raises(DatasetError, match=r"column 'formula' holds no number; row 1.*NaCl"):
        read_numbers(path, "formula")


def test_suggestions() -> None:
    assert suggest("BandGap", ["density", "band_gap"]).startswith("did you mean 'band_gap'?")
    assert suggest("zzz", ["a", "b"]) == "Known: a, b"
    assert suggest("zzz", []) == "Known: nothing"
