"""The published data sets: repositories, commits and checksums, from `sources.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType

from chemeleon2_jax.common.fetch import RemoteFile


@dataclass(frozen=True)
class NamedSet:
    """A published data set.

    Attributes:
        name: of the set.
        files: split -> its CSV file; in a set with an archive, the path is that of a member.
        archive: zip file with the CSV files, or None.
    """

    name: str
    files: Mapping[str, RemoteFile]
    archive: RemoteFile | None = None


def _read_named_sets() -> dict[str, NamedSet]:
    text = resources.files(__package__).joinpath("sources.json").read_text("utf-8")
    named_sets = {}
    for name, entry in json.loads(text)["data_sets"].items():
        place = (entry["repository"], entry["commit"])
        files = {
            split: RemoteFile(*place, file["path"], file.get("git_blob_sha1", ""))
            for split, file in entry["files"].items()
        }
        archive = entry.get("archive")
        named_sets[name] = NamedSet(
            name, files, RemoteFile(*place, archive, is_lfs=True) if archive else None
        )
    return named_sets


NAMED_SETS: Mapping[str, NamedSet] = MappingProxyType(_read_named_sets())
"""The published sets, by name."""
