"""The embedded data sets: prototype structures of the AFLOW library with other elements.

pymatgen ships 288 experimental structure types (Mehl et al., Comput. Mater. Sci. 136, S1, 2017):
rock salt, perovskite, spinel, Laves phases, and so on. Ordered ones with at most 20 atoms in their
primitive cell are filled with elements, and scaled so that bonds keep their length relative to the
sum of covalent radii. `prototypes` takes all types, and elements of the same groups of the periodic
table; `structure-types` takes a few famous ones with small cells, and the chemistries that each is
known for (see `structure_types`). The crystals are fictitious, but their geometry and chemistry are
realistic enough for training and tests.

A formula belongs to one split in all types. The sets are reproducible from pymatgen's file: hashes
make the choices, and coordinates and cells are rounded before they are stored.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from absl import logging

from chemeleon2_jax.common.cache import cache_dir
from chemeleon2_jax.crystals.arrays import NUM_ATOM_CLASSES, CrystalArrays, Crystals
from chemeleon2_jax.data import structure_types
from chemeleon2_jax.data.cache import (
    crystals_from_arrays,
    crystals_to_arrays,
    load_arrays,
    store_arrays,
)
from chemeleon2_jax.data.csv_files import SPLITS

if TYPE_CHECKING:
    from chemeleon2_jax.data.prototype_cells import Prototype

VERSION = 1
"""Part of the cache's file names; raise it when the crystals change."""

# (Atoms in the cell up to, crystals of a prototype at most): small cells are learnt first.
MAX_CRYSTALS = ((4, 64), (8, 48), (12, 36), (20, 20))

MAX_DENSITY = 23.0
"""g/cm3, a little above osmium; denser crystals are left out."""

VOLUME_PER_ATOM = (2.5, 120.0)
"""Cubic angstrom: from hydrogen under pressure to caesium; other crystals are left out."""

_GRAM_PER_CM3 = 1.66053906660  # of one atomic mass unit per cubic angstrom
_SHARES = {"train": 80, "val": 10, "test": 10}  # per cent


PROTOTYPES, STRUCTURE_TYPES = "prototypes", "structure-types"
EMBEDDED_SETS = (PROTOTYPES, STRUCTURE_TYPES)
"""Names of the embedded sets."""


def load_embedded(name: str) -> dict[str, Crystals]:
    """Return the splits of an embedded set, built at first use and cached.

    The targets are `density` (g/cm3), `volume_per_atom` (cubic angstrom) and
    `electronegativity_difference` (Pauling scale, largest minus smallest).

    Raises:
        DatasetError: the installed pymatgen has no prototypes.
    """
    version = importlib.metadata.version("pymatgen")
    paths = {split: cache_dir() / name / f"{split}-{version}-v{VERSION}.npz" for split in SPLITS}
    try:
        cached = {split: load_arrays(path) for split, path in paths.items()}
        if all(arrays is not None for arrays in cached.values()):
            return {split: crystals_from_arrays(cached[split] or {}) for split in SPLITS}
    except (KeyError, ValueError) as error:
        logging.warning("The cached set %s is incomplete (%s); building it again.", name, error)
    logging.info("Building the data set %s from pymatgen's prototype structures.", name)
    built = build_embedded(name)
    for split, crystals in built.items():
        if not store_arrays(paths[split], crystals_to_arrays(crystals)):
            break
    return built


def build_embedded(name: str, *, max_prototypes: int = 0) -> dict[str, Crystals]:
    """Build the splits of an embedded set, in a few seconds.

    Args:
        name: one of `EMBEDDED_SETS`.
        max_prototypes: number of entries of pymatgen's file to use; 0 for all.

    Raises:
        DatasetError: the installed pymatgen has no prototypes.
    """
    # pymatgen takes a second to import, which a run with a warm cache saves.
    from chemeleon2_jax.data.prototype_cells import read_prototypes, substitute

    by_split: dict[str, list[tuple[str, CrystalArrays]]] = {split: [] for split in SPLITS}
    for prototype in read_prototypes(max_prototypes):
        family = _family(name, prototype)
        for formula, (symbols, scale) in _choose_formulas(prototype, family).items():
            crystal = substitute(prototype, symbols, scale)
            by_split[split_of(formula)].append((f"{family.name}-{formula}", crystal))
    splits = {}
    for split, entries in by_split.items():
        # Ordered by hash, so that the first entries are a fair sample.
        entries.sort(key=lambda entry: _hash(entry[0]))
        ids = [material_id for material_id, _ in entries]
        crystals = Crystals.from_list([crystal for _, crystal in entries], material_ids=ids)
        crystals = replace(crystals, targets=_derive_targets(crystals))
        splits[split] = crystals.take(np.flatnonzero(_is_plausible(crystals)))
    return splits


@dataclass(frozen=True)
class _Family:
    """The crystals to make of a prototype: first part of their ids, candidates for the elements of
    its species, and largest number.
    """

    name: str
    candidates: Iterable[tuple[str, ...]]
    most: int


def _family(set_name: str, prototype: Prototype) -> _Family:
    from chemeleon2_jax.data.prototype_cells import similar_elements

    if set_name == STRUCTURE_TYPES:
        return _Family(*structure_types.chemistries(prototype), structure_types.MAX_CRYSTALS)
    most = next(number for atoms, number in MAX_CRYSTALS if len(prototype.species) <= atoms)
    return _Family(prototype.name, similar_elements(prototype), most)


def _choose_formulas(
    prototype: Prototype, family: _Family
) -> dict[str, tuple[tuple[str, ...], float]]:
    """Return reduced formula -> (elements, scale) of a prototype's crystals."""
    from chemeleon2_jax.data.prototype_cells import fit_elements, reduced_formula

    choices: dict[str, tuple[tuple[str, ...], float]] = {}
    for symbols, scale in fit_elements(prototype, family.candidates):
        choices.setdefault(reduced_formula(prototype, symbols), (symbols, scale))
    formulas = sorted(choices, key=lambda formula: _hash(f"{family.name}-{formula}"))[: family.most]
    return {formula: choices[formula] for formula in formulas}


def split_of(formula: str) -> str:
    """Return the split of a reduced formula."""
    position = int(_hash(formula), 16) % 100
    for split, share in _SHARES.items():
        if position < share:
            return split
        position -= share
    raise AssertionError("the shares of the splits sum to 100")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _is_plausible(crystals: Crystals) -> np.ndarray:
    volume = crystals.targets["volume_per_atom"]
    smallest, largest = VOLUME_PER_ATOM
    return (crystals.targets["density"] < MAX_DENSITY) & (smallest < volume) & (volume < largest)


def _derive_targets(crystals: Crystals) -> dict[str, np.ndarray]:
    from pymatgen.core import Element

    mass, electronegativity = np.zeros(NUM_ATOM_CLASSES), np.zeros(NUM_ATOM_CLASSES)
    for z in np.unique(crystals.atom_types):
        element = Element.from_Z(int(z))
        mass[z], electronegativity[z] = float(element.atomic_mass), element.X
    vectors = crystals.lattices.astype(np.float64)
    volume = np.einsum("gi,gi->g", vectors[:, 0], np.cross(vectors[:, 1], vectors[:, 2]))
    starts = crystals.offsets[:-1]
    masses = np.add.reduceat(mass[crystals.atom_types], starts)
    per_atom = electronegativity[crystals.atom_types]
    spread = np.maximum.reduceat(per_atom, starts) - np.minimum.reduceat(per_atom, starts)
    targets = {
        "density": masses / volume * _GRAM_PER_CM3,
        "volume_per_atom": volume / crystals.num_atoms,
        "electronegativity_difference": spread,
    }
    return {name: values.astype(np.float32) for name, values in targets.items()}
