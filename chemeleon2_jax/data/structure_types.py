"""The embedded set of classic structure types: rock salt, perovskite, Heusler and ten others.

Prototypes of pymatgen's AFLOW library (see `prototype_cells`) with at most six atoms in their
primitive cell. Their sites take elements of the chemistries that the type is known for: alkali
halides, alkaline-earth chalcogenides and rare-earth pnictides in rock salt, for example. Few
structure types with many members each are what a small model learns in minutes. The crystals are
fictitious in part, and their sizes follow from covalent radii.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chemeleon2_jax.data.prototype_cells import Prototype

MAX_CRYSTALS = 200  # of a type

_ALKALI = "Li Na K Rb Cs"
_ALKALINE_EARTH = "Mg Ca Sr Ba"
_RARE_EARTH = "Sc Y La Ce Pr Nd Sm Gd Tb Dy Ho Er Tm Yb Lu"
_LANTHANIDE = "La Ce Pr Nd Sm Gd Tb Dy Ho Er Tm Yb Lu"
_GROUP_4 = "Ti Zr Hf"
_HALOGEN = "F Cl Br I"
_HEAVY_HALOGEN = "Cl Br I"
_CHALCOGEN = "O S Se Te"
_HEAVY_CHALCOGEN = "S Se Te"
_PNICTOGEN = "N P As Sb Bi"

# AFLOW label -> name (the first part of ids), and chemistries: the prototype's own element -> the
# elements in its place.
TYPES: dict[str, tuple[str, tuple[dict[str, str], ...]]] = {
    "AB_cF8_225_a_b": (
        "rock_salt",
        (
            {"Na": _ALKALI, "Cl": _HALOGEN},
            {"Na": _ALKALINE_EARTH, "Cl": _CHALCOGEN},
            {"Na": _RARE_EARTH, "Cl": _PNICTOGEN},
            {"Na": "Ti V Mn Fe Co Ni Cd", "Cl": "O"},
            {"Na": "Ti Zr Hf V Nb Ta", "Cl": "C N"},
        ),
    ),
    "AB_cP2_221_b_a": (
        "caesium_chloride",
        (
            {"Cs": "Cs Rb Tl", "Cl": _HEAVY_HALOGEN},
            {"Cs": _RARE_EARTH, "Cl": "Cu Ag Au Zn Cd Mg"},
            {"Cs": "Ni Co Fe Ru Rh Pd", "Cl": "Al Ga In Ti"},
        ),
    ),
    "AB_cF8_216_c_a": (
        "zinc_blende",
        (
            {"Zn": "Zn Cd Hg Be", "S": _HEAVY_CHALCOGEN},
            {"Zn": "B Al Ga In", "S": "N P As Sb"},
            {"Zn": "Cu Ag", "S": _HEAVY_HALOGEN},
        ),
    ),
    "AB_hP4_186_b_b": (
        "wurtzite",
        ({"Zn": "Zn Cd Be", "S": _CHALCOGEN}, {"Zn": "B Al Ga In", "S": "N P As"}),
    ),
    "AB2_cF12_225_a_c": (
        "fluorite",
        (
            {"Ca": "Ca Sr Ba Cd Pb Hg", "F": "F Cl"},
            {"Ca": "Ce Th U Zr Hf Pr Np Pu", "F": "O"},
            {"Ca": _CHALCOGEN, "F": "Li Na K Rb"},
            {"Ca": "Si Ge Sn Pb", "F": "Mg"},
            {"Ca": "Au Pt", "F": "Al Ga In"},
        ),
    ),
    "A2B_tP6_136_f_a": (
        "rutile",
        (
            {"Ti": "Ti V Cr Mn Ge Sn Pb Nb Mo Ru Rh Ir Os Ta W Re", "O": "O"},
            {"Ti": "Mg Mn Fe Co Ni Zn Pd V Cr", "O": "F"},
        ),
    ),
    "AB3C_cP5_221_a_c_b": (
        "perovskite",
        (
            {"Ca": "Ca Sr Ba", "Ti": "Ti Zr Hf Sn Mn Fe Mo V Ru", "O": "O"},
            {"Ca": "Na K Rb Cs", "Ti": "Mg Mn Fe Co Ni Zn Ca Cd", "O": "F"},
            {"Ca": _LANTHANIDE, "Ti": "Al Ga Sc V Cr Mn Fe Co Ni", "O": "O"},
            {"Ca": "Cs Rb K", "Ti": "Pb Sn Ge Cd Mg Ca", "O": _HEAVY_HALOGEN},
            {"Ca": "Li Na K Rb", "Ti": "Nb Ta", "O": "O"},
        ),
    ),
    "AB2C_cF16_225_a_c_b": (
        "Heusler",
        ({"Cu": "Co Ni Fe Cu Ru Rh Pd", "Mn": "Ti V Cr Mn Zr Hf", "Al": "Al Ga In Si Ge Sn Sb"},),
    ),
    "ABC_cF12_216_b_c_a": (
        "half-Heusler",
        (
            {"Ag": "Ni Pd Pt", "As": "Ge Sn Pb", "Mg": _GROUP_4},
            {"Ag": "Co Rh Ir", "As": "As Sb Bi", "Mg": _GROUP_4},
            {"Ag": "Cu Ag Au Li", "As": "P As Sb Bi", "Mg": "Mg Zn Cd Ca"},
            {"Ag": "Ni Pd Pt", "As": "Sb Bi", "Mg": _RARE_EARTH},
        ),
    ),
    "A2B_cF24_227_d_a": (
        "Laves_phase",
        (
            {
                "Mg": f"{_RARE_EARTH} {_GROUP_4} Ca Mg",
                "Cu": "Al Co Fe Ni Mn Cr Mg Cu Ru Rh Ir Pt",
            },
        ),
    ),
    "AB_hP4_194_c_a": (
        "nickel_arsenide",
        ({"Ni": "Ti V Cr Mn Fe Co Ni Pd Pt Rh", "As": "As Sb Bi Te Se S P"},),
    ),
    "AB2_hP3_164_a_d": (
        "cadmium_iodide",
        (
            {"Cd": "Mg Ca Cd Mn Fe Co Ni Zn Pb Ti V", "I": _HEAVY_HALOGEN},
            {"Cd": "Ti Zr Hf Sn Pt V Nb Ta", "I": _HEAVY_CHALCOGEN},
        ),
    ),
    "AB3_cP4_221_a_c": (
        "Cu3Au",
        (
            {"Cu": "Cu Ni Pt Pd Rh Ir Al Co", "Au": "Au Pt Ti Zr Hf Y Sc Er Sn In Pb"},
            {"Cu": "In Sn Pb Tl", "Au": _RARE_EARTH},
        ),
    ),
}


def chemistries(prototype: Prototype) -> tuple[str, Iterator[tuple[str, ...]]]:
    """Return the name of a prototype's type and candidates for the elements of its species; none
    for a prototype that is no classic type.
    """
    name, choices = TYPES.get(prototype.name.partition("-")[2], ("", ()))
    elements = ([choice[own].split() for own in prototype.symbols] for choice in choices)
    return name, itertools.chain.from_iterable(itertools.product(*sites) for sites in elements)
