"""Values of conditions as people write them, and as the arrays that a network takes."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from pymatgen.core import Composition, DummySpecies, Element

from chemeleon2_jax.crystals.arrays import MAX_ATOMIC_NUMBER
from chemeleon2_jax.models.sizes import Condition


def encode_values(condition: Condition, values: Sequence[Any]) -> np.ndarray:
    """Return (G, width) float32, the input of the network for each of G values; None is NaN.

    A `composition` is a formula ("Ba1Cr1F6") or a pymatgen Composition: fractions of its atoms at
    index Z. A `chemical_system` ("Ba-Cr-F") is 1 at each Z; a `categorical` is an int, as a one-hot
    vector; a `float` is in raw units.

    Raises:
        ValueError: a value that this condition cannot have; names condition, index and value.
    """
    encode = _ENCODERS[condition.kind]
    out = np.full((len(values), condition.width), np.nan, np.float32)
    for index, value in enumerate(values):
        if value is None:
            continue
        try:
            out[index] = encode(condition, value)
        except ValueError as error:
            raise ValueError(
                f"condition {condition.name!r}, value {index} ({value!r}): {error}"
            ) from error
    return out


def read_value(condition: Condition, text: str) -> Any:
    """Return the value that a text stands for; "none" is None.

    Raises:
        ValueError: not a number where one is wanted.
    """
    if text.strip().lower() == "none":
        return None
    convert = {"float": float, "categorical": int}.get(condition.kind, str)
    try:
        return convert(text.strip())
    except ValueError as error:
        wanted = "a number" if convert is float else "an integer"
        raise ValueError(f"condition {condition.name!r} takes {wanted}, not {text!r}") from error


def read_composition(value: Any) -> Composition:
    """Return a formula, or what else pymatgen takes for one, as a Composition.

    Raises:
        ValueError: no formula, or one with what is no element up to Z = 99.
    """
    example = 'give a formula such as "Ba1Cr1F6"'
    if not isinstance(value, str | Mapping):
        raise ValueError(f"not a composition; {example}")
    try:
        composition = Composition(value)
    # pymatgen lets through whatever a malformed formula trips.
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"not a formula ({error}); {example}") from error
    amounts = composition.as_dict()
    if not amounts or not all(math.isfinite(n) and n > 0 for n in amounts.values()):
        raise ValueError(f"not a formula of positive numbers of atoms; {example}")
    for element in composition.elements:
        if isinstance(element, DummySpecies) or not 1 <= element.Z <= MAX_ATOMIC_NUMBER:
            raise ValueError(f"{element.symbol} is no element up to Z = {MAX_ATOMIC_NUMBER}")
    return composition


def _encode_float(condition: Condition, value: Any) -> np.ndarray:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError("not a number")
    if not math.isfinite(value):
        raise ValueError("not finite; None is the null condition")
    if condition.mean is None or condition.std is None:
        return np.array([value], np.float32)
    return np.array([(float(value) - condition.mean) / condition.std], np.float32)


def _encode_composition(condition: Condition, value: Any) -> np.ndarray:
    composition = read_composition(value)
    out = np.zeros(condition.width)
    for element, amount in composition.items():
        out[element.Z] += amount
    return out / out.sum()


def _encode_chemical_system(condition: Condition, value: Any) -> np.ndarray:
    if not isinstance(value, str):
        raise ValueError('not a text; give elements such as "Ba-Cr-F"')
    out = np.zeros(condition.width)
    for symbol in value.split("-"):
        if not Element.is_valid_symbol(symbol.strip()):
            raise ValueError(f'{symbol!r} is no element; give elements such as "Ba-Cr-F"')
        number = Element(symbol.strip()).Z
        if number > MAX_ATOMIC_NUMBER:
            raise ValueError(f"{symbol} is beyond Z = {MAX_ATOMIC_NUMBER}")
        out[number] = 1.0
    return out


def _encode_category(condition: Condition, value: Any) -> np.ndarray:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError("not an integer")
    if not 0 <= value < condition.num_classes:
        raise ValueError(f"classes go from 0 to {condition.num_classes - 1}")
    out = np.zeros(condition.width)
    out[int(value)] = 1.0
    return out


def _encode_text(condition: Condition, value: Any) -> np.ndarray:
    if not isinstance(value, str):
        raise ValueError("not a text")
    return np.zeros(condition.width)


_ENCODERS: dict[str, Callable[[Condition, Any], np.ndarray]] = {
    "float": _encode_float,
    "composition": _encode_composition,
    "chemical_system": _encode_chemical_system,
    "categorical": _encode_category,
    "text": _encode_text,
}
