"""The work of a worker process with an ASE calculator. ASE is imported at first use."""

from __future__ import annotations

import abc
import contextlib
import functools
import importlib
import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from chemeleon2_jax.common.errors import EnergyError
from chemeleon2_jax.energy.guard import Prepared, volume_problem
from chemeleon2_jax.energy.relaxation import FinalState
from chemeleon2_jax.workers.process import error_text


@dataclass(frozen=True)
class CalculatorSpec:
    """How to make a calculator.

    Attributes:
        path: "module:name" of the function or class that makes it; the name may have dots.
        options: pickled keyword arguments.
    """

    path: str
    options: bytes

    @staticmethod
    def of(path: str, options: Mapping[str, Any]) -> CalculatorSpec:
        """Describe a calculator.

        Raises:
            EnergyError: an option cannot be sent to another process.
        """
        try:
            return CalculatorSpec(path, pickle.dumps(dict(options)))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise EnergyError(
                f"an option of {path} cannot be sent to a worker process ({error}); give names and "
                "numbers, and write a module with a function that makes the calculator from them"
            ) from error


@functools.lru_cache(maxsize=4)
def load_calculator(spec: CalculatorSpec) -> Any:
    """Return the calculator, made once in each process.

    Raises:
        EnergyError: the module or the name does not exist, or makes no calculator.
    """
    module_name, _, name = spec.path.partition(":")
    # Some calculators print a banner; stdout belongs to the command.
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            made: Any = importlib.import_module(module_name)
            for part in name.split("."):
                made = getattr(made, part)
            calculator = made(**pickle.loads(spec.options))
        except Exception as error:  # whatever the calculator's own code raises
            raise EnergyError(
                f"cannot make the calculator {spec.path}: {error_text(error)}"
            ) from error
    if not hasattr(calculator, "get_potential_energy"):
        raise EnergyError(f"{spec.path} makes a {type(calculator).__name__}, not an ASE calculator")
    return calculator


class Calculation(abc.ABC):
    """A calculation of one crystal, whose calculator is made before the clock starts."""

    def __init__(self, spec: CalculatorSpec) -> None:
        self.spec = spec

    def __reduce__(self) -> Any:
        # A worker makes the calculator when it unpickles the calculation, which is not timed.
        return _loaded, (type(self), tuple(vars(self).values()))

    @abc.abstractmethod
    def __call__(self, crystal: Prepared) -> Any:
        """Return the result for a crystal."""

    def _atoms(self, crystal: Prepared) -> Any:
        from ase import Atoms

        calculator = load_calculator(self.spec)
        if hasattr(calculator, "reset"):
            calculator.reset()  # the last calculation may have been stopped in the middle
        return Atoms(
            crystal.atom_types,
            positions=crystal.positions,
            cell=crystal.lattice,
            pbc=True,
            calculator=calculator,
        )


def _loaded(kind: type[Calculation], arguments: tuple[Any, ...]) -> Calculation:
    calculation = kind(*arguments)
    load_calculator(calculation.spec)
    return calculation


class SinglePoint(Calculation):
    """The energy of a crystal as it is."""

    def __call__(self, crystal: Prepared) -> float:
        """Return the energy in eV/atom."""
        return float(self._atoms(crystal).get_potential_energy()) / len(crystal.atom_types)


class Relaxation(Calculation):
    """FIRE on positions and cell (ASE's FrechetCellFilter)."""

    def __init__(self, spec: CalculatorSpec, steps: int, fmax: float) -> None:
        super().__init__(spec)
        self.steps = steps
        self.fmax = fmax

    def __call__(self, crystal: Prepared) -> FinalState | str:
        """Return the final state of a crystal, or why it has none."""
        from ase.filters import FrechetCellFilter
        from ase.optimize import FIRE

        atoms = self._atoms(crystal)
        optimizer = FIRE(FrechetCellFilter(atoms), logfile=None)
        converged = False
        for state in optimizer.irun(fmax=self.fmax, steps=self.steps):
            converged = bool(state)
            # Checked before the next neighbour list, which may take all memory.
            problem = volume_problem(atoms.get_volume() / len(atoms))
            if problem is not None or not np.isfinite(atoms.get_positions()).all():
                problem = problem or "positions are not finite"
                return f"diverged: {problem.removeprefix('implausible: ')}"
        energy = float(atoms.get_potential_energy()) / len(atoms)
        lattice = np.asarray(atoms.get_cell())
        return FinalState(atoms.get_positions(), lattice, energy, converged, optimizer.nsteps)
