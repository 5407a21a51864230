"""The one fetcher: files that are downloaded once and verified at every use.

A file is downloaded beside its final place, checked and renamed, so that a file of that name is
whole. An interrupted download continues where it stopped. The checksum of a file without a
published one is recorded at the first download and holds ever after. A file put in place by hand
needs no network.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from absl import logging

from chemeleon2_jax.common.atomic_files import replacing
from chemeleon2_jax.common.cache import hash_file
from chemeleon2_jax.common.download import BrokenTransferError, TransferError, download
from chemeleon2_jax.common.errors import UserError

MIRROR_VARIABLE = "CHEMELEON2_JAX_DATA_URL"
"""Environment variable: a mirror that serves <repository>/<commit>/<path> below this URL."""

RAW_URL = "https://raw.githubusercontent.com"
LFS_URL = "https://media.githubusercontent.com/media"
NUM_ATTEMPTS = 2

Result = TypeVar("Result")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a public GitHub repository.

    Attributes:
        repository: "owner/name".
        commit: commit, or branch, that holds the file.
        path: path in the repository.
        git_blob_sha1: checksum by git's rule; empty if it is recorded at the first download.
        is_lfs: kept by git-lfs, on another host.
    """

    repository: str
    commit: str
    path: str
    git_blob_sha1: str = ""
    is_lfs: bool = False

    @property
    def url(self) -> str:
        """URL of the file, on the mirror of the environment variable if it is set."""
        base = os.environ.get(MIRROR_VARIABLE) or (LFS_URL if self.is_lfs else RAW_URL)
        return f"{base.rstrip('/')}/{self.repository}/{self.commit}/{self.path}"


def fetch(
    source: RemoteFile,
    target: Path,
    *,
    error: type[UserError],
    otherwise: str = "",
    check: Callable[[Path], str] | None = None,
    max_bytes: int | None = None,
) -> None:
    """Make sure that `target` is the file `source`; download it if it is absent or corrupt.

    Args:
        source: the file on the network.
        target: its place in the cache.
        error: raised if the file cannot be had.
        otherwise: end of the error's text: another way out.
        check: path -> fault of the content of a file without checksum, '' for none.
        max_bytes: largest size of the file; None for no limit.

    Raises:
        UserError: of the type `error`; says what to do by hand.
        OSError: it cannot be written.
    """
    problem = find_problem(source, target, check) if target.exists() else "absent"
    if not problem:
        _record(source, target, sha256_record(target))
        return
    if target.exists():
        logging.warning("%s is corrupt (%s); downloading it again.", target, problem)
    partial = target.with_name(target.name + ".part")

    def fetch_once(_attempt: int) -> tuple[None, str]:
        try:
            download(source.url, partial, name=target.name, max_bytes=max_bytes)
        except BrokenTransferError as broken:
            return None, str(broken)
        except ValueError as no_url:
            raise TransferError(f"{MIRROR_VARIABLE} is no URL ({no_url})") from no_url
        problem = find_problem(source, partial, check, record=sha256_record(target))
        if problem:
            partial.unlink()
        return None, problem

    try:
        try_again(source.url, fetch_once)
    except TransferError as failure:
        present = f"; the file in {target} is corrupt" if target.exists() else ""
        text = describe_failure(source.url, target, f"{failure}{present}")
        raise error(text + otherwise) from failure
    _record(source, partial, sha256_record(target))
    partial.replace(target)


def try_again(url: str, fetch_once: Callable[[int], tuple[Result, str]]) -> Result:
    """Fetch a file, and once more if it has a fault.

    Args:
        url: of the file, for the log.
        fetch_once: number of the attempt, from 1 -> result, and its fault, '' for none.

    Raises:
        TransferError: the result has a fault every time.
    """
    for attempt in range(1, NUM_ATTEMPTS + 1):
        result, problem = fetch_once(attempt)
        if not problem:
            return result
        if attempt < NUM_ATTEMPTS:
            logging.warning("Download of %s failed (%s); trying again.", url, problem)
    raise TransferError(f"{NUM_ATTEMPTS} attempts failed: {problem}")


def describe_failure(url: str, target: Path, problem: str) -> str:
    """Return the text of an error: the problem, and how to fetch the file by hand."""
    return (
        f"cannot download {url}: {problem}. Fetch it by hand, for instance with\n"
        f"  curl -L --create-dirs -o {shlex.quote(str(target))} {url}\n"
        "(or put it there from another machine); a file in that place is used first"
    )


def find_problem(
    source: RemoteFile,
    path: Path,
    check: Callable[[Path], str] | None = None,
    *,
    record: Path | None = None,
) -> str:
    """Return the fault of a file's bytes; empty if they are right.

    Args:
        source: the published file.
        path: the file in the cache.
        check: as for :func:`fetch`.
        record: file with its checksum; None for the one beside it.
    """
    if source.git_blob_sha1:
        digest = hash_file(path, "sha1", prefix=b"blob %d\0" % path.stat().st_size)
        expected = source.git_blob_sha1
        return "" if digest == expected else f"git blob sha1 {digest}, expected {expected}"
    record = record or sha256_record(path)
    if record.exists():
        digest, expected = hash_file(path), record.read_text().strip()
        note = (
            f"it is not the file that came first: its sha256 is {digest}, but {record} has "
            f"{expected}; if the new file is right, remove the record too"
        )
        return "" if digest == expected else note
    return check(path) if check else ""


def sha256_record(path: Path) -> Path:
    """Return the place of the record of a file's checksum."""
    return path.with_name(path.name + ".sha256")


def write_record(path: Path, record: Path) -> None:
    """Record the checksum of a file, to be verified ever after."""
    with replacing(record) as temporary:
        temporary.write_text(hash_file(path) + "\n")


def _record(source: RemoteFile, path: Path, record: Path) -> None:
    if not source.git_blob_sha1 and not record.exists():
        write_record(path, record)
