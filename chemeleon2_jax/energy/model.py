"""The interface of energy models, and how they are made by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from chemeleon2_jax.common.errors import EnergyError
from chemeleon2_jax.common.suggest import suggest
from chemeleon2_jax.energy.interface import EnergyModel


def energy_model(name: str, **options: Any) -> EnergyModel:
    """Return an energy model.

    Args:
        name: ``nequix``, ``chgnet``, ``mace``, or ``ase:<module>:<class or function>`` for any
            ASE calculator.
        options: of :func:`~chemeleon2_jax.energy.nequix.load_nequix` for ``nequix``; of
            :class:`~chemeleon2_jax.energy.ase_models.AseModel` for the others (``pool``,
            ``timeout_s``, ``relax_timeout_s``, ``corrected``). What those do not know goes to the
            calculator.

    Raises:
        EnergyError: no such model, what it needs is not installed, or its weights cannot be had.
    """
    if name.startswith("ase:"):
        from chemeleon2_jax.energy.ase_models import ase_model

        return ase_model(name.removeprefix("ase:"), **options)
    if name not in _MODELS:
        known = [*_MODELS, "ase:<module>:<class>"]
        raise EnergyError(f"no energy model {name!r}: {suggest(name, known)}")
    return _MODELS[name](**options)


def _nequix(**options: Any) -> EnergyModel:
    from chemeleon2_jax.energy.nequix import load_nequix

    return load_nequix(**options)


def _chgnet(**options: Any) -> EnergyModel:
    from chemeleon2_jax.energy.ase_models import chgnet_model

    return chgnet_model(**options)


def _mace(**options: Any) -> EnergyModel:
    from chemeleon2_jax.energy.ase_models import mace_model

    return mace_model(**options)


_MODELS: Mapping[str, Callable[..., EnergyModel]] = {
    "nequix": _nequix,
    "chgnet": _chgnet,
    "mace": _mace,
}
