"""The plan of the house: which room may import which, and what is written in one place only."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from chemeleon2_jax.diffusion.samplers import SAMPLERS
from chemeleon2_jax.models.condition_kinds import KINDS
from chemeleon2_jax.models.encoders.registry import ENCODERS
from launch.architecture import (
    PACKAGE,
    find_circles,
    floors,
    module_graph,
    read_imports,
    room_graph,
    room_of,
)

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / PACKAGE).rglob("*.py"))

MAINS = {"train", "sample", "evaluate", "convert", "__main__"}
# Room -> the rooms that it may import, from the top floor down.
ALLOWED = {
    "train": {"common", "runs", "stages", "training"},
    "sample": {"common", "crystals", "diffusion", "inference", "runs", "training"},
    "convert": {"common", "pretrained", "runs", "torch_format"},
    "evaluate": {"common", "inference", "metrics", "runs"},
    "__main__": {"common"},
    "__init__": {"common", "inference", "metrics"},
    "stages": {
        *("common", "crystals", "data", "diffusion", "inference", "metrics", "models"),
        *("pretrained", "rewards", "rl", "rows", "runs", "torch_format", "training", "workers"),
    },
    "inference": {
        *("common", "crystals", "data", "diffusion", "models", "pretrained", "rows", "training"),
    },
    "pretrained": {"common", "diffusion", "models", "torch_format", "training"},
    "rewards": {"common", "crystals", "energy", "metrics", "workers"},
    "rl": {"diffusion", "rows"},
    "energy": {"common", "crystals", "workers"},
    "metrics": {"common", "crystals", "data", "workers"},
    "runs": {"common", "diffusion", "models", "training"},
    "torch_format": {"common", "crystals", "models", "training"},
    "diffusion": {"models", "rows"},
    "data": {"common", "crystals", "rows", "workers"},
    "models": {"common", "crystals", "rows"},
    "training": {"common", "rows"},
    "rows": {"crystals"},
    "crystals": set(),
    "workers": set(),
    "common": set(),
}
NUM_FLOORS = 8


def test_rooms_import_only_what_they_may():
    graph = room_graph(ROOT)
    assert graph.keys() == ALLOWED.keys(), "a new room needs a line in ALLOWED"
    for room, imported in graph.items():
        assert imported <= ALLOWED[room], f"{room} may not import {imported - ALLOWED[room]}"
    unused = {room: ALLOWED[room] - imported for room, imported in graph.items()}
    assert not any(unused.values()), f"allowed, but no longer imported: {unused}"


def test_no_circle_and_few_floors():
    assert not find_circles(module_graph(ROOT))
    assert max(floors(room_graph(ROOT)).values()) == NUM_FLOORS


def test_a_circle_would_be_found():
    circles = find_circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}})
    assert circles == [{"b", "c"}]
    with pytest.raises(ValueError, match="b, c"):
        floors({"b": {"c"}, "c": {"b"}})


def test_only_mains_stand_at_the_top_and_nobody_imports_them():
    loose = {path.stem for path in (ROOT / PACKAGE).glob("*.py")} - {"__init__"}
    assert loose == MAINS
    for found in read_imports(ROOT):
        if found.module != PACKAGE:  # the package's own file
            assert room_of(found.module) not in MAINS, found


def test_diffusion_knows_no_model():
    modules = {i.module for i in read_imports(ROOT) if "diffusion" in i.file.parts}
    models = {m for m in modules if m.startswith(f"{PACKAGE}.models")}
    assert models == {f"{PACKAGE}.models.sizes"}


def test_sizes_are_free_of_jax():
    imported = {
        name
        for node in ast.walk(ast.parse((ROOT / PACKAGE / "models" / "sizes.py").read_text()))
        for name in _imported_names(node)
    }
    assert not {name for name in imported if name.partition(".")[0] in ("jax", "flax", "optax")}


@pytest.mark.parametrize(
    ("names", "owner", "rooms"),
    [
        (ENCODERS, "models/encoders/registry.py", ALLOWED),
        # Metrics and rewards of compositions have nothing to do with conditions.
        (KINDS, "models/condition_kinds.py", ALLOWED.keys() - {"metrics", "rewards", "energy"}),
        (SAMPLERS, "diffusion/samplers/", ALLOWED),
    ],
)
def test_names_of_a_registry_are_written_in_it_alone(names, owner, rooms):
    """Who else needs to know of an encoder, a kind of conditions or a sampler asks its class."""
    for path in SOURCES:
        file = path.relative_to(ROOT / PACKAGE)
        nodes = ast.walk(ast.parse(path.read_text("utf-8")))
        constants = {node.value for node in nodes if isinstance(node, ast.Constant)}
        if file.parts[0].removesuffix(".py") in rooms and not str(file).startswith(owner):
            assert not constants & set(names), file


def _imported_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module else []


@pytest.mark.parametrize(
    ("pattern", "owners", "instead"),
    [
        # Python's own logging is for handlers, filters and other libraries' loggers.
        (r"\blogging\.getLogger\(__name__\)|^_?log(ger)? =", set(), "absl.logging"),
        (r"\bdifflib\b", {"common/suggest.py"}, "common.suggest"),
        (r"\bModelMeta\.from_json\b", {"pretrained/loading.py"}, "open_model"),
    ],
)
def test_written_once(pattern, owners, instead):
    users = {
        str(path.relative_to(ROOT / PACKAGE))
        for path in SOURCES
        if re.search(pattern, path.read_text("utf-8"), re.MULTILINE)
    }
    assert users == owners, f"use {instead}"
