"""One published file: fetched from the hub, or put in place by hand, and verified.

huggingface_hub downloads into its own cache, with its users' settings (HF_HOME, HF_HUB_CACHE,
HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE). It does not hash what it receives; this module does. What
the registry leaves open (commit, sha256, size) is recorded at the first download and holds ever
after.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from absl import logging

from chemeleon2_jax.common.cache import cache_folder, hash_file
from chemeleon2_jax.common.download import TransferError
from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.common.fetch import describe_failure, try_again
from chemeleon2_jax.pretrained.hub_errors import explain
from chemeleon2_jax.pretrained.hub_records import (
    SHA256,
    Published,
    dropped_file,
    hub_dir,
    keep_record,
    records_file,
    with_record,
)

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Fetched:
    """A verified file: its path, its sha256, and its commit ('' if that is not known)."""

    path: Path
    sha256: str
    revision: str


def fetch_file(published: Published) -> Fetched:
    """Return a published file, verified; download it if it is not here yet.

    A file put in place by hand comes first, then huggingface_hub's cache, then the network, which
    is not asked for a cached file of known checksum.

    Raises:
        CheckpointError: it cannot be had, or is not what it should be; says what to do by hand.
    """
    with cache_folder(
        hub_dir(),
        f"the checkpoint {published.key!r}",
        error=CheckpointError,
        otherwise=" (and HF_HOME for the download)",
        lock=f".{published.key}.lock",
    ):
        return _fetch(published)


def _fetch(published: Published) -> Fetched:
    known = with_record(published)
    if dropped_file(known).is_file():
        return _take_dropped(published, known)
    cached = _cached(known)
    if cached is not None and known.sha256:
        digest, problem = _check(cached, known)
        if not problem:
            return Fetched(cached, digest, _commit_of(cached, known))
        logging.warning("%s is corrupt (%s).", cached, problem)
    try:
        offered = _ask(known)
    # huggingface_hub and the HTTP library below it raise many types; all of them mean no answer.
    except Exception as error:
        if cached is None or known.sha256:
            hint = _how_to_accept(published, known) if _is_gone(error) else ""
            raise _failure(known, explain(error, known) + hint) from error
        logging.info("No answer from the hub (%s); using %s.", error, cached)
        offered = _as_cached(cached, known)
    if known.sha256 and SHA256.fullmatch(offered.sha256) and known.sha256 != offered.sha256:
        raise CheckpointError(
            f"the hub now has another file as {_url(known)}, with sha256 {offered.sha256}; "
            f"expected {known.sha256}{_how_to_accept(published, known)}"
        )
    offered = dataclasses.replace(offered, sha256=known.sha256 or offered.sha256)
    fetched = _download(offered)
    record(published, fetched)
    return fetched


def _take_dropped(published: Published, known: Published) -> Fetched:
    path = dropped_file(known)
    digest, problem = _check(path, known)
    if problem:
        raise CheckpointError(
            f"{path}, put there by hand, is not the published file {known.key!r}: {problem}. "
            f"Remove it, or replace it by a fresh download of {_url(known)}"
            f"{_how_to_accept(published, known)}"
        )
    return Fetched(path, digest, known.revision if _COMMIT.fullmatch(known.revision) else "")


def record(published: Published, fetched: Fetched) -> None:
    """Record commit, sha256 and size of a fetched file, to be verified ever after.

    Raises:
        CheckpointError: the records cannot be read.
        OSError: they cannot be written.
    """
    size = fetched.path.stat().st_size
    keep_record(published, revision=fetched.revision, sha256=fetched.sha256, size=size)


def _is_gone(error: BaseException) -> bool:
    from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

    return isinstance(error, EntryNotFoundError | RevisionNotFoundError)


def _how_to_accept(published: Published, known: Published) -> str:
    if published.sha256 or not known.sha256:
        return ""
    return (
        f". That was recorded at the first download; to accept the other file, remove the entry "
        f"{known.key!r} from {records_file()}"
    )


def _ask(known: Published) -> Published:
    """Return the entry with the hub's commit, sha256 and size ('' and 0 if it does not tell)."""
    from huggingface_hub import constants, get_hf_file_metadata

    metadata = get_hf_file_metadata(_url(known), timeout=constants.HF_HUB_ETAG_TIMEOUT)
    if not metadata.commit_hash:
        raise ValueError("the answer names no commit: this is no server of the hub's protocol")
    etag = metadata.etag or ""
    return dataclasses.replace(
        known,
        revision=metadata.commit_hash,
        sha256=etag if SHA256.fullmatch(etag) else "",
        size=metadata.size or 0,
    )


def _download(offered: Published) -> Fetched:
    """Return a file of a known commit from the cache or the hub; a corrupt one is fetched again."""
    from huggingface_hub import hf_hub_download

    logging.info("Fetching %s (%.0f MB).", _url(offered), offered.size / 1e6)
    place = (offered.repository, offered.path)

    def fetch_once(attempt: int) -> tuple[Fetched, str]:
        force = attempt > 1  # a corrupt file may be in the cache
        path = Path(hf_hub_download(*place, revision=offered.revision, force_download=force))
        digest, problem = _check(path, offered)
        if problem:
            _discard(path)
            problem = f"it came corrupt: {problem}"
        return Fetched(path, digest, offered.revision), problem

    try:
        return try_again(_url(offered), fetch_once)
    except Exception as error:  # see _fetch
        reason = str(error) if isinstance(error, TransferError) else explain(error, offered)
        raise _failure(offered, reason) from error


def _check(path: Path, expected: Published) -> tuple[str, str]:
    """Return the sha256 of a file, and what is wrong with it ('' if nothing is)."""
    size = path.stat().st_size
    if expected.size and size != expected.size:
        return "", f"it has {size} bytes, expected {expected.size}"
    digest = hash_file(path)
    if expected.sha256 and digest != expected.sha256:
        return digest, f"its sha256 is {digest}, expected {expected.sha256}"
    return digest, ""


def _cached(known: Published) -> Path | None:
    """Return the file in huggingface_hub's cache, without asking the network."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(known.repository, known.path, revision=known.revision)
    return Path(path) if isinstance(path, str) else None


def is_here(known: Published) -> bool:
    """Tell whether the file was downloaded, or put in place by hand."""
    return dropped_file(known).is_file() or _cached(known) is not None


def _commit_of(cached: Path, known: Published) -> str:
    # <cache>/models--<owner>--<name>/snapshots/<commit>/<path>
    return cached.parents[len(PurePosixPath(known.path).parts) - 1].name


def _as_cached(cached: Path, known: Published) -> Published:
    """Return the entry with the commit and the ETag that huggingface_hub's cache keeps."""
    etag = cached.readlink().name if cached.is_symlink() else ""
    return dataclasses.replace(
        known,
        revision=_commit_of(cached, known),
        sha256=etag if SHA256.fullmatch(etag) else "",
    )


def _discard(path: Path) -> None:
    """Remove a file from huggingface_hub's cache: the snapshot's link, and what it points to."""
    while path.is_symlink():
        target = path.parent / path.readlink()
        path.unlink()
        path = target
    path.unlink(missing_ok=True)


def _url(known: Published) -> str:
    from huggingface_hub import hf_hub_url

    return hf_hub_url(known.repository, known.path, revision=known.revision)


def _failure(known: Published, problem: str) -> CheckpointError:
    return CheckpointError(describe_failure(_url(known), dropped_file(known), problem))
