"""The element of each site of a CIF: from the column of types, else from the label."""

from __future__ import annotations

import re
from collections import Counter

from pymatgen.core import Element

from chemeleon2_jax.crystals.arrays import MAX_ATOMIC_NUMBER

ATOMIC_NUMBERS = {element.symbol: element.Z for element in Element} | {"D": 1}
ISOTOPES = {"D": "deuterium"}

_LETTERS = re.compile(r"[A-Za-z]+")
# A symbol with a charge, a number or a suffix of pseudopotentials: Fe3+, Fe+3, Fe(III), Fe1, Fe_pv.
_TYPE = re.compile(
    r"([A-Za-z]{1,3})\s*"
    r"(?:\d+(?:\.\d+)?[+-]|[+-]{1,4}|[+-]\d+(?:\.\d+)?|\d+"
    r"|\((?:\d*[+-]?|[+-]\d+|[IVX]+)\)|_(?:pv|sv|[dhs]))?$"
)
# What stands in labels without being an element, though it starts with the symbol of one.
_NOT_ELEMENTS = {
    **dict.fromkeys(("va", "vac", "vacancy"), "a vacancy"),
    **dict.fromkeys(("wat", "water", "hoh", "tip"), "water without the positions of its atoms"),
    **dict.fromkeys(("oh", "nh", "ch", "cn", "no", "so"), "a group of atoms"),
    **dict.fromkeys(("x", "xx", "dum", "du", "dummy", "q", "lp", "cen"), "a dummy"),
}
# Words in one case only: CoM and CaT are cobalt and calcium at the sites M and T.
_WORDS = {
    **dict.fromkeys(("void", "vacant"), "a vacancy"),
    **dict.fromkeys(("sol", "solv", "solvent"), "a solvent without the positions of its atoms"),
    **dict.fromkeys(("hydroxyl", "hydroxide"), "a group of atoms"),
    **dict.fromkeys(("ion", "cat", "cation"), "an ion without its element"),
    **dict.fromkeys(("bq", "com", "cent", "center", "centre", "centroid"), "a dummy"),
}
_VACANCY = re.compile(r"v_ac", re.I)
_GROUP = re.compile(r"(OH|NH|CH|CN|NO|SO|PO|H2O)\d*$")  # OH1, NH4; not Ho1 nor Po1
_WATER_ATOMS = {"ow": "O", "hw": "H"}


def read_elements(
    types: list[str], labels: list[str], declared: frozenset[str]
) -> tuple[list[str], list[str]]:
    """Return the symbol of each site, and notes.

    Args:
        types: `_atom_site_type_symbol` of the sites, "" where there is none.
        labels: of the sites.
        declared: symbols of the declared formula; they decide how `CA1` is read.

    Raises:
        ValueError: a site is no element up to Z = 99; names the site.
    """
    upper = all(label == label.upper() for label in labels)
    symbols = [
        _from_type(kind, label) if kind else _from_label(label, declared, upper=upper)
        for kind, label in zip(types, labels, strict=True)
    ]
    for symbol, label in zip(symbols, labels, strict=True):
        if ATOMIC_NUMBERS[symbol] > MAX_ATOMIC_NUMBER:
            raise ValueError(
                f"element above Z = {MAX_ATOMIC_NUMBER}: {symbol} (Z = {ATOMIC_NUMBERS[symbol]}) "
                f"at site {label}"
            )
    counts = Counter(symbol for symbol in symbols if symbol in ISOTOPES)
    notes = [
        f"{ISOTOPES[symbol]} read as hydrogen, with the mass of hydrogen ({count} sites)"
        for symbol, count in counts.items()
    ]
    capitals = [
        f"{label} read as {symbol}"
        for kind, symbol, label in zip(types, symbols, labels, strict=True)
        if not kind and symbol not in declared and _is_ambiguous(label)
    ]
    if capitals:
        notes.append(f"labels in capitals: {', '.join(capitals[:4])}")
    return ["H" if symbol in ISOTOPES else symbol for symbol in symbols], notes


def _from_type(kind: str, label: str) -> str:
    """Return the symbol of `Na1+`, `FE` or `O2-`; a formula such as `Fe0.5Ni0.5` is none."""
    if "+ " in kind or "," in kind:
        raise ValueError(f"partial occupancy: {kind[:40]} at site {label}")
    match = _TYPE.match(kind)
    symbol = match[1].capitalize() if match else ""
    if symbol not in ATOMIC_NUMBERS or symbol.lower() in _NOT_ELEMENTS:
        raise _not_an_element(kind, f"type of site {label}", symbol)
    return symbol


def _from_label(label: str, declared: frozenset[str], *, upper: bool) -> str:
    """Return the symbol of `Na1`, `FeA`, `na1` or `NA1`.

    Args:
        label: of the site.
        declared: symbols of the declared formula.
        upper: whether all labels of the file are in upper case, so that `NA` is sodium.

    Raises:
        ValueError: no element, or one of two.
    """
    match = _LETTERS.match(label)
    letters = match[0] if match else ""
    if letters.lower() in _WATER_ATOMS:
        return _WATER_ATOMS[letters.lower()]
    if not letters or _meaning(label, letters):
        raise _not_an_element(label, "label of a site", letters)
    one, two = letters[:1].upper(), letters[:2].capitalize()
    if letters[1:2].islower():  # the small letters after the first are of the element: not Cal
        choices = [two] if not letters[2:3].islower() else []
    else:
        choices = [two, one]
    choices = [symbol for symbol in dict.fromkeys(choices) if symbol in ATOMIC_NUMBERS]
    choices = [symbol for symbol in choices if symbol in declared] or choices
    if len(choices) > 1 and not upper:
        raise ValueError(
            f"not an element: {label[:30]!r}, label of a site, can be {' or '.join(choices)}; give "
            "elements in _atom_site_type_symbol"
        )
    if not choices:
        raise _not_an_element(label, "label of a site", letters)
    return choices[0]


def _is_ambiguous(label: str) -> bool:
    return label[:2].isupper() and {label[:1], label[:2].capitalize()} <= set(ATOMIC_NUMBERS)


def _meaning(text: str, letters: str) -> str:
    """Return what a label is if not an element, by its first letters; "" for an element."""
    word = letters.lower()
    if word in _NOT_ELEMENTS:
        return _NOT_ELEMENTS[word]
    if word in _WORDS and letters in (word, word.upper(), word.capitalize()):
        return _WORDS[word]
    if _VACANCY.match(text):
        return "a vacancy"
    return "a group of atoms" if _GROUP.match(text) else ""


def _not_an_element(text: str, what: str, letters: str) -> ValueError:
    meaning = _meaning(text, letters)
    hint = f" ({meaning}?)" if meaning else ""
    advice = "" if what.startswith("type") else "; give elements in _atom_site_type_symbol"
    return ValueError(f"not an element: {text[:30]!r}, {what}{hint}{advice}")
