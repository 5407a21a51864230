"""Nequix's weights: put in place by hand, or fetched once and verified ever after."""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

from chemeleon2_jax.common.cache import cache_dir, cache_folder
from chemeleon2_jax.common.errors import EnergyError
from chemeleon2_jax.common.fetch import RemoteFile, fetch, find_problem
from chemeleon2_jax.common.suggest import suggest

MAX_BYTES = 200 << 20
"""A model has 3 MB."""

_OTHERWISE = ", or give model_path=<file.nqx>"
_REPOSITORY = "atomicarchitects/nequix"
_MP_COMMIT = "7c2854de8e754b1a60274c7d9d2e014989ed632e"
_OAM_COMMIT = "9c852a9c4cce69ae5e75bc5a2cf670be21ff8c28"

# The published models on the scale of MPtrj. nequix-omat-1 is on OMat24's, which no hull of
# Materials Project can be compared with.
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
    path, source = weights_file(model), MODELS[model]
    content = f"the weights of {model}"
    with cache_folder(path.parent, content, error=EnergyError, otherwise=_OTHERWISE):
        # Nothing published tells that a user's own file is wrong: it is not overwritten.
        problem = find_problem(source, path, _header_problem) if path.exists() else ""
        if problem:
            raise EnergyError(f"{path}: {problem}. Remove the file to fetch it again")
        fetch(
            source,
            path,
            error=EnergyError,
            otherwise=_OTHERWISE,
            check=_header_problem,
            max_bytes=MAX_BYTES,
        )
    return path


def read_header(path: Path) -> dict[str, Any]:
    """Return the config that a file of weights begins with.

    Raises:
        EnergyError: it has none.
        OSError: it cannot be read.
    """
    problem = _header_problem(path)
    if problem:
        raise EnergyError(f"{path}: {problem}. Remove it, and fetch it again or give another")
    with path.open("rb") as stream:
        return json.loads(stream.readline())


def _header_problem(path: Path) -> str:
    """Return what is wrong with the first line of a file of weights; empty where nothing is."""
    with path.open("rb") as stream:
        line = stream.readline(1 << 20)
    try:
        config = json.loads(line)
        if config["atomic_numbers"] and config["cutoff"] > 0:
            return ""
    except (ValueError, KeyError, TypeError):
        pass
    return (
        f"it is no file of Nequix weights: it begins with {line[:40]!r}, not with a model's config"
    )
