"""Files with one fault each: what is read is what the file says, and what fails says why."""

import csv
from collections import Counter

import pytest
from pymatgen.core import Element

from chemeleon2_jax.data.members import Member, read_member
from tests.nasty import make

ROWS = list(csv.DictReader((make.FOLDER / make.TABLE).open()))


def formula(arrays) -> str:
    counts = Counter(Element.from_Z(int(z)).symbol for z in arrays[0])
    return " ".join(f"{symbol}{counts[symbol]}" for symbol in sorted(counts))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["file"])
def test_a_nasty_file(row) -> None:
    said, gives = [], []
    try:
        content = read_member(Member(row["file"], make.FOLDER / row["file"]))
    except ValueError as error:
        said.append(str(error))
        gives.append("-")
    else:
        for crystal in content.crystals:
            said += [crystal.reason or "", *crystal.notes, *crystal.doubts]
            gives.append("-" if crystal.arrays is None else formula(crystal.arrays))
    assert " | ".join(gives) == row["gives"]
    text = "; ".join(filter(None, said))
    assert row["says"] in text
    assert "\n" not in text
    if not row["says"]:
        assert not text


def test_the_folder_is_what_its_script_makes() -> None:
    expected = make.contents()
    names = {path.name for path in make.FOLDER.iterdir() if path.is_file()}
    assert names - {"make.py", "__init__.py"} == set(expected)
    for name, content in expected.items():
        if not name.endswith(".gz"):  # zlib's versions pack otherwise
            assert (make.FOLDER / name).read_bytes() == content, name
