"""What a crystal is asked to be: conditions and their embedding.

A row of NaN is the null condition, in whose place the network takes a learned input.
Classifier-free guidance (Ho and Salimans 2022) is the difference between the two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from chemeleon2_jax.crystals import NUM_ATOM_CLASSES
from chemeleon2_jax.models.layers import MLP, torch_linear_init

_NAME = re.compile(r"[A-Za-z]\w*")
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
        # It becomes an attribute of a module.
        if not _NAME.fullmatch(self.name) or hasattr(nnx.Dict, self.name):
            raise ValueError(f"{self.name!r:.60} cannot be the name of a condition")
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
        drop_prob: share of crystals that training gives the null condition.
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
