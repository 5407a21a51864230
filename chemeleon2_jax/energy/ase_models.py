"""ASE calculators as energy models; each worker process makes the calculator once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from chemeleon2_jax.common.errors import EnergyError
from chemeleon2_jax.common.scores import check_values
from chemeleon2_jax.energy.calculations import (
    Calculation,
    CalculatorSpec,
    Relaxation,
    SinglePoint,
    load_calculator,
)
from chemeleon2_jax.energy.guard import Prepared, prepare
from chemeleon2_jax.energy.interface import FMAX, STEPS, require
from chemeleon2_jax.energy.relaxation import FinalState, collect_relaxed
from chemeleon2_jax.energy.results import Energies, Relaxed
from chemeleon2_jax.workers import Outcome, WorkerError, WorkerPool

TIMEOUT_S = 60.0
"""Seconds for the energy of a crystal."""

RELAX_TIMEOUT_S = 600.0
"""Seconds for the relaxation of a crystal."""

MPTRJ_ELEMENTS = frozenset(range(1, 95)) - frozenset(range(84, 89))
"""Atomic numbers in MPtrj, which CHGNet and MACE-MP were trained on (89 elements)."""

_CHUNK_SIZE = 4


class AseModel:
    """An ASE calculator as a :class:`~chemeleon2_jax.energy.interface.EnergyModel`."""

    def __init__(
        self,
        path: str,
        /,
        *,
        name: str,
        corrected: bool,
        elements: frozenset[int] | None = None,
        pool: WorkerPool | None = None,
        timeout_s: float = TIMEOUT_S,
        relax_timeout_s: float = RELAX_TIMEOUT_S,
        **options: Any,
    ) -> None:
        """Describe the model; nothing is loaded yet.

        Args:
            path: "module:name" of the function or class that makes the calculator.
            name: of the model, for reports.
            corrected: whether its energies are on Materials Project's corrected scale.
            elements: atomic numbers that the calculator knows; None if unknown.
            pool: processes to work in; None works in this one, where a calculator that hangs in
                C code is not stopped.
            timeout_s: limit for the energy of a crystal, in seconds.
            relax_timeout_s: limit for the relaxation of a crystal, in seconds.
            options: keyword arguments of the calculator.

        Raises:
            EnergyError: ASE is not installed, or an option cannot be sent to a worker.
        """
        require("ase", "install the extra energy: pip install -e '.[energy]'")
        self.name = name
        self.corrected = corrected
        self.elements = elements
        self._spec = CalculatorSpec.of(path, options)
        self._pool = pool or WorkerPool(0)
        self._timeout_s = timeout_s
        self._relax_timeout_s = relax_timeout_s

    def energies(self, structures: Iterable[Any]) -> Energies:
        """Return the energies of structures as they are, in eV/atom.

        Raises:
            EnergyError: the calculator cannot be made.
        """
        prepared, reasons = prepare(structures, self.elements)
        outcomes = self._map(SinglePoint(self._spec), prepared, self._timeout_s)
        values: list[float | None] = [None] * len(prepared)
        for index, outcome in outcomes.items():
            values[index], reasons[index] = outcome.value, outcome.error
        return Energies(*check_values(values, reasons), self.corrected)

    def relax(
        self, structures: Iterable[Any], *, steps: int = STEPS, fmax: float = FMAX
    ) -> Relaxed:
        """Relax positions and cells with FIRE; see the protocol.

        Raises:
            EnergyError: the calculator cannot be made.
        """
        prepared, reasons = prepare(structures, self.elements)
        relaxation = Relaxation(self._spec, steps, fmax)
        outcomes = self._map(relaxation, prepared, self._relax_timeout_s)
        final_states: list[FinalState | None] = [None] * len(prepared)
        for index, outcome in outcomes.items():
            if isinstance(outcome.value, FinalState):
                final_states[index] = outcome.value
            else:
                reasons[index] = outcome.error or outcome.value
        return collect_relaxed(prepared, final_states, reasons, corrected=self.corrected)

    def _map(
        self, calculation: Calculation, prepared: list[Prepared | None], timeout_s: float
    ) -> dict[int, Outcome]:
        """Return outcomes by index, of the crystals that a potential may see."""
        todo = [index for index, crystal in enumerate(prepared) if crystal is not None]
        if not todo:
            return {}
        try:
            if not self._pool.num_workers:
                load_calculator(self._spec)  # before the first crystal's clock starts
            outcomes = self._pool.map(
                calculation,
                [prepared[index] for index in todo],
                timeout_s=timeout_s,
                chunk_size=_CHUNK_SIZE,
            )
        except WorkerError as error:
            raise EnergyError(f"the energy model {self.name} cannot run: {error}") from error
        return dict(zip(todo, outcomes, strict=True))


def ase_model(path: str, *, corrected: bool = False, **options: Any) -> AseModel:
    """Return any ASE calculator as a model.

    Args:
        path: "module:name" of a calculator's class, or of a function that makes one.
        corrected: whether its energies are on Materials Project's corrected scale (MP2020).
        options: of :class:`AseModel` and of the calculator.

    Raises:
        EnergyError: the path names no calculator, or its package is not installed.
    """
    module, _, name = path.partition(":")
    if not (module and name) or module == "__main__":  # which no worker can import
        raise EnergyError(
            f"'ase:{path}' names no calculator; write ase:<module>:<class or function> with a "
            "module that can be imported, for instance ase:ase.calculators.lj:LennardJones"
        )
    require(module.partition(".")[0], f"the energy model 'ase:{path}' needs it")
    return AseModel(path, name=f"ase:{path}", corrected=corrected, **options)
