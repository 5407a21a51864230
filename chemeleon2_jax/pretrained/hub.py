"""The published checkpoints by key: what there is, the files, and their converted form.

A file is downloaded and converted once; from then on the converted form is used, without network
and without the file. The registry is read at first use, and huggingface_hub is imported only where
a file has to be looked for.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.common.suggest import suggest
from chemeleon2_jax.pretrained.hub_converted import converted_folder, make_converted
from chemeleon2_jax.pretrained.hub_download import Fetched, fetch_file, is_here
from chemeleon2_jax.pretrained.hub_records import Published, with_record

_PASTED = re.compile(r"\$\{hub:([^}]*)\}")


class _Registry(Mapping[str, Published]):
    """`published.json` as a mapping, read at first use."""

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
    """Return the key that a name is, also one pasted as `${hub:key}`; None for other names.

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
        CheckpointError: the key is unknown; names the nearest.
    """
    if key not in REGISTRY:
        raise CheckpointError(f"no published checkpoint {key!r}: {suggest(key, REGISTRY)}")
    return REGISTRY[key]


def fetch(key: str) -> Fetched:
    """Return the verified file of a key, downloaded with a progress bar if it is not here yet.

    Raises:
        CheckpointError: the key is unknown, or the file cannot be had; says what to do by hand.
    """
    return fetch_file(lookup(key))


def converted(key: str, convert: Callable[[Path, Path], None]) -> Path:
    """Return the folder with the converted form of a published checkpoint; make it at first use.

    Once made, it needs neither the network nor the file. Concurrent processes make it once, and an
    interrupted conversion leaves nothing behind that is taken for whole.

    Args:
        key: of the registry.
        convert: writes the converted form of a file (first argument) into an empty folder (second).

    Raises:
        CheckpointError: the key is unknown, the file cannot be had, or the folder cannot be
            written; and what `convert` raises.
    """
    published = lookup(key)
    folder = converted_folder(with_record(published))
    if folder is not None and folder.is_dir():
        return folder
    return make_converted(published, convert)


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
    """Return one row of the table."""
    known = with_record(published)
    folder = converted_folder(known)
    state = ["downloaded"] if is_here(known) else []
    if folder is not None and folder.is_dir():
        state.append("converted")
    return (
        known.key,
        known.description,
        known.path,
        known.revision[:12],
        f"{known.size / 1e6:.1f} MB" if known.size else "-",
        known.sha256[:12] or "-",
        ", ".join(state) or "no",
    )
