"""The rewards by name, and the block of options that a config has for each.

Imports neither JAX nor pymatgen: configs are loaded before either.
"""

from __future__ import annotations

import ast
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

Options = Mapping[str, bool | int | float | str]


@dataclass(frozen=True)
class Reward:
    """One reward.

    Attributes:
        path: "file:function", of this room. The function's keyword-only parameters, with literals
            as defaults, are the options; it checks them itself.
        builds: the function builds a `Component` of a `Context`; else it takes a list of
            Structures, returns one float each, and runs in worker processes.
        weight: default of its weight in the sum.
        normalize_fn: default of its normalisation.
        floor: default of the value, in the reward's own unit, of a crystal that has none. '' is
            the lowest that a crystal of the rollout got, less the range of what they got.
    """

    path: str
    builds: bool = False
    weight: float = 1.0
    normalize_fn: str = ""
    floor: str = ""

    def options(self) -> Options:
        """Return the defaults of its own options."""
        return _read_defaults(self.path)

    def block(self) -> Options:
        """Return its block of a config."""
        return {
            "weight": self.weight,
            "normalize_fn": self.normalize_fn,
            "floor": self.floor,
            **self.options(),
        }


def _read_defaults(path: str) -> Options:
    """Return the keyword-only parameters of "file:function" with their defaults.

    They are read from the source: importing it would load pymatgen, for a second.
    """
    file, _, name = path.partition(":")
    source = pkgutil.get_data(__package__, f"{file}.py") or b""
    functions = {n.name: n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)}
    arguments = functions[name].args
    return {
        argument.arg: ast.literal_eval(default)
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        if default is not None
    }


REWARDS: Mapping[str, Reward] = MappingProxyType(
    {
        "creativity": Reward("creativity:build", builds=True, floor="0"),
        "energy": Reward("energy:build", builds=True, normalize_fn="norm", floor="-1"),
        "structure_diversity": Reward(
            "diversity:build_structure", builds=True, weight=0.1, normalize_fn="norm"
        ),
        "composition_diversity": Reward(
            "diversity:build_composition", builds=True, normalize_fn="norm"
        ),
        "predictor": Reward("predictor:build", builds=True, normalize_fn="norm"),
        "atomic_density": Reward("geometry:atomic_density", floor="0"),
        "mass_density": Reward("geometry:mass_density", floor="0"),
        "volume": Reward("geometry:volume"),
        "structural_validity": Reward("geometry:structural_validity", floor="0"),
        "composition_validity": Reward("composition:composition_validity", floor="0"),
        "allowed_elements": Reward("composition:allowed_elements", floor="0"),
        "number_of_elements": Reward("composition:number_of_elements"),
        "space_group": Reward("symmetry:space_group", floor="0"),
        "symmetry": Reward("symmetry:symmetry", floor="0"),
        "custom": Reward("custom:build", builds=True),
    }
)
"""All rewards. Another one is a function in a file of this room, and a line here."""


def config_blocks() -> dict[str, dict[str, bool | int | float | str]]:
    """Return {reward: its block of a config}, for all rewards."""
    return {name: dict(reward.block()) for name, reward in REWARDS.items()}
