"""The CSV files of published data sets: fetched, or unpacked from a fetched archive."""

from __future__ import annotations

import functools
import shutil
import zipfile
from pathlib import Path

from absl import logging

from chemeleon2_jax.common.cache import cache_dir, cache_folder, hash_file
from chemeleon2_jax.common.errors import DatasetError
from chemeleon2_jax.common.fetch import RemoteFile, fetch, sha256_record, write_record
from chemeleon2_jax.data.csv_files import check_split
from chemeleon2_jax.data.sources import NamedSet

_LFS_POINTER = b"version https://git-lfs"
_OTHERWISE = ", or set data.data_dir to a folder that has train.csv, val.csv and test.csv"


def fetch_split(named_set: NamedSet, split: str) -> Path:
    """Return the verified CSV file of one split, downloaded if it is not in the cache.

    Args:
        named_set: one of `NAMED_SETS`.
        split: `train`, `val` or `test`.

    Raises:
        DatasetError: the set has no such split; or the file cannot be fetched, verified or
            written; with the URL and what to do by hand.
    """
    check_split(split)
    if split not in named_set.files:
        raise DatasetError(
            f"{named_set.name} is published without a {split} split; it has "
            f"{' and '.join(named_set.files)}"
        )
    folder = cache_dir() / "datasets" / named_set.name
    target = folder / f"{split}.csv"
    with cache_folder(folder, named_set.name, error=DatasetError, otherwise=_OTHERWISE):
        if named_set.archive is None:
            _fetch(named_set.files[split], target)
        else:
            _fetch_member(named_set.archive, target)
    return target


def _fetch_member(source: RemoteFile, target: Path) -> None:
    """Make sure that `target` is the archive's member of that name, as first unpacked."""
    record = sha256_record(target)
    if target.exists() and record.exists():
        if hash_file(target) == record.read_text().strip():
            return
        logging.warning("%s has changed since it was unpacked; unpacking it again.", target)
    archive = target.with_name(Path(source.path).name)
    _fetch(source, archive)
    with zipfile.ZipFile(archive) as members:
        names = [name for name in members.namelist() if Path(name).name == target.name]
        if len(names) != 1:
            listed = ", ".join(members.namelist())
            raise DatasetError(f"{archive} should hold one {target.name}, but holds {listed}")
        temporary = target.with_name(target.name + ".part")
        with members.open(names[0]) as packed, temporary.open("wb") as stream:
            shutil.copyfileobj(packed, stream, 1 << 20)
    write_record(temporary, record)
    temporary.replace(target)


def _archive_problem(path: Path) -> str:
    """Return what is wrong with an archive without checksum; empty if nothing is."""
    with path.open("rb") as stream:
        if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
            return "it is a git-lfs pointer, not the file itself"
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        return f"it is not a whole zip file ({error})"
    return f"its member {broken} is corrupt" if broken else ""


_fetch = functools.partial(fetch, error=DatasetError, otherwise=_OTHERWISE, check=_archive_problem)
