"""Published data sets: where they are, how they are fetched, and how their bytes are checked.

A file is downloaded next to its final place, checked, and renamed, so that what bears the name is
whole. A download that was interrupted goes on where it stopped. Files are checked again whenever
they are used, and one that has gone bad is fetched again.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import os
import shutil
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

from absl import logging
from tqdm import tqdm

from chemeleon2_jax.common.atomic_files import locked, replacing
from chemeleon2_jax.common.errors import DatasetError
from chemeleon2_jax.common.suggest import suggest
from chemeleon2_jax.data.cache import cache_dir, hash_file
from chemeleon2_jax.data.csv_files import SPLITS
from chemeleon2_jax.data.sources import MIRROR_VARIABLE, NamedSet, RemoteFile

TIMEOUT_S = 30.0
NUM_ATTEMPTS = 2
_LFS_POINTER = b"version https://git-lfs"


class _TransientError(Exception):
    """A download stopped for a reason that may be gone at the next attempt."""


def fetch_split(named_set: NamedSet, split: str, *, progress: bool = True) -> Path:
    """Return the checked CSV file of one split, downloaded where it is not in the cache.

    Args:
        named_set: one of `NAMED_SETS`.
        split: `train`, `val` or `test`.
        progress: show a progress bar on a terminal.

    Raises:
        DatasetError: the set has no such split; or the file cannot be fetched, is not what it
            should be, or cannot be written, with the URL and what to do by hand.
    """
    if split not in SPLITS:
        raise DatasetError(f"no split {split!r}: {suggest(split, SPLITS)}")
    if split not in named_set.files:
        raise DatasetError(
            f"{named_set.name} is published without a {split} split; it has "
            f"{' and '.join(named_set.files)}"
        )
    folder = cache_dir() / "datasets" / named_set.name
    target = folder / f"{split}.csv"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            if named_set.archive is None:
                fetch(named_set.files[split], target, progress=progress)
            else:
                archive = folder / Path(named_set.archive.path).name
                _fetch_member(named_set.archive, archive, target, progress=progress)
    except OSError as error:
        raise DatasetError(
            f"cannot keep {named_set.name} in {folder}: {error}. Make room, set XDG_CACHE_HOME to "
            "another folder, or set data.data_dir to a folder that has the CSV files"
        ) from error
    return target


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Let one process at a time work in a folder, for instance of several hosts that share it."""
    if not os.access(folder, os.W_OK):
        yield  # a cache that somebody else filled can be used as it is
        return
    # Where there are no locks, two processes fetch the same file at worst.
    with locked(folder / ".lock"):
        yield


def fetch(source: RemoteFile, target: Path, *, progress: bool = True) -> None:
    """Make sure that `target` is the file `source`; download it where it is absent or corrupt.

    Raises:
        DatasetError: it cannot be had.
        OSError: it cannot be written.
    """
    record = _record_file(target)
    problem = _problem(source, target, record) if target.exists() else "absent"
    if not problem:
        return
    if target.exists():
        logging.warning("%s is corrupt (%s); downloading it again.", target, problem)
    partial = target.with_name(target.name + ".part")
    for attempt in range(1, NUM_ATTEMPTS + 1):
        try:
            _download(source.url, partial, progress=progress)
        except _TransientError as error:
            problem = str(error)
        else:
            problem = _problem(source, partial, record)
            if not problem:
                _keep_record(source, partial, record)
                partial.replace(target)
                return
            partial.unlink()
        if attempt < NUM_ATTEMPTS:
            logging.warning("Download of %s failed (%s); trying again.", source.url, problem)
    raise _failure(source.url, target, problem)


def _failure(url: str, target: Path, problem: str) -> DatasetError:
    present = f" The file that is in {target} is corrupt." if target.exists() else ""
    return DatasetError(
        f"cannot download {url}: {problem}.{present} Fetch it by hand, for instance with\n"
        f"  curl -L -o {target} {url}\n"
        "or set data.data_dir to a folder that has train.csv, val.csv and test.csv"
    )


def _problem(source: RemoteFile, path: Path, record: Path) -> str:
    """Say what is wrong with the bytes of a file; empty where nothing is."""
    size = path.stat().st_size
    if source.git_blob_sha1:
        found = hash_file(path, "sha1", prefix=b"blob %d\0" % size)
        expected = source.git_blob_sha1
        return "" if found == expected else f"git blob sha1 {found}, expected {expected}"
    with path.open("rb") as stream:
        if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
            return "it is a git-lfs pointer, not the file itself"
    if record.exists():
        found, expected = hash_file(path), record.read_text().strip()
        note = f"sha256 {found}, but {expected} in {record}, written at the first download"
        return "" if found == expected else note
    return _zip_problem(path)


def _zip_problem(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        return f"it is not a whole zip file ({error})"
    return f"its member {broken} is corrupt" if broken else ""


def _record_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _keep_record(source: RemoteFile, path: Path, record: Path) -> None:
    """Write down the checksum of a file that has none published, to be checked ever after."""
    if not source.git_blob_sha1 and not record.exists():
        _write_text(record, hash_file(path) + "\n")


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)


def _fetch_member(
    archive_source: RemoteFile, archive: Path, target: Path, *, progress: bool
) -> None:
    """Make sure that `target` is the zip file's member of that name, as it was first unpacked."""
    record = _record_file(target)
    if target.exists() and record.exists():
        if hash_file(target) == record.read_text().strip():
            return
        logging.warning("%s has changed since it was unpacked; unpacking it again.", target)
    fetch(archive_source, archive, progress=progress)
    _keep_record(archive_source, archive, _record_file(archive))  # it may have been put there
    with zipfile.ZipFile(archive) as members:
        names = [name for name in members.namelist() if Path(name).name == target.name]
        if len(names) != 1:
            found = ", ".join(members.namelist())
            raise DatasetError(f"{archive} should hold one {target.name}, but holds {found}")
        temporary = target.with_name(target.name + ".part")
        with members.open(names[0]) as packed, temporary.open("wb") as stream:
            shutil.copyfileobj(packed, stream, 1 << 20)
    _write_text(record, hash_file(temporary) + "\n")
    temporary.replace(target)


def _download(url: str, partial: Path, *, progress: bool) -> None:
    """Download to `partial`, going on after the bytes that it already has.

    Raises:
        DatasetError: the server says that there is no such file, or cannot be reached.
        _TransientError: the transfer broke off.
    """
    start = partial.stat().st_size if partial.exists() else 0
    headers = {"User-Agent": "chemeleon2_jax"}
    if start:
        headers["Range"] = f"bytes={start}-"
    fail = functools.partial(_failure, url, partial.with_name(partial.name.removesuffix(".part")))
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            start = start if response.status == http.HTTPStatus.PARTIAL_CONTENT else 0
            _copy(response, partial, start=start, progress=progress)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # all the bytes are there; the checksum tells whether they are right
        if error.code >= 500:
            raise _TransientError(f"HTTP {error.code} {error.reason}") from error
        raise fail(f"HTTP {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise fail(f"no connection ({error.reason})") from error
    except ValueError as error:
        raise fail(f"{MIRROR_VARIABLE} is no URL ({error})") from error
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise _TransientError(f"the transfer broke off ({error})") from error


def _copy(response: http.client.HTTPResponse, partial: Path, *, start: int, progress: bool) -> None:
    length = response.headers.get("Content-Length")
    total = start + int(length) if length else None
    bar = tqdm(
        total=total,
        initial=start,
        desc=partial.name.removesuffix(".part"),
        unit="B",
        unit_scale=True,
        disable=None if progress else True,
    )
    received = start
    with bar, partial.open("ab" if start else "wb") as stream:
        while block := response.read(1 << 18):
            stream.write(block)
            received += len(block)
            bar.update(len(block))
    if total is not None and received < total:
        raise _TransientError(f"the transfer broke off after {received} of {total} bytes")
