"""The cache of this user: where it is, and how processes share its folders."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from chemeleon2_jax.common.atomic_files import locked
from chemeleon2_jax.common.errors import UserError


def cache_dir() -> Path:
    """Return `$XDG_CACHE_HOME/chemeleon2_jax`, by default under `~/.cache`; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "chemeleon2_jax"


def hash_file(path: Path, algorithm: str = "sha256", *, prefix: bytes = b"") -> str:
    """Return the hexadecimal digest of `prefix` and the bytes of a file."""
    digest = hashlib.new(algorithm, prefix)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def cache_folder(
    folder: Path, content: str, *, error: type[UserError], otherwise: str = "", lock: str = ".lock"
) -> Iterator[bool]:
    """Make a folder of the cache and lock it against other processes.

    Yields whether the lock is held. A read-only folder, which another user filled, is not locked.

    Args:
        folder: of the cache.
        content: of the folder, for the error's text.
        error: raised in place of an OSError.
        otherwise: end of the error's text: another way out.
        lock: name of the lock file.

    Raises:
        UserError: of the type `error`: the folder or a file in it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            with locked(folder / lock) as is_alone:
                yield is_alone
        else:
            yield False
    except OSError as problem:
        raise error(
            f"cannot keep {content} in {folder}: {problem}. Make room, or set XDG_CACHE_HOME to a "
            f"folder that can be written{otherwise}"
        ) from problem
