"""Sizes of the training crystals of published models, which `.ckpt` files do not hold."""

from __future__ import annotations

import json
from importlib import resources

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.common.suggest import suggest

DEFAULT_SIZE_TABLE = "mp-20"


def published_size_table(name: str) -> tuple[int, ...]:
    """Return the crystals by number of atoms of a published training set, largest + 1 counts.

    Raises:
        CheckpointError: there is no such set.
    """
    text = resources.files(__package__).joinpath("size_tables.json").read_text("utf-8")
    tables: dict[str, list[int]] = json.loads(text)["tables"]
    if name not in tables:
        raise CheckpointError(f"no published size table for {name!r}: {suggest(name, tables)}")
    return tuple(tables[name])
