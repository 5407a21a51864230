"""MACE-MP (Batatia et al., arXiv:2401.00096), as an ASE calculator.

Energies of the models that were trained on MPtrj, and of MPA-0, are on Materials Project's
uncorrected scale.
"""

from __future__ import annotations

from typing import Any

from chemeleon2_jax.common.errors import EnergyError
from chemeleon2_jax.energy.ase_models import MPTRJ_ELEMENTS, AseModel
from chemeleon2_jax.energy.interface import require

_OF_OTHER_SCALES = ("omat", "matpes")


def mace_model(*, model: str = "medium-mpa-0", **options: Any) -> AseModel:
    """Return a MACE-MP model, whose weights its package downloads.

    Written after mace-torch's documentation; no test runs it.

    Args:
        model: its name in mace-torch, or a path.
        options: of :class:`~chemeleon2_jax.energy.ase_models.AseModel`, without ``corrected``; all
            others are those of ``mace.calculators.mace_mp``. A ``pool`` with processes is needed:
            importing mace lets PyTorch run what a pickle names. Each process fetches absent
            weights, so let a pool of one be the first.

    Raises:
        EnergyError: it is not installed, the model is on another scale, or there are no processes
            to work in.
    """
    if any(name in model for name in _OF_OTHER_SCALES):
        raise EnergyError(
            f"{model} predicts energies of other pseudopotentials or of another functional than "
            "Materials Project's, which none of its hulls can be compared with; take medium-mpa-0"
        )
    require("mace", "install the extra mace: pip install -e '.[mace]'")
    pool = options.get("pool")
    if pool is None or not pool.num_workers:
        raise EnergyError(
            "mace runs in worker processes only: importing it makes torch.load unsafe in the "
            "whole process. Give a pool, for instance pool=WorkerPool(1)"
        )
    defaults = {"elements": MPTRJ_ELEMENTS, "device": "cpu", "default_dtype": "float64"}
    return AseModel(
        "mace.calculators:mace_mp",
        name=f"mace:{model}",
        corrected=False,
        model=model,
        **{**defaults, **options},
    )
