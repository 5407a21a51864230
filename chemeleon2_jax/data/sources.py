"""Where the published data sets are: repositories, commits and checksums, from `sources.json`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any

import numpy as np

from chemeleon2_jax.common.errors import DatasetError
from chemeleon2_jax.common.suggest import suggest

MIRROR_VARIABLE = "CHEMELEON2_JAX_DATA_URL"
"""Environment variable: a mirror that serves <repository>/<commit>/<path> below this URL."""

RAW_URL = "https://raw.githubusercontent.com"
LFS_URL = "https://media.githubusercontent.com/media"


@dataclass(frozen=True)
class RemoteFile:
    """A file of a public GitHub repository.

    Attributes:
        repository: "owner/name".
        commit: commit, or branch, that holds the file.
        path: path in the repository.
        git_blob_sha1: checksum by git's rule; empty where it is recorded at first download.
        is_lfs: kept by git-lfs, which another host serves.
    """

    repository: str
    commit: str
    path: str
    git_blob_sha1: str = ""
    is_lfs: bool = False

    @property
    def url(self) -> str:
        """Where the file is, with respect to a mirror that the environment names."""
        base = os.environ.get(MIRROR_VARIABLE) or (LFS_URL if self.is_lfs else RAW_URL)
        return f"{base.rstrip('/')}/{self.repository}/{self.commit}/{self.path}"


@dataclass(frozen=True)
class NamedSet:
    """A published data set.

    Attributes:
        name: what it is called here.
        files: split -> its CSV file; where there is an archive, the path is that of a member.
        archive: zip file with the CSV files, or None.
    """

    name: str
    files: Mapping[str, RemoteFile]
    archive: RemoteFile | None = None


def _read_sources() -> dict[str, Any]:
    text = resources.files("chemeleon2_jax.data").joinpath("sources.json").read_text("utf-8")
    return json.loads(text)


def _read_named_sets() -> dict[str, NamedSet]:
    named_sets = {}
    for name, entry in _read_sources()["data_sets"].items():
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


def published_size_table(name: str) -> np.ndarray:
    """Return the size table of a published training set, (largest + 1,) int64.

    Raises:
        DatasetError: none is known for that name.
    """
    tables = {key: value for key, value in _read_sources()["size_tables"].items() if key != "note"}
    if name not in tables:
        raise DatasetError(f"no published size table for {name!r}: {suggest(name, tables)}")
    return np.array(tables[name], np.int64)
