"""Atomic writing and locking of files, and the names of files that several commands use."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from absl import logging

STRUCTURES_FILE = "generated_structures.json.gz"
"""The structures that `sample` writes."""

REPORT_FILE = "run.json"
"""Options and result of `sample`, written after all its other files."""

SUMMARY_FILE, TABLE_FILE = "summary.json", "metrics.csv"
"""The numbers that `evaluate` writes: of all crystals, and a row for each."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it replaces `path` at the end, or is removed on errors.

    It is in the same folder and unique among processes and threads, so that a reader sees the whole
    old file or the whole new one.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def remove_tree(folder: Path, *, patience_s: float = 2.0) -> None:
    """Remove a folder, also while threads of a failed write still put files into it; what cannot be
    removed stays.
    """
    deadline = time.monotonic() + patience_s
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.1)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Lock a file against other processes, also of other hosts that share its folder.

    Yields whether the lock is held: some network file systems have no locks.

    Raises:
        OSError: the lock file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        is_held = True
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logging.info("Waiting for another process that holds %s.", path)
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError:
            is_held = False
        yield is_held
