"""The symmetry operations of a CIF: as listed, or of its Hall symbol, name or number."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache

import gemmi
import numpy as np

from chemeleon2_jax.crystals.cif.syntax import Block

MAX_OPERATIONS = 1000
"""No group of a sensible cell has more: 192, times the centring of a supercell."""

_METRIC_TOLERANCE = 0.03  # relative; cells are given with few digits, too

_OPERATION_TAGS = (
    "_space_group_symop_operation_xyz",
    "_symmetry_equiv_pos_as_xyz",
    "_space_group_symop_operation_xyz_",
    "_symmetry_equiv_pos_as_xyz_",
)
_MAGNETIC_TAGS = ("_space_group_symop_magn_operation_xyz", "_space_group_symop_magn_operation_xyz_")
_MAGNETIC_CENTRING = ("_space_group_symop_magn_centering_xyz",)
_HALL_TAGS = ("_space_group_name_hall", "_symmetry_space_group_name_hall")
_NAME_TAGS = (
    "_space_group_name_h-m_alt",
    "_symmetry_space_group_name_h-m",
    "_space_group_name_h-m_full",
    "_symmetry_space_group_name_h-m_full",
    "_space_group_name_h-m",
    "_symmetry_space_group_name_h-m_alt",
)
_NUMBER_TAGS = ("_space_group_it_number", "_symmetry_int_tables_number")
_SETTING_TAG = "_space_group_it_coordinate_system_code"


@dataclass(frozen=True)
class Operations:
    """A space group's operations on fractional coordinates, x' = rotation x + translation.

    Attributes:
        rotations: (N, 3, 3).
        translations: (N, 3), 0..1.
        setting: its Hermann-Mauguin name with its setting; "" for listed operations.
    """

    rotations: np.ndarray
    translations: np.ndarray
    setting: str = ""

    def __len__(self) -> int:
        return len(self.rotations)

    def fit(self, lattice: np.ndarray) -> bool:
        """Tell whether the cell (3, 3) has the symmetry."""
        metric = lattice @ lattice.T
        moved = np.swapaxes(self.rotations, 1, 2) @ metric @ self.rotations
        lengths = np.sqrt(np.diag(metric))
        limit = _METRIC_TOLERANCE * np.outer(lengths, lengths)
        return bool((np.abs(moved - metric) <= limit).all())


@dataclass(frozen=True)
class Symmetry:
    """The operations of a block: one choice, or several settings among which to decide.

    Attributes:
        choices: at least one.
        notes: what was assumed.
        doubts: what disagrees.
    """

    choices: tuple[Operations, ...]
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


IDENTITY = Operations(np.eye(3)[None], np.zeros((1, 3)))


def find_symmetry(block: Block, lattice: np.ndarray) -> Symmetry:
    """Return the symmetry operations of a block.

    Listed operations win over a Hall symbol, that over a name, and that over a number. A name or
    number without setting has two choices where the tables have two origins.

    Args:
        block: the data block.
        lattice: (3, 3), rows are cell vectors; tells unique, hexagonal and rhombohedral axes.

    Raises:
        ValueError: "unknown symmetry: ...", an operation or a name that cannot be read.
    """
    name, hall = block.first(*_NAME_TAGS), block.first(*_HALL_TAGS)
    number = block.first(*_NUMBER_TAGS)
    listed = _listed(block)
    if listed:
        operations, is_group = _read_operations(tuple(listed))
        disagreements = _compare(tuple(listed), hall, name, number)
        doubts = () if is_group else ("the symmetry operations are no group: some are missing",)
        return Symmetry((operations,), (), (*doubts, *disagreements))
    disagreements = _compare((), hall, name, number)
    if hall:
        return Symmetry((_of_hall(hall),), (), disagreements)
    code = block.first(_SETTING_TAG).lower()
    if name:
        return Symmetry(_of_name(name, code, lattice), (), disagreements)
    if not number:
        return Symmetry((IDENTITY,), ("no symmetry is given: read as P 1",))
    choices = _of_number(number, code, lattice)
    return Symmetry(
        choices, (f"of the space group only its number {number} is given: standard setting",)
    )


def _listed(block: Block) -> list[str]:
    operations = block.column(*_OPERATION_TAGS)
    if operations is None:
        operations = block.column(*_MAGNETIC_TAGS) or []
        centring = block.column(*_MAGNETIC_CENTRING) or []
        if operations and centring:
            return [f"{first};{second}" for second in centring for first in operations]
    return [operation for operation in operations if operation]


@lru_cache(maxsize=512)
def _read_operations(texts: tuple[str, ...]) -> tuple[Operations, bool]:
    """Return listed operations, and whether they are a group."""
    if len(texts) > MAX_OPERATIONS:
        raise ValueError(f"unknown symmetry: {len(texts)} operations are no group of a crystal")
    rotations, translations = [], []
    for text in texts:
        rotation, translation = np.eye(3), np.zeros(3)
        for part in reversed(text.split(";")):  # an operation after a centring
            second, shift = parse_operation(part)
            rotation, translation = rotation @ second, rotation @ shift + translation
        rotations.append(rotation)
        translations.append(translation % 1.0)
    operations = Operations(np.array(rotations), np.array(translations))
    return operations, _is_group(operations)


def _is_group(operations: Operations) -> bool:
    """Tell whether the product of every two operations is one of them."""
    rotations, translations = operations.rotations, operations.translations
    keys = set(_keys(rotations, translations))
    for rotation, translation in zip(rotations, translations, strict=True):
        products = rotation @ rotations
        shifts = translations @ rotation.T + translation
        if not keys.issuperset(_keys(products, shifts)):
            return False
    return True


def _keys(rotations: np.ndarray, translations: np.ndarray) -> Iterable[bytes]:
    # In 1/240: every fraction of the tables, and of fivefold and eightfold supercells.
    shifts = np.round(translations * 240).astype(np.int16) % 240
    table = np.concatenate([np.round(rotations).astype(np.int16).reshape(-1, 9), shifts], axis=1)
    return (row.tobytes() for row in table)


_TERM = re.compile(r"([+-]?)(?:(\d+(?:\.\d*)?|\.\d+)(?:/(\d+))?)?\*?([xyzabc]?)")


@lru_cache(maxsize=4096)
def parse_operation(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the rotation (3, 3) and translation (3,) of "1/2+x, -y, z-x" in any form.

    Raises:
        ValueError: no operation, or one that is no symmetry of a lattice.
    """
    parts = re.sub(r"[\s'\"]+", "", text.lower()).replace(";", ",").split(",")
    if len(parts) == 4 and parts[3] in ("+1", "-1", "1", "m"):  # time reversal
        parts.pop()
    rotation, translation = np.zeros((3, 3)), np.zeros(3)
    valid = len(parts) == 3 and all(parts)
    for row, part in enumerate(parts if valid else ()):
        position = 0
        while position < len(part):
            term = _TERM.match(part, position)
            if term is None or term.end() == position or term.group(0) in "+-":
                valid = False
                break
            position = term.end()
            value = _value(term[2], term[3]) * (-1 if term[1] == "-" else 1)
            if term[4]:
                rotation[row, "xyzabc".index(term[4]) % 3] += value
            else:
                translation[row] += value
    if not valid or abs(abs(np.linalg.det(rotation)) - 1.0) > 1e-6:
        raise ValueError(f"unknown symmetry: {text[:40]!r} is no symmetry operation")
    return rotation, translation


def _value(number: str | None, divisor: str | None) -> float:
    if number is None:
        return 1.0
    value = Fraction(number) / int(divisor) if divisor and int(divisor) else Fraction(number)
    # 0.3333 and 0.667 are thirds and sixths.
    near = value.limit_denominator(24)
    return float(near if abs(near - value) < Fraction(1, 1000) else value)


@lru_cache(maxsize=512)
def _compare(texts: tuple[str, ...], hall: str, name: str, number: str) -> tuple[str, ...]:
    """Return a doubt for each declaration of another space group than the one that is taken."""
    named = {group.number for group in _find_groups(split_name(name)[0])} if name else set()
    declared: list[tuple[str, set[int]]] = []  # text, numbers that it can mean
    if hall and (group := _identify_hall(hall)):
        declared.append((f"Hall symbol {hall}", {group.number}))
    if named:
        declared.append((name, named))
    if number.isdecimal() and 1 <= int(number) <= 230:
        declared.append((f"number {int(number)}", {int(number)}))
    if texts:
        listed = _identify(texts)
        verb = f"are those of {listed.xhm()}, not of" if listed else "are not those of"
        return tuple(
            f"the operations {verb} {text}; they are taken"
            for text, numbers in declared
            if (listed.number not in numbers if listed else not _same_class(texts, min(numbers)))
        )
    if not declared:
        return ()
    (taken, meant), *others = declared
    return tuple(
        f"the space group {taken} is not {text}; {taken} is taken"
        for text, numbers in others
        if not meant & numbers
    )


def _same_class(texts: tuple[str, ...], number: int) -> bool:
    """Tell whether operations have the rotations of a space group, whatever its axes."""
    operations, _ = _read_operations(texts)
    group = _from_group(gemmi.get_spacegroup_reference_setting(number))
    return _count_rotations(operations) == _count_rotations(group)


def _count_rotations(operations: Operations) -> Counter[tuple[int, int]]:
    rotations = np.unique(np.round(operations.rotations, 3), axis=0)
    return Counter((round(np.linalg.det(r)), round(np.trace(r))) for r in rotations)


def _identify_hall(symbol: str) -> gemmi.SpaceGroup | None:
    try:
        return gemmi.find_spacegroup_by_ops(gemmi.symops_from_hall(symbol.replace("_", " ")))
    except (RuntimeError, ValueError):
        return None


def _identify(texts: tuple[str, ...]) -> gemmi.SpaceGroup | None:
    try:
        return gemmi.find_spacegroup_by_ops(gemmi.GroupOps([gemmi.Op(text) for text in texts]))
    except (RuntimeError, ValueError):
        return None


def _of_hall(symbol: str) -> Operations:
    try:
        group = gemmi.symops_from_hall(symbol.replace("_", " "))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"unknown symmetry: Hall symbol {symbol[:40]!r}: {error}") from error
    return _from_ops(group, f"Hall symbol {symbol}")


def _of_name(name: str, code: str, lattice: np.ndarray) -> tuple[Operations, ...]:
    base, setting = split_name(name)
    groups = _find_groups(base)
    if not groups:
        raise ValueError(
            f"unknown symmetry: no space group {name[:40]!r}, and no symmetry operations are given"
        )
    # A short monoclinic name has its unique axis along b, unless the cell is that of another.
    fitting = [g for g in groups if _from_group(g).fit(lattice)]
    return _settings((fitting or groups)[0], setting or code[:1], lattice)


def _of_number(number: str, code: str, lattice: np.ndarray) -> tuple[Operations, ...]:
    if not (number.isdecimal() and 1 <= int(number) <= 230):
        raise ValueError(f"unknown symmetry: no space group has the number {number[:20]!r}")
    return _settings(gemmi.get_spacegroup_reference_setting(int(number)), code[:1], lattice)


def _settings(group: gemmi.SpaceGroup, setting: str, lattice: np.ndarray) -> tuple[Operations, ...]:
    choices = _same_name(group)
    named = [choice for choice in choices if setting and choice.ext.lower() == setting.lower()]
    operations = [_from_group(choice) for choice in named or choices]
    # Hexagonal or rhombohedral axes: the cell tells. Two origins stay two choices.
    fitting = [choice for choice in operations if choice.fit(lattice)]
    return tuple(fitting or operations)


@cache
def _all_groups() -> tuple[gemmi.SpaceGroup, ...]:
    return tuple(gemmi.spacegroup_table())


@cache
def _same_name_as(name: str, number: int) -> tuple[gemmi.SpaceGroup, ...]:
    return tuple(g for g in _all_groups() if g.hm == name and g.number == number)


def _same_name(group: gemmi.SpaceGroup) -> tuple[gemmi.SpaceGroup, ...]:
    """Return the settings that a name without `:1`, `:2`, `:H` and `:R` can mean."""
    return _same_name_as(group.hm, group.number)


_COLON = re.compile(r"^(.*\S)\s*:\s*([12hr])$", re.I)
_QUALIFIER = re.compile(r"^(.*\S)\s*:\s*-?[abc][-abc123]*$")
_LETTER = re.compile(r"^(.+?)\s*([hrsz])$", re.I)  # of older databases: S and Z are :1 and :2
_WORDS = re.compile(
    r"^(.*[^\s(:,])[\s(:,]+(?:(hex|rhomb)[a-z.]*|origin\s*(?:choice)?\s*([12]))[\s)]*$", re.I
)
_NUMBER = re.compile(r"\s*\((?:no\.?|#)?\s*\d{1,3}\)$", re.I)
_SETTINGS = {"s": "1", "z": "2", "hex": "H", "rhomb": "R"}


@lru_cache(maxsize=512)
def split_name(name: str) -> tuple[str, str]:
    """Return a Hermann-Mauguin name without its setting, and the setting (1, 2, H, R or "")."""
    text = _NUMBER.sub("", " ".join(name.split()))
    text = re.sub(r"\((\d)\)", r"\1", text)  # P 2(1)/c
    for pattern in (_COLON, _WORDS, _LETTER):
        match = pattern.match(text)
        if match is not None:
            setting = next(group for group in match.groups()[1:] if group)
            return match[1], _SETTINGS.get(setting.lower(), setting.upper())
    qualified = _QUALIFIER.match(text)
    return (qualified[1] if qualified else text), ""


@lru_cache(maxsize=512)
def _find_groups(name: str) -> tuple[gemmi.SpaceGroup, ...]:
    """Return the space groups of a name: one, or those of several unique axes, b first."""
    later = re.sub(r"\d+/", "", name)
    first = re.match(r"^.*?\d+/", name)
    short = first[0] + re.sub(r"\d+/", "", name[first.end() :]) if first else name
    for form in dict.fromkeys((name, name.replace("_", " "), name.replace("_", ""), short, later)):
        group = gemmi.find_spacegroup_by_name(form)
        if group is not None and not form.strip().isdecimal():
            core = form.replace(" ", "").replace("_", "").lower()
            axes = [g for g in _all_groups() if _core(g) == core]
            return (group, *(g for g in axes if g.xhm() != group.xhm()))
    return ()


def _core(group: gemmi.SpaceGroup) -> str:
    """Return the name of a monoclinic group without its axes, `p21/c`; "" for others."""
    if not 3 <= group.number <= 15:
        return ""
    return "".join(word for word in group.hm.lower().split() if word != "1")


def _from_group(group: gemmi.SpaceGroup) -> Operations:
    return _of_xhm(group.xhm(), group.hall)


@lru_cache(maxsize=1024)
def _of_xhm(name: str, hall: str) -> Operations:
    return _from_ops(gemmi.symops_from_hall(hall), name)


def _from_ops(group: gemmi.GroupOps, setting: str) -> Operations:
    operations = list(group)
    rotations = np.array([op.rot for op in operations], np.float64) / gemmi.Op.DEN
    translations = np.array([op.tran for op in operations], np.float64) / gemmi.Op.DEN % 1.0
    return Operations(rotations, translations, setting)
