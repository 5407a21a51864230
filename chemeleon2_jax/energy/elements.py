"""Energies of the elements by an energy model: the references that a hull needs.

The crystals of an element are prototypes of our own: close-packed and body-centred metals, diamond,
simple cubic, and a molecule of two atoms in a box. The model relaxes them, and the lowest energy of
each element counts. Allotropes of large cells (sulphur, boron, manganese) are not among them: a
hull made of these references alone is a little too high there.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from absl import logging
from pymatgen.core import Element, Lattice, Structure

from chemeleon2_jax.common.errors import EnergyError
from chemeleon2_jax.crystals.arrays import MAX_ATOMIC_NUMBER, lattice_from_parameters
from chemeleon2_jax.crystals.geometry import covalent_radius
from chemeleon2_jax.energy.entry import Entry
from chemeleon2_jax.energy.interface import EnergyModel

_STEPS = 200
_BOX = 8.0  # angstrom, around a molecule
_STRETCH = 1.1  # bonds of metals over twice the covalent radius

# Name -> edges of the cell over the bond length, angles in degrees, and fractional coordinates.
_PROTOTYPES = {
    "fcc": ((1.0, 1.0, 1.0), (60.0, 60.0, 60.0), ((0, 0, 0),)),
    "bcc": ((2 / 3**0.5,) * 3, (90.0, 90.0, 90.0), ((0, 0, 0), (0.5, 0.5, 0.5))),
    "hcp": (
        (1.0, 1.0, (8 / 3) ** 0.5),
        (90.0, 90.0, 120.0),
        ((1 / 3, 2 / 3, 0.25), (2 / 3, 1 / 3, 0.75)),
    ),
    "diamond": ((8**0.5 / 3**0.5,) * 3, (60.0, 60.0, 60.0), ((0, 0, 0), (0.25, 0.25, 0.25))),
    "simple cubic": ((1.0, 1.0, 1.0), (90.0, 90.0, 90.0), ((0, 0, 0),)),
}


def elemental_crystals(symbol: str) -> list[Structure]:
    """Return crystals of an element to relax.

    Raises:
        ValueError: the symbol is no element up to Z = 99.
    """
    if not Element.is_valid_symbol(symbol) or Element(symbol).Z > MAX_ATOMIC_NUMBER:
        raise ValueError(f"{symbol!r} is no element up to Z = {MAX_ATOMIC_NUMBER}")
    bond = 2.0 * covalent_radius(Element(symbol).Z)  # angstrom
    crystals = [
        Structure(
            Lattice(lattice_from_parameters(np.array(edges) * bond * _STRETCH, np.radians(angles))),
            [symbol] * len(sites),
            sites,
        )
        for edges, angles, sites in _PROTOTYPES.values()
    ]
    ends = [[0.5 - sign * bond / (2 * _BOX), 0.5, 0.5] for sign in (1, -1)]
    return [*crystals, Structure(Lattice.cubic(_BOX), [symbol] * 2, ends)]


def elemental_entries(
    model: EnergyModel, symbols: Iterable[str], *, steps: int = _STEPS
) -> list[Entry]:
    """Return an entry for each element, with the lowest energy of its relaxed crystals.

    Together with entries of compounds by the same model they make a hull:
    ``Hull([*compounds, *elemental_entries(model, ["Li", "O"])], corrected=model.corrected)``.

    Args:
        model: that also gives the energies to compare.
        symbols: of the elements.
        steps: maximum number of steps of a relaxation.

    Raises:
        EnergyError: the model has no energy for any crystal of an element; names it.
        ValueError: a symbol is no element.
    """
    names = list(dict.fromkeys(symbols))
    groups = [elemental_crystals(name) for name in names]
    relaxed = model.relax([crystal for group in groups for crystal in group], steps=steps)
    sizes = [len(group) for group in groups]
    parts = np.split(relaxed.energies.values, np.cumsum(sizes)[:-1]) if names else []
    entries = []
    for name, energies in zip(names, parts, strict=True):
        if not np.isfinite(energies).any():
            raise EnergyError(f"{model.name} gives no energy for any crystal of {name}")
        lowest = int(np.nanargmin(energies))
        prototype = [*_PROTOTYPES, "molecule"][lowest]
        logging.info("%s: %.3f eV/atom (%s)", name, energies[lowest], prototype)
        entries.append(Entry({Element(name).Z: 1.0}, float(energies[lowest])))
    return entries
