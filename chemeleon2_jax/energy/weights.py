"""Nequix's weights: put in place by hand, or fetched once and verified ever after.

No checksum of them is published. That of the file that comes first is recorded beside it, and a
file that differs from its record is refused.
"""

from __future__ import annotations

import http.client
import json
import shlex
import urllib.request
from pathlib import Path
from types import MappingProxyType
from typing import Any

from absl import logging

from chemeleon2_jax.common.atomic_files import locked, replacing
from chemeleon2_jax.common.errors import EnergyError
from chemeleon2_jax.common.suggest import suggest
from chemeleon2_jax.data.cache import cache_dir, hash_file
from chemeleon2_jax.data.sources import RemoteFile

TIMEOUT_S = 30.0
MAX_BYTES = 200 << 20
"""A model has 3 MB."""

_REPOSITORY = "atomicarchitects/nequix"
_MP_COMMIT = "7c2854de8e754b1a60274c7d9d2e014989ed632e"
_OAM_COMMIT = "9c852a9c4cce69ae5e75bc5a2cf670be21ff8c28"

# Those of its list that are on the scale of MPtrj. OMat24's own, which nequix-omat-1 has, is none
# that a hull of Materials Project can be compared with.
MODELS = MappingProxyType(
    {
        name: RemoteFile(_REPOSITORY, commit, f"models/{name}.nqx")
        for name, commit in {
            "nequix-mp-1": _MP_COMMIT,
            "nequix-mp-1-pft": _MP_COMMIT,
            "nequix-mp-1-pft-no-cotrain": _MP_COMMIT,
            "nequix-oam-1": _OAM_COMMIT,
            "nequix-oam-1-pft": _OAM_COMMIT,
        }.items()
    }
)
"""Published models by name, at the commits that nequix 0.4.5 fetches them from."""


def weights_file(model: str) -> Path:
    """Return where a published model's weights are looked for; a file put there by hand will do."""
    return cache_dir() / "energy" / f"{model}.nqx"


def fetch_weights(model: str) -> Path:
    """Return the verified weights of a published model; download them where they are not here.

    Raises:
        EnergyError: no such model; or its weights cannot be had, or are not those that came first,
            with what to do by hand.
    """
    if model not in MODELS:
        raise EnergyError(f"no published Nequix model {model!r}: {suggest(model, MODELS)}")
    path = weights_file(model)
    record = path.with_name(path.name + ".sha256")
    try:
        with locked(path.with_name(f".{model}.lock")):
            if not path.exists():
                _download(MODELS[model].url, path)
            read_header(path)
            digest = hash_file(path)
            if not record.exists():
                with replacing(record) as temporary:
                    temporary.write_text(digest + "\n")
            expected = record.read_text().strip()
    except OSError as error:
        raise EnergyError(
            f"cannot keep the weights of {model} in {path.parent}: {error}. Make room, or set "
            "XDG_CACHE_HOME to a folder that can be written"
        ) from error
    if digest != expected:
        raise EnergyError(
            f"{path} is not the file that came first: its sha256 is {digest}, recorded in {record} "
            f"is {expected}. Remove the file to fetch it again; if the new one is right, remove "
            "the record too"
        )
    return path


def read_header(path: Path) -> dict[str, Any]:
    """Return the config that a file of weights begins with.

    Raises:
        EnergyError: it has none.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        line = stream.readline(1 << 20)
    try:
        config = json.loads(line)
        if config["atomic_numbers"] and config["cutoff"] > 0:
            return config
    except (ValueError, KeyError, TypeError):
        pass
    raise EnergyError(
        f"{path} is no file of Nequix weights: it begins with {line[:40]!r}, not with a model's "
        "config. Remove it, and fetch it again or give another"
    )


def _download(url: str, path: Path) -> None:
    """Download to a path.

    Raises:
        EnergyError: it does not come.
        OSError: it cannot be written.
    """
    logging.info("Fetching %s.", url)
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "chemeleon2_jax"})
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            content = response.read(MAX_BYTES + 1)
    # A URLError is an OSError.
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _failure(url, path, str(error) or type(error).__name__) from error
    if len(content) > MAX_BYTES:
        raise _failure(url, path, f"it has more than {MAX_BYTES} bytes")
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _failure(url: str, path: Path, problem: str) -> EnergyError:
    return EnergyError(
        f"cannot download {url}: {problem}. Fetch it by hand, for instance with\n"
        f"  curl -L --create-dirs -o {shlex.quote(str(path))} {url}\n"
        "(or put it there from another machine); a file in that place is used first. Or give "
        "model_path=<file.nqx>"
    )
