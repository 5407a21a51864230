"""Files that commands write: the names that others look for, and how they come to be whole."""

from __future__ import annotations

import contextlib
import fcntl
import uuid
from collections.abc import Iterator
from pathlib import Path

from absl import logging

STRUCTURES_FILE = "generated_structures.json.gz"
"""What `sample` generated."""

REPORT_FILE = "run.json"
"""What `sample` was asked for and what came of it; it is there once all other files are."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to; it becomes `path` at the end, and is removed where that fails.

    The path is beside `path`, and no other process or thread has the same, so that a reader finds
    the old file or the new one, whole.

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


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Let one process at a time go on, for instance of several hosts that share a folder.

    Yields whether that is certain: some network file systems have no locks.

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
