"""Requests to a model: number of crystals, their sizes and their conditions.

A condition has one value for all crystals or one a crystal; None is the null condition. A
composition determines the number of atoms and, for a VAE that does not predict them, the atom
types.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pymatgen.core import Composition

from chemeleon2_jax.common.suggest import did_you_mean
from chemeleon2_jax.crystals.formulas import read_composition
from chemeleon2_jax.crystals.limits import check_num_atoms, check_num_samples, check_sizes
from chemeleon2_jax.inference.generator import draw_num_atoms
from chemeleon2_jax.models.condition_kinds import CompositionCondition
from chemeleon2_jax.models.sizes import ConditionSizes
from chemeleon2_jax.pretrained.loading import LDMParts

_TOLERANCE = 1e-4  # of whole numbers of atoms


@dataclass(frozen=True)
class Prompts:
    """Sizes, conditions and atom types of G crystals.

    Attributes:
        num_atoms: (G,) int32.
        conditions: name -> (G, width), of `Condition.encode`; {} without conditions.
        atom_types: atomic numbers (n,) of each, for a VAE that does not predict them, else None.
    """

    num_atoms: np.ndarray
    conditions: dict[str, np.ndarray]
    atom_types: list[np.ndarray] | None

    def part(self, first: int, end: int) -> Prompts:
        """Return the prompts from the first to before the end."""
        return Prompts(
            self.num_atoms[first:end],
            {name: values[first:end] for name, values in self.conditions.items()},
            None if self.atom_types is None else self.atom_types[first:end],
        )


def make_prompts(
    ldm: LDMParts,
    *,
    num_samples: int | None = None,
    num_atoms: Sequence[int] | None = None,
    conditions: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Prompts:
    """Check a request and encode it.

    Args:
        ldm: the model.
        num_samples: number of crystals; by default the number of values of `num_atoms` or of a
            condition.
        num_atoms: sizes, repeated in turn; by default those of the compositions, else drawn from
            the sizes of the training set.
        conditions: name -> one value, or a list with one a crystal.
        seed: of the drawn sizes.

    Raises:
        ValueError: a condition that the model does not take, or values that contradict each other.
    """
    values = _check_names(conditions, ldm.sizes.conditions)
    composition = composition_name(ldm)
    _check_composition(ldm, composition, values)
    sizes = _read_sizes(num_atoms)
    if num_samples is not None:
        check_num_samples(num_samples)
    count = num_samples or _count(sizes, values, composition)
    check_num_samples(count)
    listed = {name: _repeat(name, value, count) for name, value in values.items()}
    formulas = _read_formulas(listed.get(composition or "", [None] * count))
    if sizes is not None:
        final_sizes = np.resize(sizes, count)
    else:
        of_formulas = [0 if f is None else _whole_number(f.num_atoms, f) for f in formulas]
        drawn = draw_num_atoms(ldm.size_table, count, seed)
        final_sizes = np.where(of_formulas, of_formulas, drawn)
    check_sizes(final_sizes)
    # Also where the VAE predicts atom types: other sizes cannot have the composition.
    types = [
        None if formula is None else _atoms(formula, int(size), index)
        for index, (formula, size) in enumerate(zip(formulas, final_sizes, strict=True))
    ]
    return Prompts(
        num_atoms=final_sizes.astype(np.int32),
        conditions=_encode(listed, ldm.sizes.conditions),
        atom_types=None if ldm.vae.sizes.atom_type_predict else _all_known(types),
    )


def encode_conditions(
    conditions: Mapping[str, Any] | None, sizes: ConditionSizes | None, count: int
) -> dict[str, np.ndarray]:
    """Return name -> (count, width) for all conditions of a model; {} where all are null.

    Args:
        conditions: name -> one value, or a list with one a crystal; a missing one is null.
        sizes: of the model's conditions.
        count: number of crystals.

    Raises:
        ValueError: unknown names, a wrong number of values, or invalid values.
    """
    values = _check_names(conditions, sizes)
    return _encode({name: _repeat(name, v, count) for name, v in values.items()}, sizes)


@dataclass(frozen=True)
class Hits:
    """Crystals that have what a condition asked for.

    Attributes:
        asked: crystals with a value of the condition.
        hits: those that were built and have it.
    """

    asked: int
    hits: int


def count_hits(
    conditions: Mapping[str, Any],
    sizes: ConditionSizes | None,
    atoms: Sequence[np.ndarray | None],
    *,
    first: int = 0,
    count: int | None = None,
) -> dict[str, Hits]:
    """Count, for each condition that a crystal's atoms tell of, the crystals that have its value.

    Args:
        conditions: as in `make_prompts`.
        sizes: of the model's conditions.
        atoms: atomic numbers (n,) of each crystal; None where it could not be built.
        first: index of the first of these crystals in the request.
        count: crystals of the request; by default these.
    """
    own, hits = slice(first, first + len(atoms)), {}
    for condition in sizes.conditions if sizes else ():
        value = conditions.get(condition.name)
        values = _repeat(condition.name, value, len(atoms) if count is None else count)[own]
        asked = [(v, types) for v, types in zip(values, atoms, strict=True) if v is not None]
        if asked and condition.source == "crystal":
            agreeing = (condition.agrees(v, types) for v, types in asked if types is not None)
            hits[condition.name] = Hits(len(asked), sum(map(bool, agreeing)))
    return hits


def sum_hits(parts: Iterable[Mapping[str, Hits]]) -> dict[str, Hits]:
    """Return the hits of all parts of a request."""
    total: dict[str, Hits] = {}
    for part in parts:
        for name, hits in part.items():
            before = total.get(name, Hits(0, 0))
            total[name] = Hits(before.asked + hits.asked, before.hits + hits.hits)
    return total


def _encode(listed: Mapping[str, list[Any]], sizes: ConditionSizes | None) -> dict[str, np.ndarray]:
    if sizes is None or all(value is None for values in listed.values() for value in values):
        return {}
    count = len(next(iter(listed.values())))
    return {c.name: c.encode(listed.get(c.name, [None] * count)) for c in sizes.conditions}


def _check_names(
    conditions: Mapping[str, Any] | None, sizes: ConditionSizes | None
) -> dict[str, Any]:
    """Return the conditions if the model takes them."""
    values = dict(conditions or {})
    if values and sizes is None:
        raise ValueError(
            f"this model takes no conditions, but is given {', '.join(map(repr, values))}"
        )
    for name in values:
        assert sizes is not None
        if name not in sizes.names:
            hint = did_you_mean(str(name), sizes.names)
            raise ValueError(
                f"this model has no condition {name!r}.{hint} It takes {', '.join(sizes.names)}"
            )
    return values


def _is_list(value: Any) -> bool:
    """Whether this is a list of values; text and formulas are one value."""
    return isinstance(value, np.ndarray) or (
        isinstance(value, Sequence) and not isinstance(value, str | bytes)
    )


def _repeat(name: str, value: Any, count: int) -> list[Any]:
    if not _is_list(value):
        return [value] * count
    values = list(value)
    if len(values) not in (1, count):
        raise ValueError(
            f"condition {name!r} has {len(values)} values for {count} crystals; give one, or one a "
            "crystal"
        )
    return values * (count if len(values) == 1 else 1)


def _count(sizes: np.ndarray | None, values: Mapping[str, Any], composition: str | None) -> int:
    """Return the number of crystals without `num_samples`: that of the sizes, or of the longest
    list.
    """
    if sizes is not None:
        return len(sizes)
    longest = max((len(value) for value in values.values() if _is_list(value)), default=0)
    if longest:
        return longest
    if composition in values:
        return 1
    raise ValueError("give num_samples, num_atoms or both")


def _read_sizes(num_atoms: Sequence[int] | None) -> np.ndarray | None:
    if num_atoms is None:
        return None
    sizes = np.asarray(num_atoms)
    if (
        sizes.ndim != 1
        or not len(sizes)
        or not np.issubdtype(sizes.dtype, np.integer)
        or sizes.min() < 1
    ):
        raise ValueError(f"num_atoms must be positive integers, not {num_atoms!r:.200}")
    return sizes


# --- compositions ---------------------------------------------------------------------------------


def composition_name(ldm: LDMParts) -> str | None:
    """Return the name of a model's composition condition; None without one."""
    conditions = ldm.sizes.conditions.conditions if ldm.sizes.conditions else ()
    return next((c.name for c in conditions if isinstance(c, CompositionCondition)), None)


def _check_composition(ldm: LDMParts, name: str | None, values: Mapping[str, Any]) -> None:
    """Check that a VAE that does not predict atom types has a composition to take them from."""
    if ldm.vae.sizes.atom_type_predict:
        return
    problem = "the VAE of this model does not predict atom types (csp)"
    if name is None:
        raise ValueError(
            f"{problem}, so that it cannot generate freely, and its denoiser takes no composition: "
            "it cannot generate at all"
        )
    if name not in values:
        raise ValueError(
            f"{problem}, so that it cannot generate freely: give formulas, as in "
            f'conditions={{"{name}": "Ba1Cr1F6"}}'
        )


def _read_formulas(values: Sequence[Any]) -> list[Composition | None]:
    formulas: list[Composition | None] = []
    for index, value in enumerate(values):
        try:
            formulas.append(None if value is None else read_composition(value))
        except ValueError as error:
            raise ValueError(f"composition {index} ({value!r}): {error}") from error
    return formulas


def _whole_number(value: float, formula: Composition) -> int:
    if abs(value - round(value)) > _TOLERANCE or round(value) < 1:
        raise ValueError(
            f"{formula.formula} has {value:g} atoms; give whole numbers of atoms, or num_atoms"
        )
    check_num_atoms(round(value))
    return round(value)


def _atoms(formula: Composition, size: int, index: int) -> np.ndarray:
    """Return the atomic numbers (size,) of a formula, in its order.

    Raises:
        ValueError: crystals of this size cannot have the composition.
    """
    counts: dict[int, float] = {}
    # Several species can share an atomic number: D and H, Fe2+ and Fe3+.
    for element, amount in formula.items():
        counts[element.Z] = counts.get(element.Z, 0.0) + size * amount / formula.num_atoms
    if any(abs(n - round(n)) > _TOLERANCE for n in counts.values()):
        raise ValueError(f"crystal {index}: {size} atoms cannot be {formula.formula}")
    return np.repeat(list(counts), [round(n) for n in counts.values()])


def _all_known(types: Sequence[np.ndarray | None]) -> list[np.ndarray]:
    known = [t for t in types if t is not None]
    if len(known) < len(types):
        index = next(i for i, t in enumerate(types) if t is None)
        raise ValueError(
            f"crystal {index} has no composition, but the VAE of this model does not predict atom "
            "types (csp): give every crystal its formula"
        )
    return known
