"""Converted forms of published checkpoints: made once, whole as soon as they bear their name."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from absl import logging

from chemeleon2_jax.common.cache import cache_dir, cache_folder
from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.pretrained.hub_download import fetch_file, record
from chemeleon2_jax.pretrained.hub_records import Published, forget_record, with_record

CONVERSION_VERSION = 1
"""Counts up when converting the same file gives another result; older forms are made again."""


def converted_folder(known: Published) -> Path | None:
    """Return the place of the converted form; None as long as the file's sha256 is unknown."""
    return _folder_of(known.key, known.sha256) if known.sha256 else None


def _folder_of(key: str, sha256: str) -> Path:
    return cache_dir() / "converted" / f"{key}-{sha256[:12]}-v{CONVERSION_VERSION}"


def make_converted(published: Published, convert: Callable[[Path, Path], None]) -> Path:
    """Fetch a published file and convert it; see :func:`~chemeleon2_jax.pretrained.hub.converted`.

    Raises:
        CheckpointError: the file cannot be had, or the folder cannot be written; and what `convert`
            raises.
    """
    key, was_known = published.key, bool(with_record(published).sha256)
    content = f"the converted form of {key!r}"
    root, lock = cache_dir() / "converted", f".{key}.lock"
    with cache_folder(root, content, error=CheckpointError, lock=lock) as is_alone:
        fetched = fetch_file(published)
        folder = _folder_of(key, fetched.sha256)
        if not folder.is_dir():  # another process may have made it while this one waited
            try:
                _make(folder, lambda empty: convert(fetched.path, empty), is_alone=is_alone)
            except CheckpointError:
                if not was_known:  # it is no model: the right file may come yet
                    forget_record(published)
                raise
        record(published, fetched)  # a file put there by hand is known to be good only now
        return folder


def _make(folder: Path, fill: Callable[[Path], None], *, is_alone: bool) -> None:
    """Create a folder that is whole once it bears its name.

    A process that is certain to be alone removes what interrupted ones left.
    """
    for left in folder.parent.glob(f".{folder.name}.*.tmp") if is_alone else ():
        logging.warning("Removing %s, which an interrupted conversion left.", left)
        shutil.rmtree(left, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    made = temporary / folder.name  # half-written files beside it are in `temporary` too
    made.mkdir(parents=True)
    try:
        fill(made)
        made.rename(folder)
    except OSError:
        if not folder.is_dir():  # on a file system without locks another process may be faster
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
