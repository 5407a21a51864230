"""Crystals of CIFs: one for each data block with atom sites, or the reason for its absence."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from pymatgen.core import Element, Lattice

from chemeleon2_jax.crystals.arrays import CrystalArrays
from chemeleon2_jax.crystals.cif.checks import compare, read_declared
from chemeleon2_jax.crystals.cif.elements import ATOMIC_NUMBERS
from chemeleon2_jax.crystals.cif.expansion import Atoms, expand
from chemeleon2_jax.crystals.cif.numbers import read_number
from chemeleon2_jax.crystals.cif.sites import Sites, read_sites
from chemeleon2_jax.crystals.cif.symmetry import Operations, find_symmetry
from chemeleon2_jax.crystals.cif.syntax import Block, parse_blocks
from chemeleon2_jax.crystals.limits import check_cell

Reading = tuple[Operations, Atoms, list[str]]  # with what disagrees


@dataclass(frozen=True)
class ReadCrystal:
    """The crystal of one data block, or the reason for its absence.

    Attributes:
        block: the block's name.
        arrays: atom_types (n,) int8, frac_coords (n, 3) in 0..1, lattice (3, 3) in angstrom, in the
            cell of the file; None without crystal.
        reason: why there is none, "kind: detail".
        notes: what was assumed, or left out.
        doubts: what the file declares that disagrees with the crystal.
    """

    block: str
    arrays: CrystalArrays | None
    reason: str | None = None
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    @property
    def found(self) -> CrystalArrays:
        """The arrays of a block with a crystal."""
        if self.arrays is None:
            raise ValueError(self.reason)
        return self.arrays


def read_cif(content: str | bytes) -> list[ReadCrystal]:
    """Return the crystals of a CIF, one for each data block with a cell or atom sites.

    Raises:
        ValueError: no CIF, or one without any such block; "kind: detail".
    """
    blocks, repairs = parse_blocks(content)
    crystals = [block for block in blocks if _has_crystal(block)]
    if not crystals:
        raise ValueError(
            "no atom: the CIF has no atom sites (_atom_site_label, _atom_site_fract_x) and no cell"
        )
    return [_read_or_reason(block, repairs) for block in crystals]


def _has_crystal(block: Block) -> bool:
    return "_cell_length_a" in block.values or any(
        tag.startswith("_atom_site_") for tag in block.values
    )


def _read_or_reason(block: Block, repairs: tuple[str, ...]) -> ReadCrystal:
    try:
        return _read_block(block, repairs)
    except ValueError as error:
        return ReadCrystal(block.name, None, str(error))


def _read_block(block: Block, repairs: tuple[str, ...]) -> ReadCrystal:
    if block.repeated:
        raise ValueError(
            f"unparsable CIF: {block.repeated[0]} stands twice in block {block.name!r}"
        )
    if "_cell_modulation_dimension" in block.values or "_cell_wave_vector_seq_id" in block.values:
        raise ValueError("modulated structure: its atoms have no positions in one cell")
    lattice, notes = _read_cell(block)
    declared = read_declared(block)
    sites, more = read_sites(block, declared.symbols)
    symmetry = find_symmetry(block, lattice)
    notes = [*repairs, *notes, *declared.notes, *more, *symmetry.notes]
    readings = []
    for operations in symmetry.choices:
        atoms = expand(sites, operations, lattice)
        disagreements = compare(declared, sites, atoms, num_operations=len(operations))
        readings.append((operations, atoms, disagreements))
    operations, atoms, disagreements = _choose(readings)
    if len(readings) > 1:
        notes.append(f"read as {operations.setting}, which alone agrees with the formula")
    doubts = [*symmetry.doubts, *atoms.doubts, *disagreements]
    if not operations.fit(lattice):
        doubts.append("the cell does not have the symmetry of the space group")
    arrays = _to_arrays(sites, atoms, lattice)
    return ReadCrystal(block.name, arrays, None, tuple(notes), tuple(doubts))


def _choose(readings: list[Reading]) -> Reading:
    """Return the reading of the only setting that agrees with what is declared.

    Raises:
        ValueError: several settings agree, or none.
    """
    if len(readings) == 1:
        return readings[0]
    agreeing = [reading for reading in readings if not reading[2]]
    if len(agreeing) == 1:
        return agreeing[0]
    names = " or ".join(operations.setting for operations, _, _ in readings)
    raise ValueError(
        f"unknown symmetry: its setting is {names}, and the formula does not tell which; write "
        "the setting, or the symmetry operations"
    )


def _read_cell(block: Block) -> tuple[np.ndarray, list[str]]:
    """Return the lattice (3, 3) in angstrom, and notes."""
    lengths = [_cell_value(block, f"_cell_length_{edge}") for edge in "abc"]
    angles, notes = [], []
    for angle in ("alpha", "beta", "gamma"):
        tag = f"_cell_angle_{angle}"
        if not block.first(tag):
            notes.append(f"no {angle}: taken as 90 degrees")
        angles.append(_cell_value(block, tag) if block.first(tag) else 90.0)
    if not all(0.0 < angle < 180.0 for angle in angles):
        raise ValueError(f"impossible angles: {', '.join(f'{a:g}' for a in angles)} degrees")
    if not all(length > 0.0 for length in lengths):
        raise ValueError(f"a cell length is not positive: {', '.join(f'{a:g}' for a in lengths)}")
    lattice = np.array(Lattice.from_parameters(*lengths, *angles).matrix)
    check_cell(lattice)
    return lattice, notes


def _cell_value(block: Block, tag: str) -> float:
    text = block.first(tag)
    if not text:
        raise ValueError(f"unparsable CIF: no {tag}")
    return read_number(text, label=tag)[0]


def _to_arrays(sites: Sites, atoms: Atoms, lattice: np.ndarray) -> CrystalArrays:
    """Return the arrays, atoms by electronegativity."""
    symbols = [sites.symbols[site] for site in atoms.site.tolist()]
    order = _sort_as_pymatgen(symbols)
    types = np.array([ATOMIC_NUMBERS[symbols[i]] for i in order], np.int8)
    return types, atoms.coordinates[order], lattice


def _sort_as_pymatgen(symbols: list[str]) -> list[int]:
    """Return the order of atoms in pymatgen's structures of CIFs, on which noises depend.

    It is by electronegativity. Noble gases have none, and end where a sort with comparisons that
    contradict each other leaves them: the sorts are done again here.
    """
    order = sorted(range(len(symbols)), key=lambda i: _rank(symbols[i]), reverse=True)
    return sorted(order, key=lambda i: _Comparable(symbols[i]))


@cache
def _rank(symbol: str) -> tuple[float, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # noble gases
        electronegativity = Element(symbol).X
    return (electronegativity if math.isfinite(electronegativity) else math.inf, symbol)


class _Comparable:
    """A symbol that compares as pymatgen's sites do."""

    def __init__(self, symbol: str) -> None:
        self.electronegativity, self.symbol = _rank(symbol)

    def __lt__(self, other: _Comparable) -> bool:
        first, second = self.electronegativity, other.electronegativity
        if first != second and math.isfinite(first) and math.isfinite(second):
            return first < second
        return self.symbol < other.symbol


def first_crystal(content: str | bytes) -> ReadCrystal:
    """Return the first crystal of a CIF; a note counts those after it.

    Raises:
        ValueError: no block gives a crystal; "kind: detail" of the first.
    """
    crystals = read_cif(content)
    good = [crystal for crystal in crystals if crystal.arrays is not None]
    if not good:
        raise ValueError(crystals[0].reason)
    first = good[0]
    if len(crystals) == 1:
        return first
    note = f"block {first.block!r} alone is read, of {len(crystals)} with crystals"
    return replace(first, notes=(*first.notes, note))
