"""Kinds of conditions, one class each: options, values, training data, and the network's input.

A new kind is a class here, listed in KINDS. It states `kind`, `source` and `width`, has its options
as fields with defaults, reads a value from text (`parse`) and encodes it (`encode_value`); with the
source "crystal" it encodes crystals too (`encode_crystals`) and writes their values (`describe`).
Configs are built and checked with the kinds: this module is free of JAX, and loads pymatgen with
the first formula.

The options `mean` and `std` are those of `condition_module.stats`, or of the training set; other
options are keys of `condition_module`. A checkpoint holds the options of all kinds for each
condition. An option that two kinds share has one meaning and one default.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal

import numpy as np

from chemeleon2_jax.crystals.arrays import NUM_ATOM_CLASSES, Crystals

DROPS = ("together", "each")
"""Which conditions of a training crystal are made null at once; see `stages.conditions`."""

_NAME = re.compile(r"[A-Za-z]\w*")


@dataclass(frozen=True)
class Condition:
    """One condition of a model.

    Attributes:
        kind: name of the kind in configs and checkpoints.
        source: of training data: the column `name` of the data, or the crystal itself; "none"
            cannot be trained.
        name: of the condition in data and requests.
    """

    kind: ClassVar[str]
    source: ClassVar[Literal["column", "crystal", "none"]]
    name: str

    def __post_init__(self) -> None:
        """Check the options; kinds add their own checks."""
        # It becomes an attribute of a module.
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r:.60} cannot be the name of a condition")

    @property
    def width(self) -> int:
        """Width of the network's input; by default, a number for each element."""
        return NUM_ATOM_CLASSES

    def parse(self, text: str) -> Any:
        """Return the value that a text stands for.

        Raises:
            ValueError: none.
        """
        return text

    def encode_value(self, value: Any) -> np.ndarray:
        """Return the network's input (width,) for a value.

        Raises:
            ValueError: a value that this condition cannot have.
        """
        raise NotImplementedError

    def encode_crystals(self, crystals: Crystals) -> np.ndarray:
        """Return the network's inputs (G, width) float32 for training crystals.

        Raises:
            ValueError: as `encode`.
        """
        return self.encode(crystals.targets[self.name].tolist())

    def describe(self, crystals: Crystals, index: int) -> str:
        """Return the value of a training crystal as a text that `read` understands."""
        return f"{crystals.targets[self.name][index]:.6g}"

    def agrees(self, value: Any, atom_types: np.ndarray) -> bool | None:
        """Return whether atoms (n,) are what a value asks for; None where they do not tell.

        Raises:
            ValueError: a value that this condition cannot have.
        """
        return None

    def read(self, text: str) -> Any:
        """Return the value that a text stands for; "none" is None.

        Raises:
            ValueError: a text that stands for no value; names the condition.
        """
        return None if text.strip().lower() == "none" else self.parse(text.strip())

    def encode(self, values: Sequence[Any]) -> np.ndarray:
        """Return the network's inputs (G, width) float32 for G values; None is NaN.

        Raises:
            ValueError: a value that this condition cannot have; names condition, index and value.
        """
        inputs = np.full((len(values), self.width), np.nan, np.float32)
        for index, value in enumerate(values):
            if value is None:
                continue
            try:
                inputs[index] = self.encode_value(value)
            except ValueError as error:
                raise ValueError(
                    f"condition {self.name!r}, value {index} ({value!r}): {error}"
                ) from error
        return inputs

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, for JSON; options of other kinds have their defaults."""
        return {"name": self.name, "kind": self.kind, **default_options(), **asdict(self)}


@dataclass(frozen=True)
class FloatCondition(Condition):
    """A number, in the unit of `mean` and `std`."""

    kind: ClassVar[str] = "float"
    source = "column"
    mean: float | None = None
    std: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.std is not None and not self.std > 0.0:
            raise ValueError(f"condition {self.name!r} has std {self.std}; it must be positive")

    @property
    def width(self) -> int:
        """One number."""
        return 1

    def parse(self, text: str) -> float:
        """Read a number."""
        try:
            return float(text)
        except ValueError as error:
            raise ValueError(f"condition {self.name!r} takes a number, not {text!r}") from error

    def encode_value(self, value: Any) -> np.ndarray:
        """Standardise a number; without mean and std it stays as it is."""
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise ValueError("not a number")
        if not math.isfinite(value):
            raise ValueError("not finite; None is the null condition")
        if self.mean is None or self.std is None:
            return np.array([value], np.float32)
        return np.array([(float(value) - self.mean) / self.std], np.float32)


@dataclass(frozen=True)
class CompositionCondition(Condition):
    """A formula ("Ba1Cr1F6") or a pymatgen Composition."""

    kind: ClassVar[str] = "composition"
    source = "crystal"

    def encode_value(self, value: Any) -> np.ndarray:
        """Return the fractions of the elements, at index Z."""
        from chemeleon2_jax.crystals.formulas import read_composition

        amounts = np.zeros(self.width)
        for element, amount in read_composition(value).items():
            amounts[element.Z] += amount
        return amounts / amounts.sum()

    def encode_crystals(self, crystals: Crystals) -> np.ndarray:
        """Return the fractions of the elements in crystals."""
        # Fractions of the whole formula are those of the reduced one.
        return _count_elements(crystals) / crystals.num_atoms[:, None].astype(np.float32)

    def agrees(self, value: Any, atom_types: np.ndarray) -> bool:
        """Return whether atoms (n,) have the fractions of a formula."""
        counts = np.bincount(atom_types, minlength=self.width)
        return bool(np.allclose(counts / len(atom_types), self.encode_value(value), atol=1e-6))

    def describe(self, crystals: Crystals, index: int) -> str:
        """Return the formula of a crystal's cell."""
        from chemeleon2_jax.crystals.formulas import write_formula

        return write_formula(crystals.crystal(index)[0])


@dataclass(frozen=True)
class ChemicalSystemCondition(Condition):
    """Elements ("Ba-Cr-F")."""

    kind: ClassVar[str] = "chemical_system"
    source = "crystal"

    def encode_value(self, value: Any) -> np.ndarray:
        """Return 1 at the Z of each element."""
        from chemeleon2_jax.crystals.formulas import read_chemical_system

        elements = np.zeros(self.width)
        elements[read_chemical_system(value)] = 1.0
        return elements

    def encode_crystals(self, crystals: Crystals) -> np.ndarray:
        """Return 1 at the Z of each element of crystals."""
        return (_count_elements(crystals) > 0).astype(np.float32)

    def agrees(self, value: Any, atom_types: np.ndarray) -> bool:
        """Return whether atoms (n,) are of exactly these elements."""
        counts = np.bincount(atom_types, minlength=self.width)
        return bool(np.array_equal(counts > 0, self.encode_value(value) > 0))

    def describe(self, crystals: Crystals, index: int) -> str:
        """Return the elements of a crystal."""
        from chemeleon2_jax.crystals.formulas import write_chemical_system

        return write_chemical_system(crystals.crystal(index)[0])


@dataclass(frozen=True)
class CategoricalCondition(Condition):
    """An int from 0 to `num_classes` - 1."""

    kind: ClassVar[str] = "categorical"
    source = "column"
    num_classes: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_classes < 1:
            raise ValueError(f"condition {self.name!r} is categorical, but has no num_classes")

    @property
    def width(self) -> int:
        """A number for each class."""
        return self.num_classes

    def parse(self, text: str) -> int:
        """Read an integer."""
        try:
            return int(text)
        except ValueError as error:
            raise ValueError(f"condition {self.name!r} takes an integer, not {text!r}") from error

    def encode_value(self, value: Any) -> np.ndarray:
        """Return a one-hot vector."""
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise ValueError("not an integer")
        if not 0 <= value < self.num_classes:
            raise ValueError(f"classes go from 0 to {self.num_classes - 1}")
        one_hot = np.zeros(self.width)
        one_hot[int(value)] = 1.0
        return one_hot

    def encode_crystals(self, crystals: Crystals) -> np.ndarray:
        """Return one-hot vectors of a column, which holds floats."""
        column = crystals.targets[self.name].tolist()
        return self.encode([int(v) if float(v).is_integer() else v for v in column])


@dataclass(frozen=True)
class TextCondition(Condition):
    """A placeholder of the original: zeros for every text."""

    kind: ClassVar[str] = "text"
    source = "none"

    def encode_value(self, value: Any) -> np.ndarray:
        """Return zeros."""
        if not isinstance(value, str):
            raise ValueError("not a text")
        return np.zeros(self.width)

    def describe(self, crystals: Crystals, index: int) -> str:
        """Return the null condition: crystals have no text."""
        return "none"


KINDS: dict[str, type[Condition]] = {
    condition.kind: condition
    for condition in (
        FloatCondition,
        CompositionCondition,
        ChemicalSystemCondition,
        CategoricalCondition,
        TextCondition,
    )
}


def read_condition(values: Mapping[str, Any]) -> Condition:
    """Undo `Condition.to_dict`.

    Raises:
        ValueError: an unknown kind or option, or options that the kind cannot have.
    """
    options = dict(values)
    name, kind = options.pop("name"), options.pop("kind")
    if kind not in KINDS:
        raise ValueError(f"condition {name!r} is of kind {kind!r}; choose one of {tuple(KINDS)}")
    unknown = sorted(options.keys() - default_options().keys())
    if unknown:
        raise ValueError(f"condition {name!r} has the option {unknown[0]!r}, which no kind has")
    own = option_names(kind)
    return KINDS[kind](name, **{key: value for key, value in options.items() if key in own})


def option_names(kind: str) -> tuple[str, ...]:
    """Return the names of a kind's options."""
    return tuple(field.name for field in fields(KINDS[kind]) if field.name != "name")


def default_options() -> dict[str, Any]:
    """Return the options of all kinds with their defaults."""
    return {
        field.name: field.default
        for condition in KINDS.values()
        for field in fields(condition)
        if field.name != "name"
    }


def config_options() -> dict[str, Any]:
    """Return the keys of `condition_module` that are options of kinds, with their defaults."""
    return {name: value for name, value in default_options().items() if value is not None}


def _count_elements(crystals: Crystals) -> np.ndarray:
    """Atoms of each element in each crystal, (G, NUM_ATOM_CLASSES) float32, at index Z."""
    counts = np.zeros((len(crystals), NUM_ATOM_CLASSES), np.float32)
    owner = np.repeat(np.arange(len(crystals)), crystals.num_atoms)
    np.add.at(counts, (owner, crystals.atom_types), 1.0)
    return counts
