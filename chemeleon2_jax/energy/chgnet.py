"""CHGNet (Deng et al., Nat. Mach. Intell. 5, 1031, 2023), as an ASE calculator.

Its energies are on Materials Project's corrected scale. Its weights come with its package.
"""

from __future__ import annotations

from typing import Any

from chemeleon2_jax.energy.ase_models import MPTRJ_ELEMENTS, AseModel
from chemeleon2_jax.energy.interface import require


def chgnet_model(**options: Any) -> AseModel:
    """Return CHGNet as a model.

    Args:
        options: of :class:`~chemeleon2_jax.energy.ase_models.AseModel`, without ``corrected``; all
            others are those of ``chgnet.model.dynamics.CHGNetCalculator``.

    Raises:
        EnergyError: it is not installed.
    """
    require("chgnet", "install the extra chgnet: pip install -e '.[chgnet]'")
    # CHGNet has not learnt the energy of an atom without neighbours.
    defaults = {"elements": MPTRJ_ELEMENTS, "use_device": "cpu", "on_isolated_atoms": "error"}
    path = f"{__name__}:make_calculator"
    return AseModel(path, name="chgnet", corrected=True, **{**defaults, **options})


def make_calculator(**options: Any) -> Any:
    """Return CHGNet's own calculator, which computes forces only on demand.

    Energies alone are three times as fast.

    Args:
        options: of ``chgnet.model.dynamics.CHGNetCalculator``.
    """
    from chgnet.model.dynamics import CHGNetCalculator

    class Calculator(CHGNetCalculator):
        def calculate(self, atoms: Any, properties: list[str], system_changes: list[str]) -> None:
            task = "e" if properties == ["energy"] else "efsm"
            super().calculate(atoms, properties, system_changes, task=task)

    return Calculator(**options)
