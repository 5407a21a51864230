"""Files of a folder or a zip archive: which are read, and the crystals of each."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import struct
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pymatgen.core import Structure

from chemeleon2_jax.common.errors import DatasetError
from chemeleon2_jax.common.json_text import parse_json
from chemeleon2_jax.common.paths import printable
from chemeleon2_jax.crystals.arrays import CrystalArrays
from chemeleon2_jax.crystals.cif.reader import ReadCrystal, read_cif
from chemeleon2_jax.crystals.cif.syntax import MAX_BYTES, decode
from chemeleon2_jax.crystals.poscar import read_poscar
from chemeleon2_jax.crystals.structures import arrays_from_structure, check_arrays

HIDDEN = "hidden files and those that a Mac adds (._*, __MACOSX)"
NO_CRYSTALS = "JSON files without structures"

_CIF, _JSON, _POSCAR = "cif", "json", "poscar"
_KINDS = {".cif": _CIF, ".mcif": _CIF, ".json": _JSON, ".vasp": _POSCAR, ".poscar": _POSCAR}
# What reading broken or encrypted archives and files raises.
_UNREADABLE = (
    *(OSError, EOFError, OverflowError, ValueError),
    *(RuntimeError, NotImplementedError),  # zipfile: encrypted; a compression unknown to it
    *(zipfile.BadZipFile, zlib.error, struct.error, lzma.LZMAError),
)


@dataclass(frozen=True)
class Member:
    """A file to read.

    Attributes:
        name: relative to its folder or archive.
        path: of the file, or of the archive.
        index: of the file in the archive's directory; None for a file on its own.
    """

    name: str
    path: Path
    index: int | None = None


@dataclass(frozen=True)
class Content:
    """The crystals of a file, of which there may be none.

    Attributes:
        crystals: in order; for an element of a JSON list that is null, None.
        digest: of the bytes.
    """

    crystals: tuple[ReadCrystal | None, ...]
    digest: str


def kind_of(name: str) -> str | None:
    """Return the kind of a file by its name, or None if it is not read."""
    base = name.rpartition("/")[2].lower().removesuffix(".gz")
    if base.startswith(("poscar", "contcar")):
        return _POSCAR
    return _KINDS.get(os.path.splitext(base)[1])


def find_members(path: Path) -> tuple[list[Member], dict[str, list[str]]]:
    """Return the files of a folder and its subfolders, or of an archive, by name.

    Returns:
        the files to read, and {why: names} of those that are not.

    Raises:
        DatasetError: a broken archive.
    """
    listed = _list_archive(path) if path.is_file() else _list_folder(path)
    members, left_out = [], defaultdict(list)
    for member in sorted(listed, key=lambda member: member.name.split("/")):
        parts = member.name.split("/")
        if any(part.startswith(".") or part == "__MACOSX" for part in parts):
            left_out[HIDDEN].append(member.name)
        elif kind_of(member.name) is None:
            suffix = os.path.splitext(parts[-1].lower().removesuffix(".gz"))[1]
            left_out[f"{suffix or 'no suffix'}"].append(member.name)
        else:
            members.append(member)
    return members, dict(left_out)


def _list_folder(folder: Path) -> Iterator[Member]:
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root) / name
            if path.is_file():
                yield Member(printable(path.relative_to(folder).as_posix()), path)


def _list_archive(path: Path) -> list[Member]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except _UNREADABLE as error:
        raise DatasetError(f"{path} is no zip archive, or a broken one: {error}") from error
    return [
        Member(printable(info.filename), path, index)
        for index, info in enumerate(infos)
        if info.filename and not info.is_dir()
    ]


def read_member(member: Member) -> Content:
    """Return the crystals of a file; runs in worker processes.

    Raises:
        ValueError: the file cannot be read; "kind: detail".
    """
    content = _load(member)
    kind = kind_of(member.name)
    crystals: list[ReadCrystal | None]
    if kind == _CIF:
        crystals = list(read_cif(content))
    elif kind == _POSCAR:
        crystals = [ReadCrystal("", read_poscar(decode(content)))]
    else:
        crystals = _read_json(content)
    return Content(tuple(crystals), hashlib.sha256(content).hexdigest())


def _load(member: Member) -> bytes:
    """Return the bytes of a file, unpacked, up to a limit."""
    try:
        if member.index is None:
            with member.path.open("rb") as stream:
                content = _read_limited(stream, member.name)
        else:
            with zipfile.ZipFile(member.path) as archive:
                info = archive.infolist()[member.index]
                with archive.open(info) as stream:
                    content = _read_limited(stream, member.name)
    except _UNREADABLE as error:
        raise ValueError(f"unreadable file: {error}") from error
    if len(content) > MAX_BYTES:
        raise ValueError(f"too long a file: more than {MAX_BYTES / 1e6:.0f} MB")
    return content


def _read_limited(stream: Any, name: str) -> bytes:
    if name.lower().endswith(".gz"):
        stream = gzip.GzipFile(fileobj=stream)
    return stream.read(MAX_BYTES + 1)


def _read_json(content: bytes) -> list[ReadCrystal | None]:
    try:
        loaded = parse_json(content)
    except ValueError as error:
        raise ValueError(f"unparsable JSON: {error}") from error
    elements = loaded if isinstance(loaded, list) else [loaded]
    if not any(is_structure(element) for element in elements):
        return []
    return [_crystal_of(element) for element in elements]


def is_structure(content: Any) -> bool:
    """Tell whether a JSON value looks like a pymatgen structure."""
    return isinstance(content, dict) and "lattice" in content and "sites" in content


def _crystal_of(content: Any) -> ReadCrystal | None:
    try:
        arrays = arrays_from_dict(content)
    except ValueError as error:
        return ReadCrystal("", None, str(error))
    return None if arrays is None else ReadCrystal("", arrays)


def arrays_from_dict(content: Any) -> CrystalArrays | None:
    """Convert an element of a JSON list; null is a crystal that was not built.

    Raises:
        ValueError: not a pymatgen structure, or a disordered one.
    """
    if content is None:
        return None
    try:
        structure = Structure.from_dict(content)
    except (AttributeError, LookupError, OverflowError, TypeError) as error:
        text = f"{type(error).__name__} {error}"
        raise ValueError(f"not a pymatgen structure: {text}") from error
    arrays = arrays_from_structure(structure)
    check_arrays(*arrays)
    return arrays
