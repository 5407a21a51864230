"""The published checkpoints by key: what there is, the files, and their converted form.

A file is downloaded and converted once; from then on the converted form is used, without network
and without the file. Nothing is read before it is asked for, and huggingface_hub is imported only
where a file has to be looked for.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path

from absl import logging

from chemeleon2_jax.common.cache import cache_dir, cache_folder
from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.common.suggest import suggest
from chemeleon2_jax.pretrained.hub_download import Fetched, fetch_file, is_here, record
from chemeleon2_jax.pretrained.hub_records import Published, forget_record, with_record

__all__ = [
    "CONVERSION_VERSION",
    "REGISTRY",
    "Fetched",
    "Published",
    "converted",
    "describe",
    "fetch",
    "hub_key",
    "lookup",
]

CONVERSION_VERSION = 1
"""Counts up when a conversion of the same file gives something else; older ones are made again."""

_PASTED = re.compile(r"\$\{hub:([^}]*)\}")


class _Registry(Mapping[str, Published]):
    """`published.json` as a mapping, read when it is first used."""

    @functools.cached_property
    def _entries(self) -> dict[str, Published]:
        text = resources.files(__package__).joinpath("published.json").read_text("utf-8")
        checkpoints = json.loads(text)["checkpoints"]
        return {key: Published(key, **entry) for key, entry in checkpoints.items()}

    def __getitem__(self, key: str) -> Published:
        return self._entries[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


REGISTRY: Mapping[str, Published] = _Registry()
"""The published checkpoints, by key."""


def hub_key(name: str) -> str | None:
    """Return the key that a name is, also one pasted as `${hub:key}`; None where it is none.

    Raises:
        CheckpointError: `${hub:...}` with an unknown key.
    """
    pasted = _PASTED.fullmatch(name.strip())
    if pasted:
        return lookup(pasted.group(1)).key
    return name if name in REGISTRY else None


def lookup(key: str) -> Published:
    """Return the registry's entry of a key.

    Raises:
        CheckpointError: there is no such key; names the nearest.
    """
    if key not in REGISTRY:
        raise CheckpointError(f"no published checkpoint {key!r}: {suggest(key, REGISTRY)}")
    return REGISTRY[key]


def fetch(key: str) -> Fetched:
    """Return the verified file of a key, downloaded with a progress bar where it is not here.

    Raises:
        CheckpointError: no such key, or the file cannot be had; says what to do by hand.
    """
    return fetch_file(lookup(key))


def converted(key: str, convert: Callable[[Path, Path], None]) -> Path:
    """Return the folder with the converted form of a published checkpoint; make it where absent.

    Once made, it needs neither the network nor the file. Processes that ask at the same time make
    it once, and one that was interrupted leaves nothing behind that is taken for whole.

    Args:
        key: of the registry.
        convert: writes the converted form of a file (first) into an empty folder (second).

    Raises:
        CheckpointError: no such key, the file cannot be had, or nothing can be written; and what
            `convert` raises.
    """
    published = lookup(key)
    known = with_record(published)
    folder = _converted_folder(known)
    if folder is not None and folder.is_dir():
        return folder
    content = f"the converted form of {key!r}"
    root, lock = _converted_root(), f".{key}.lock"
    with cache_folder(root, content, error=CheckpointError, lock=lock) as is_alone:
        fetched = fetch_file(published)
        folder = root / _folder_name(key, fetched.sha256)
        if not folder.is_dir():  # another process may have made it while this one waited
            try:
                _make(folder, lambda empty: convert(fetched.path, empty), is_alone=is_alone)
            except CheckpointError:
                if not known.sha256:  # no model: the right file may come yet
                    forget_record(published)
                raise
        record(published, fetched)  # one put there by hand is known to be good only now
        return folder


def _converted_root() -> Path:
    return cache_dir() / "converted"


def _folder_name(key: str, sha256: str) -> str:
    return f"{key}-{sha256[:12]}-v{CONVERSION_VERSION}"


def _converted_folder(known: Published) -> Path | None:
    """Return where the converted form is; None where the file was never seen."""
    return _converted_root() / _folder_name(known.key, known.sha256) if known.sha256 else None


def _make(folder: Path, fill: Callable[[Path], None], *, is_alone: bool) -> None:
    """Create a folder that is whole once it bears its name.

    Where no other process can be at it, what interrupted ones left is removed.
    """
    for left in folder.parent.glob(f".{folder.name}.*.tmp") if is_alone else ():
        logging.warning("Removing %s, which an interrupted conversion left.", left)
        shutil.rmtree(left, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    made = temporary / folder.name  # what is written beside it, half done, is in `temporary` too
    made.mkdir(parents=True)
    try:
        fill(made)
        made.rename(folder)
    except OSError:
        if not folder.is_dir():  # where there are no locks, another process may have been faster
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def describe() -> str:
    """Return a table of the published checkpoints and of what is here of each."""
    head = ("key", "model", "file", "revision", "size", "sha256", "here")
    rows: list[tuple[str, ...]] = [head, *(_describe(published) for published in REGISTRY.values())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, tuple("-" * width for width in widths))
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    repositories = sorted({published.repository for published in REGISTRY.values()})
    return "\n".join([*lines, f"All of them are in {', '.join(repositories)} on the hub."])


def _describe(published: Published) -> tuple[str, ...]:
    """One row of the table."""
    known = with_record(published)
    folder = _converted_folder(known)
    return (
        known.key,
        known.description,
        known.path,
        known.revision[:12],
        f"{known.size / 1e6:.1f} MB" if known.size else "-",
        known.sha256[:12] or "-",
        _state(known, is_converted=folder is not None and folder.is_dir()),
    )


def _state(known: Published, *, is_converted: bool) -> str:
    """What is on this machine."""
    here = ["downloaded"] if is_here(known) else []
    return ", ".join([*here, "converted"] if is_converted else here) or "no"
