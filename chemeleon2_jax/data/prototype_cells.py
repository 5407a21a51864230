"""Structure types of the AFLOW library, and crystals of the same type with other elements.

A crystal keeps the fractional coordinates and the shape of its prototype's cell. Bonds set its
size: their mean length stays the same multiple of the sum of covalent radii.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import importlib.util
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pymatgen.analysis.molecule_structure_comparator import CovalentRadius
from pymatgen.core import Composition, Element, Structure

from chemeleon2_jax.common.errors import DatasetError
from chemeleon2_jax.crystals.arrays import CrystalArrays, lattice_from_parameters, wrap
from chemeleon2_jax.crystals.structures import reduce_structure

MAX_ATOMS = 20

# Elements that replace each other: columns of the periodic table, the 3d magnets, the platinum
# metals, the rare earths and the actinides.
SIMILAR_ELEMENTS = tuple(
    tuple(group.split())
    for group in (
        "H",
        "Li Na K Rb Cs",
        "Be Mg Ca Sr Ba",
        "Sc Y La Ce Pr Nd Sm Gd Tb Dy Ho Er Tm Yb Lu",
        "Ti Zr Hf",
        "V Nb Ta",
        "Cr Mo W",
        "Mn Fe Co Ni",
        "Tc Re",
        "Ru Rh Pd Os Ir Pt",
        "Cu Ag Au",
        "Zn Cd Hg",
        "B Al Ga In Tl",
        "C Si Ge Sn Pb",
        "N P As Sb Bi",
        "O S Se Te",
        "F Cl Br I",
        "Th Pa U Np Pu",
    )
)

COVALENT_RADII: dict[str, float] = CovalentRadius.radius
"""Angstrom (Cordero et al., Dalton Trans. 2832, 2008)."""

MIN_RATIO, MAX_RATIO = 0.75, 1.25
"""Range of the closest pair over the sum of its covalent radii; every crystal is scaled into it."""

MAX_EXTRA_SCALE = 1.1
"""Largest stretch of the bonds to reach `MIN_RATIO`; crystals that need more are left out."""

MAX_MISMATCH = 1.85
"""Largest ratio of the growth of two species' radii: no BeI2 in the cell of CaF2."""

_CUTOFF = 7.0  # angstrom; above the closest pairs of any prototype, also after scaling
_CONTACT = 1.15  # a neighbour within this factor of the closest one counts as bonded


@dataclass(frozen=True)
class Prototype:
    """A structure type: its reduced cell, and the pairs that scale it for other elements.

    Attributes:
        name: position in pymatgen's file and AFLOW label.
        symbols: its own elements.
        species: (n,) index into `symbols` of each atom.
        frac_coords: (n, 3).
        lengths: (3,) angstrom.
        angles: (3,) degrees.
        bonds: (s, s) number of contacts between atoms of two species.
        closest: (s, s) smallest distance between atoms of two species, angstrom; inf beyond the
            cutoff.
    """

    name: str
    symbols: tuple[str, ...]
    species: np.ndarray
    frac_coords: np.ndarray
    lengths: np.ndarray
    angles: np.ndarray
    bonds: np.ndarray
    closest: np.ndarray


def read_prototypes(max_prototypes: int = 0) -> Iterator[Prototype]:
    """Yield the ordered prototypes with at most `MAX_ATOMS` atoms in the reduced primitive cell.

    Args:
        max_prototypes: number of entries of the file to read; 0 for all.

    Raises:
        DatasetError: the installed pymatgen has no such file.
    """
    entries = json.loads(gzip.decompress(_library_file().read_bytes()))
    for index, entry in enumerate(entries[: max_prototypes or None]):
        structure = Structure.from_dict(entry["snl"])
        if not structure.is_ordered:
            continue
        structure.remove_oxidation_states()
        if not all(symbol in COVALENT_RADII for symbol in structure.symbol_set):
            continue
        reduced = reduce_structure(structure.get_primitive_structure(tolerance=0.01))
        if len(reduced) <= MAX_ATOMS:
            yield _describe(f"{index:03d}-{entry['tags']['aflow']}", reduced)


def _library_file() -> Path:
    spec = importlib.util.find_spec("pymatgen.analysis.prototypes")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "aflow_prototypes.json.gz"
        if path.is_file():
            return path
    raise DatasetError(
        f"pymatgen {importlib.metadata.version('pymatgen')} comes without "
        "analysis/prototypes/aflow_prototypes.json.gz, from which the embedded data set is built; "
        "install the version of requirements.txt, or set data.data_dir"
    )


def _describe(name: str, structure: Structure) -> Prototype:
    labels = [site.specie.symbol for site in structure]
    symbols = tuple(sorted(set(labels)))
    species = np.array([symbols.index(label) for label in labels])
    centers, neighbors, _, distances = structure.get_neighbor_list(_CUTOFF)
    radius = np.array([COVALENT_RADII[symbol] for symbol in symbols])[species]
    # Rounded, so that equal distances are equal on every machine.
    ratios = np.round(distances / (radius[centers] + radius[neighbors]), 6)

    nearest = np.full(len(species), np.inf)
    np.minimum.at(nearest, centers, ratios)
    pairs = species[centers], species[neighbors]
    closest = np.full((len(symbols), len(symbols)), np.inf)
    np.minimum.at(closest, pairs, distances)
    bonds = np.zeros((len(symbols), len(symbols)), int)
    is_bond = ratios < _CONTACT * nearest[centers]
    np.add.at(bonds, tuple(index[is_bond] for index in pairs), 1)
    return Prototype(
        name=name,
        symbols=symbols,
        species=species,
        frac_coords=wrap(np.round(structure.frac_coords, 6)),
        lengths=np.round(structure.lattice.abc, 6),
        angles=np.round(structure.lattice.angles, 4),
        bonds=bonds,
        closest=closest,
    )


def fit_elements(
    prototype: Prototype, candidates: Iterable[tuple[str, ...]]
) -> Iterator[tuple[tuple[str, ...], float]]:
    """Yield elements for a prototype's species, and the scale of the cell.

    No two species become the same element; elements that do not fit are left out.
    """
    for symbols in candidates:
        if len(set(symbols)) == len(symbols) and (scale := _scale(prototype, symbols)):
            yield symbols, scale


def similar_elements(prototype: Prototype) -> Iterator[tuple[str, ...]]:
    """Yield elements of the same groups as a prototype's own."""

    def similar(symbol: str) -> tuple[str, ...]:
        return next((group for group in SIMILAR_ELEMENTS if symbol in group), (symbol,))

    return itertools.product(*map(similar, prototype.symbols))


def _scale(prototype: Prototype, symbols: tuple[str, ...]) -> float:
    """Return the factor on the cell's lengths for other elements; 0 if they do not fit."""
    old = np.array([COVALENT_RADII[symbol] for symbol in prototype.symbols])
    new = np.array([COVALENT_RADII[symbol] for symbol in symbols])
    old_sums, new_sums = old[:, None] + old, new[:, None] + new
    growth = new / old
    if growth.max() > MAX_MISMATCH * growth.min():
        return 0.0
    by_bonds = (prototype.bonds * new_sums).sum() / (prototype.bonds * old_sums).sum()
    ratio = by_bonds * (prototype.closest / new_sums).min()
    if ratio * MAX_EXTRA_SCALE < MIN_RATIO:
        return 0.0
    return by_bonds * np.clip(ratio, MIN_RATIO, MAX_RATIO) / ratio


def reduced_formula(prototype: Prototype, symbols: tuple[str, ...]) -> str:
    """Return the reduced formula of a prototype with other elements."""
    counts = np.bincount(prototype.species).tolist()
    return Composition(dict(zip(symbols, counts, strict=True))).reduced_formula


def substitute(prototype: Prototype, symbols: tuple[str, ...], scale: float) -> CrystalArrays:
    """Return the crystal: atom_types (n,), frac_coords (n, 3), lattice (3, 3) in angstrom."""
    numbers = np.array([Element(symbol).Z for symbol in symbols])
    lengths = np.round(scale * prototype.lengths, 5)
    lattice = lattice_from_parameters(lengths, np.radians(prototype.angles))
    return numbers[prototype.species], prototype.frac_coords, lattice
