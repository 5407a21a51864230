"""Energy models that are ASE calculators: CHGNet, MACE, and any other by its import path.

Each worker process makes the calculator once. CHGNet's energies are on Materials Project's
corrected scale, MACE's (MPA-0) on the uncorrected one; any other has to be said.
"""

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
from chemeleon2_jax.energy.interface import FMAX, MPTRJ_ELEMENTS, STEPS, require
from chemeleon2_jax.energy.motion import Motion, collect_relaxed
from chemeleon2_jax.energy.results import Energies, Relaxed
from chemeleon2_jax.workers import Outcome, WorkerError, WorkerPool

TIMEOUT_S = 60.0
"""Seconds for the energy of a crystal."""

RELAX_TIMEOUT_S = 600.0
"""Seconds for the relaxation of a crystal."""

_CHUNK_SIZE = 4
_MACE_OF_OTHER_SCALES = ("omat", "matpes")
_OWN_OPTIONS = ("elements", "pool", "timeout_s", "relax_timeout_s")


class AseModel:
    """An ASE calculator as a :class:`~chemeleon2_jax.energy.interface.EnergyModel`."""

    def __init__(
        self,
        path: str,
        options: dict[str, Any],
        *,
        name: str,
        corrected: bool,
        elements: frozenset[int] | None = None,
        pool: WorkerPool | None = None,
        timeout_s: float = TIMEOUT_S,
        relax_timeout_s: float = RELAX_TIMEOUT_S,
    ) -> None:
        """Describe the model; nothing is loaded yet.

        Args:
            path: "module:name" of what makes the calculator.
            options: its keyword arguments.
            name: what the model is called in reports.
            corrected: whether its energies are on Materials Project's corrected scale.
            elements: atomic numbers that it knows; None where that is not known.
            pool: processes to work in; None works in this one, where a calculator that hangs in
                C code is not stopped.
            timeout_s: limit for one crystal's energy, in seconds.
            relax_timeout_s: limit for one crystal's relaxation, in seconds.

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
        ends: list[Motion | None] = [None] * len(prepared)
        for index, outcome in outcomes.items():
            if isinstance(outcome.value, Motion):
                ends[index] = outcome.value
            else:
                reasons[index] = outcome.error or outcome.value
        return collect_relaxed(prepared, ends, reasons, corrected=self.corrected)

    def _map(
        self, calculation: Calculation, prepared: list[Prepared | None], timeout_s: float
    ) -> dict[int, Outcome]:
        """Return outcomes by index, of the crystals that are fit for it."""
        todo = [index for index, crystal in enumerate(prepared) if crystal is not None]
        if not todo:
            return {}
        try:
            if not self._pool.num_workers:
                load_calculator(self._spec)  # its failure is nothing of the first crystal
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
        options: ``elements``, ``pool``, ``timeout_s`` and ``relax_timeout_s`` of
            :class:`AseModel`; all others are the calculator's.

    Raises:
        EnergyError: the path is none, or its package is not installed.
    """
    module, _, name = path.partition(":")
    if not (module and name) or module == "__main__":  # which no worker can import
        raise EnergyError(
            f"'ase:{path}' names no calculator; write ase:<module>:<class or function> with a "
            "module that can be imported, for instance ase:ase.calculators.lj:LennardJones"
        )
    require(module.partition(".")[0], f"the energy model 'ase:{path}' needs it")
    own = _take_own(options)
    return AseModel(path, options, name=f"ase:{path}", corrected=corrected, **own)


def chgnet_model(**options: Any) -> AseModel:
    """Return CHGNet, whose weights come with its package, as a model.

    Args:
        options: as for :func:`ase_model`, without ``corrected``: its energies are.

    Raises:
        EnergyError: it is not installed.
    """
    require("chgnet", "install the extra chgnet: pip install -e '.[chgnet]'")
    # An atom without neighbours has no energy that the model has learnt.
    options = {"use_device": "cpu", "on_isolated_atoms": "error", **options}
    own = {"elements": MPTRJ_ELEMENTS} | _take_own(options)
    path = "chemeleon2_jax.energy.chgnet:make_calculator"
    return AseModel(path, options, name="chgnet", corrected=True, **own)


def mace_model(*, model: str = "medium-mpa-0", **options: Any) -> AseModel:
    """Return a MACE-MP model, whose weights its package downloads, as a model.

    Written after mace-torch's documentation; no test runs it.

    Args:
        model: its name in mace-torch, or a path. Those that were trained on MPtrj, and MPA-0, are
            on the uncorrected scale.
        options: as for :func:`ase_model`, without ``corrected``: its energies are not. A ``pool``
            with processes is needed: importing mace lets PyTorch run what a pickle names. All of
            them fetch weights that are not there, so let a pool of one be the first.

    Raises:
        EnergyError: it is not installed, the model is on another scale, or there are no processes
            to work in.
    """
    if any(name in model for name in _MACE_OF_OTHER_SCALES):
        raise EnergyError(
            f"{model} predicts energies of other pseudopotentials or of another functional than "
            "Materials Project's, which none of its hulls can be compared with; take medium-mpa-0"
        )
    require("mace", "install the extra mace: pip install -e '.[mace]'")
    options = {"device": "cpu", "default_dtype": "float64", **options, "model": model}
    own = {"elements": MPTRJ_ELEMENTS} | _take_own(options)
    pool = own.get("pool")
    if pool is None or not pool.num_workers:
        raise EnergyError(
            "mace runs in worker processes only: importing it makes torch.load unsafe in the "
            "whole process. Give a pool, for instance pool=WorkerPool(1)"
        )
    path = "mace.calculators:mace_mp"
    return AseModel(path, options, name=f"mace:{model}", corrected=False, **own)


def _take_own(options: dict[str, Any]) -> dict[str, Any]:
    """Take out of a dict the options that are the model's, not the calculator's."""
    return {key: options.pop(key) for key in _OWN_OPTIONS if key in options}
