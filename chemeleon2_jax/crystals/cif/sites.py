"""The atom sites of a CIF, and their images under symmetry operations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chemeleon2_jax.crystals.cif.elements import read_elements
from chemeleon2_jax.crystals.cif.numbers import EXACT, read_number
from chemeleon2_jax.crystals.cif.syntax import Block

FULL_OCCUPANCY = 1e-3
"""Occupancies are 1 within this."""

SAME_SITE = 1e-4
"""Fractional; closer sites are one."""

MAX_COORDINATE = 1e6
"""Fractional; larger coordinates have no digits left for the position in the cell."""

_THIRDS = (1 / 3, 2 / 3)
_COORDINATES = tuple(f"_atom_site_fract_{axis}" for axis in "xyz")


@dataclass(frozen=True)
class Sites:
    """Atom sites as listed, M of them.

    Attributes:
        labels: of the sites.
        symbols: of their elements.
        coordinates: (M, 3), fractional.
        digits: (M,), decimals of the coordinates, of the least precise of each site.
        occupancies: (M,), 0 < occupancy.
        multiplicities: as declared; None where not.
    """

    labels: list[str]
    symbols: list[str]
    coordinates: np.ndarray
    digits: np.ndarray
    occupancies: np.ndarray
    multiplicities: list[int | None]

    def __len__(self) -> int:
        return len(self.labels)


def read_sites(block: Block, declared: frozenset[str]) -> tuple[Sites, list[str]]:
    """Return the atom sites of a block, and notes.

    Args:
        block: the data block.
        declared: symbols of the declared formula.

    Raises:
        ValueError: no atom, a site without element or coordinates, an occupancy that is none.
    """
    kinds, labels = block.column("_atom_site_type_symbol"), block.column("_atom_site_label")
    labels = labels if labels is not None else kinds
    columns = [block.column(tag) for tag in _COORDINATES]
    if labels is None or any(column is None for column in columns):
        raise ValueError(f"no atom: {_explain_absence(block)}")
    rows, notes = _rows_to_read(block, len(labels))
    optional = {
        name: block.column(tag) or [""] * len(labels)
        for name, tag in (("occupancy", "_atom_site_occupancy"), ("kind", "_atom_site_type_symbol"))
    }
    lengths = {len(column) for column in (*columns, *optional.values()) if column is not None}
    if lengths != {len(labels)}:
        raise ValueError("unparsable CIF: the columns of the atom sites have different lengths")
    if not rows:
        raise ValueError("no atom: the list of atom sites is empty")
    labels = [labels[row] or optional["kind"][row] for row in rows]
    symbols, more = read_elements([optional["kind"][row] for row in rows], labels, declared)
    numbers = [
        [
            _coordinate((column or [])[row], f"{tag} of site {label}")
            for tag, column in zip(_COORDINATES, columns, strict=True)
        ]
        for row, label in zip(rows, labels, strict=True)
    ]
    sites = Sites(
        labels=labels,
        symbols=symbols,
        coordinates=np.array([[_snap(value) for value, _ in row] for row in numbers]),
        digits=np.array([_digits(row) for row in numbers]),
        occupancies=np.array(
            [
                _occupancy(optional["occupancy"][r], label)
                for r, label in zip(rows, labels, strict=True)
            ]
        ),
        multiplicities=_multiplicities(block, rows),
    )
    empty = sites.occupancies == 0
    if empty.any():
        notes.append(f"{empty.sum()} sites of occupancy 0 left out")
        sites = _take(sites, np.flatnonzero(~empty))
    if not len(sites):
        raise ValueError("no atom: every site has the occupancy 0")
    return sites, [*notes, *more]


def _explain_absence(block: Block) -> str:
    if block.column("_atom_site_cartn_x") is not None:
        kind = "an mmCIF of molecules" if "_atom_site_group_pdb" in block.values else "the block"
        return f"{kind} has Cartesian coordinates only; convert it to a CIF with _atom_site_fract_x"
    if any(tag.startswith("_atom_site_") for tag in block.values):
        return "a column of _atom_site_label, _fract_x, _fract_y, _fract_z is missing"
    return "the block has a cell but no atom sites (_atom_site_label, _atom_site_fract_x)"


def _rows_to_read(block: Block, num_sites: int) -> tuple[list[int], list[str]]:
    """Return the rows of atoms, without those flagged as dummies, and a note on these."""
    hydrogens = block.column("_atom_site_attached_hydrogens") or []
    if any(value not in ("", "0") for value in hydrogens):
        raise ValueError("implicit hydrogens: their positions are not given")
    flags = block.column("_atom_site_calc_flag") or []
    dummies = {row for row, flag in enumerate(flags) if flag.lower() == "dum"}
    notes = [f"{len(dummies)} dummy sites left out (_atom_site_calc_flag)"] if dummies else []
    return [row for row in range(num_sites) if row not in dummies], notes


def _snap(value: float) -> float:
    """Return 1/3 and 2/3 for 0.3333 and 0.6667."""
    return next((third for third in _THIRDS if abs(value / third - 1.0) <= SAME_SITE), value)


def _digits(coordinates: list[tuple[float, int]]) -> int:
    """Return the decimals of the least precise coordinate; 0.5 and 0.125 are exact."""
    rounded = [digits for value, digits in coordinates if digits > 3 or (value * 8) % 1]
    return min(rounded, default=EXACT)


def _coordinate(text: str, label: str) -> tuple[float, int]:
    value, digits = read_number(text, label=label)
    if abs(value) > MAX_COORDINATE:
        raise ValueError(f"impossible coordinate: {label} is {text[:30]}")
    return value, digits


def _occupancy(text: str, label: str) -> float:
    value = read_number(text, label=f"the occupancy of site {label}")[0] if text else 1.0
    if not 0.0 <= value <= 1.0 + FULL_OCCUPANCY:
        raise ValueError(f"impossible occupancy: {value:g} at site {label}")
    return value


def _multiplicities(block: Block, rows: list[int]) -> list[int | None]:
    column = block.column(
        "_atom_site_symmetry_multiplicity", "_atom_site_site_symmetry_multiplicity"
    )
    values = [column[row] if column and row < len(column) else "" for row in rows]
    return [int(value) if value.isdecimal() and len(value) < 5 else None for value in values]


def _take(sites: Sites, rows: np.ndarray) -> Sites:
    return Sites(
        labels=[sites.labels[row] for row in rows],
        symbols=[sites.symbols[row] for row in rows],
        coordinates=sites.coordinates[rows],
        digits=sites.digits[rows],
        occupancies=sites.occupancies[rows],
        multiplicities=[sites.multiplicities[row] for row in rows],
    )
