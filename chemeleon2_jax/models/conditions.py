"""What a crystal is asked to be: conditions, their values as arrays, and their embedding.

A value of None is the null condition: a row of NaN, in whose place the network takes a learned
input. Classifier-free guidance (Ho and Salimans 2022) is the difference between the two.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from pymatgen.core import Composition, DummySpecies, Element

from chemeleon2_jax.crystals import MAX_ATOMIC_NUMBER, NUM_ATOM_CLASSES
from chemeleon2_jax.models.layers import MLP, torch_linear_init

KINDS = ("float", "composition", "chemical_system", "categorical", "text")


@dataclass(frozen=True)
class Condition:
    """One condition.

    Attributes:
        name: what it is called in data and requests.
        kind: one of KINDS. `text` is a placeholder of the original, whose input is zeros.
        mean, std: of a `float`, in its unit, which is standardised where both are there.
        num_classes: of a `categorical`.
    """

    name: str
    kind: str
    mean: float | None = None
    std: float | None = None
    num_classes: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        if self.kind not in KINDS:
            raise ValueError(
                f"condition {self.name!r} is of kind {self.kind!r}; choose one of {KINDS}"
            )
        if self.kind == "categorical" and self.num_classes < 1:
            raise ValueError(f"condition {self.name!r} is categorical, but has no num_classes")
        if self.std is not None and not self.std > 0.0:
            raise ValueError(f"condition {self.name!r} has std {self.std}; it must be positive")

    @property
    def width(self) -> int:
        """Width of its input."""
        return {"float": 1, "categorical": self.num_classes}.get(self.kind, NUM_ATOM_CLASSES)


@dataclass(frozen=True)
class ConditionSizes:
    """Everything that determines the parameters of `Conditions`.

    Attributes:
        conditions: in the order in which their embeddings are joined.
        hidden_dim: width of the embedding: that of the denoiser.
        drop_prob: share of values that training replaces by the null condition.
    """

    conditions: tuple[Condition, ...]
    hidden_dim: int
    drop_prob: float = 0.1

    def __post_init__(self) -> None:
        """Check that there is something, and nothing twice."""
        names = [condition.name for condition in self.conditions]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"conditions must be one or more with different names, not {names}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the conditions."""
        return tuple(condition.name for condition in self.conditions)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict, for JSON."""
        return {**asdict(self), "conditions": [asdict(c) for c in self.conditions]}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> ConditionSizes:
        """Undo `to_dict`."""
        conditions = tuple(Condition(**condition) for condition in values["conditions"])
        return ConditionSizes(**{**values, "conditions": conditions})


# --- values ---------------------------------------------------------------------------------------


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


# --- the network ----------------------------------------------------------------------------------


class ConditionEncoder(nnx.Module):
    """MLP over the input of one condition, with a learned input for the null condition."""

    def __init__(self, width: int, hidden_dim: int, *, rngs: nnx.Rngs) -> None:
        self.null_embed = nnx.Param(torch_linear_init(rngs.params(), (1, width), jnp.float32))
        mlp = MLP((width, hidden_dim, hidden_dim), rngs=rngs)
        self.fc1, self.fc2 = mlp.fc1, mlp.fc2

    def __call__(self, values: jax.Array) -> jax.Array:
        """(N, width), NaN where the condition is null -> (N, hidden_dim)."""
        is_null = jnp.isnan(values).any(-1, keepdims=True)
        # The inner one, too: a NaN that is not chosen would still reach the gradients.
        values = jnp.where(is_null, self.null_embed[...], jnp.where(is_null, 0.0, values))
        return self.fc2(jax.nn.silu(self.fc1(values)))


class Conditions(nnx.Module):
    """Embeddings of all conditions, joined and projected, in float32."""

    def __init__(self, sizes: ConditionSizes, *, rngs: nnx.Rngs) -> None:
        hidden = sizes.hidden_dim
        self.encoders = nnx.Dict(
            {c.name: ConditionEncoder(c.width, hidden, rngs=rngs) for c in sizes.conditions}
        )
        mlp = MLP((len(sizes.conditions) * hidden, hidden, hidden), rngs=rngs)
        self.fc1, self.fc2 = mlp.fc1, mlp.fc2
        self.sizes = sizes

    def __call__(self, values: Mapping[str, jax.Array]) -> jax.Array:
        """Embed conditions.

        Args:
            values: name -> (R, S, width), as `encode_values` makes them.

        Returns:
            (R, S, hidden_dim).

        Raises:
            ValueError: other names than those of this model.
        """
        if set(values) != set(self.sizes.names):
            raise ValueError(
                f"this model takes the conditions {', '.join(self.sizes.names)}; got "
                f"{', '.join(sorted(values)) or 'none'}"
            )
        shape = values[self.sizes.names[0]].shape[:-1]
        parts = [
            self.encoders[c.name](values[c.name].reshape(-1, c.width).astype(jnp.float32))
            for c in self.sizes.conditions
        ]
        joined = self.fc2(jax.nn.silu(self.fc1(jnp.concatenate(parts, -1))))
        return joined.reshape(*shape, -1)

    def null(self) -> jax.Array:
        """Return the embedding (hidden_dim,) of all conditions null."""
        nothing = {c.name: jnp.full((1, 1, c.width), jnp.nan) for c in self.sizes.conditions}
        return self(nothing)[0, 0]
