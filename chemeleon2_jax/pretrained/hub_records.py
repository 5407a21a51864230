"""Published files, and what is known of them: from the registry, and recorded at first download."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chemeleon2_jax.common.atomic_files import locked, replacing
from chemeleon2_jax.common.cache import cache_dir
from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.common.json_text import parse_json

SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Published:
    """A checkpoint file that is published on the hub.

    Attributes:
        key: its name here and in Chemeleon2's configs.
        repository: "owner/name" on the hub.
        revision: commit, or a branch as long as no commit is known.
        path: path in the repository.
        sha256: of the file; '' if it is recorded at the first download.
        size: bytes; 0 if it is recorded at the first download.
        stage: "vae" or "ldm".
        size_table: training set whose numbers of atoms an LDM samples.
        vae_heads: attention heads of the VAE, for a file that does not tell them.
        description: a few words.
    """

    key: str
    repository: str
    revision: str
    path: str
    sha256: str = ""
    size: int = 0
    stage: str = ""
    size_table: str = ""
    vae_heads: int = 0
    description: str = ""


def hub_dir() -> Path:
    """Return the folder with records and files put in place by hand; it need not exist."""
    return cache_dir() / "hub"


def records_file() -> Path:
    """Return the file with commit, sha256 and size of each downloaded file, by key."""
    return hub_dir() / "recorded.json"


def dropped_file(published: Published) -> Path:
    """Return the place of a file fetched by hand, which is looked at before anything else."""
    return hub_dir() / "files" / published.path


def with_record(published: Published) -> Published:
    """Return a registry entry with the record of its file in place of what it leaves open.

    Raises:
        CheckpointError: the records cannot be read.
    """
    entry = {} if published.sha256 else _read_records().get(published.key, {})
    if (entry.get("repository"), entry.get("path")) != (published.repository, published.path):
        return published  # nothing recorded, or of another release
    return dataclasses.replace(
        published,
        revision=entry["revision"] or published.revision,
        sha256=entry["sha256"],
        size=entry["size"],
    )


def keep_record(published: Published, *, revision: str, sha256: str, size: int) -> None:
    """Record a file whose sha256 the registry does not have.

    Args:
        published: the registry's entry.
        revision: commit; '' if it is not known.
        sha256: of the file.
        size: bytes.

    Raises:
        CheckpointError: the records cannot be read.
        OSError: they cannot be written.
    """
    if not published.sha256:
        _update_record(
            published.key,
            {
                "repository": published.repository,
                "path": published.path,
                "revision": revision,
                "sha256": sha256,
                "size": size,
            },
        )


def forget_record(published: Published) -> None:
    """Remove the record of a file that turned out to be no model."""
    _update_record(published.key, None)


def _update_record(key: str, entry: Mapping[str, Any] | None) -> None:
    with locked(hub_dir() / ".recorded.lock"):
        records = _read_records()
        if records.get(key) == entry:
            return
        records.pop(key, None)
        text = json.dumps(records if entry is None else {**records, key: entry}, indent=2)
        with replacing(records_file()) as temporary:
            temporary.write_text(text + "\n")


def _read_records() -> dict[str, dict[str, Any]]:
    path = records_file()
    try:
        records: dict[str, dict[str, Any]] = parse_json(path.read_bytes())
        if not all(map(_is_record, records.values())):
            raise ValueError("an entry is incomplete")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CheckpointError(
            f"{path}, with the checksums of downloaded checkpoints, cannot be read ({error}); set "
            "XDG_CACHE_HOME to a folder that can be read and written"
        ) from error
    except (ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path}, with the checksums of downloaded checkpoints, is damaged ({error}); remove "
            "it, and they are recorded again at the next download"
        ) from error
    return records


def _is_record(entry: Any) -> bool:
    types = {"repository": str, "path": str, "revision": str, "sha256": str, "size": int}
    return (
        isinstance(entry, dict)
        and all(isinstance(entry.get(name), kind) for name, kind in types.items())
        and SHA256.fullmatch(entry["sha256"]) is not None
    )
