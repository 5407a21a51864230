"""Fuzzer of what reads structures: it may refuse anything with a reason, and no more.

It needs atheris, which is no dependency of the tests (its wheels are for Linux)::

    pip install atheris
    python tests/fuzz/fuzz_structures.py --target=cif corpus -max_total_time=300

`--target=cif` fuzzes CIFs, `--target=poscar` POSCARs, `--target=json` lists of structures,
`--target=zip` an archive of files, `--target=csv` a CSV file of CIFs. The folder `corpus` is made
and seeded with the nasty files of the tests; what follows goes to libFuzzer. An exception that is
no error of its reader, a minute without an answer or 1.5 GB of memory stop it, and leave the input
in a file `crash-...`, `timeout-...` or `oom-...`.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import atheris
from pymatgen.core import Lattice, Structure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

with atheris.instrument_imports(include=["chemeleon2_jax", "zipfile", "csv"]):
    from chemeleon2_jax.common.errors import DatasetError
    from chemeleon2_jax.crystals.cif.reader import read_cif
    from chemeleon2_jax.crystals.limits import MAX_ATOMS
    from chemeleon2_jax.data import csv_files
    from chemeleon2_jax.data.members import Member, find_members, read_member

from tests.nasty import make

TARGETS = ("cif", "poscar", "json", "zip", "csv")
_NAMES = {"cif": "a.cif", "poscar": "a.vasp", "json": "a.json", "zip": "a.zip", "csv": "a.csv"}
_LIMITS = ("-timeout=60", "-rss_limit_mb=1536", "-max_len=8192")


def seeds() -> dict[str, list[bytes]]:
    """Inputs of each target that the reader understands."""
    nasty = {name: data for name, data in make.contents().items() if len(data) < 8000}
    cifs = [data for name, data in nasty.items() if name.endswith(".cif")]
    salt = Structure(Lattice.cubic(4), ["Na", "Cl"], [[0] * 3, [0.5] * 3])
    texts = [salt.to(fmt="cif"), salt.to(fmt="cif", symprec=0.1)]
    poscars = [data for name, data in nasty.items() if name.endswith(".vasp")]
    table = io.StringIO()
    csv.writer(table).writerows([["material_id", "cif"], *(["a", text] for text in texts)])
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b/a.cif", texts[0])
        archive.writestr("POSCAR", salt.to(fmt="poscar"))
        archive.writestr("packed.cif.gz", nasty["packed.cif.gz"])
    return {
        "cif": [*cifs, *(text.encode() for text in texts)],
        "poscar": [*poscars, salt.to(fmt="poscar").encode()],
        "json": [json.dumps([salt.as_dict(), None]).encode(), b"{}"],
        "zip": [packed.getvalue()],
        "csv": [table.getvalue().encode(), b"\n\ncif\nx\n"],
    }


def read(target: str, path: Path) -> None:
    """Read one file as the target says; errors of its readers are no finds."""
    if target == "csv":
        try:
            csv_files.find_column(path, "cif", {})
            fields = [row[0] for row in csv_files.read_rows(path)]
        except DatasetError:
            return
        for field in fields[:3]:
            try:
                read_cif(field)
            except ValueError as error:
                str(error).encode()
        return
    members = [Member(path.name, path)]
    if target == "zip":
        try:
            members, _ = find_members(path)
        except DatasetError:
            return
    for member in members[:20]:
        try:
            crystals = read_member(member).crystals
        except ValueError as error:
            str(error).encode()
            continue
        for crystal in crystals:
            if crystal is not None and crystal.arrays is not None:
                types, frac_coords, lattice = crystal.arrays
                assert 0 < len(types) == len(frac_coords) <= MAX_ATOMS
                assert abs(lattice).max() < 2e3


def main(arguments: list[str]) -> None:
    """Seed the corpus and fuzz."""
    target = arguments.pop(1).removeprefix("--target=")
    corpus = Path(arguments[1])
    corpus.mkdir(parents=True, exist_ok=True)
    for i, data in enumerate(seeds()[target]):
        (corpus / f"seed_{i}").write_bytes(data)
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None
    path = Path(tempfile.mkdtemp(dir=base)) / _NAMES[target]
    warnings.simplefilter("ignore")

    def one_input(data: bytes) -> None:
        path.write_bytes(data)
        read(target, path)

    # Given options come last, and win.
    atheris.Setup([arguments[0], *_LIMITS, *arguments[1:]], one_input)
    try:
        atheris.Fuzz()
    finally:
        path.unlink(missing_ok=True)
        os.rmdir(path.parent)


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1].removeprefix("--target=") not in TARGETS:
        sys.exit(f"usage: {sys.argv[0]} --target={'|'.join(TARGETS)} CORPUS [libFuzzer options]")
    main(sys.argv)
