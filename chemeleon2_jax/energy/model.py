"""Energy models by name."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

from chemeleon2_jax.common.errors import EnergyError
from chemeleon2_jax.common.suggest import suggest
from chemeleon2_jax.energy.interface import EnergyModel


class _Entry(NamedTuple):
    """A model: `module:function` that makes it, imported at first use, and whether it works in
    worker processes, crystal by crystal with a time limit, or in batches in this process.
    """

    maker: str
    in_workers: bool


_MODELS = {
    "nequix": _Entry("nequix:load_nequix", in_workers=False),
    "chgnet": _Entry("chgnet:chgnet_model", in_workers=True),
    "mace": _Entry("mace:mace_model", in_workers=True),
}


def works_in_workers(name: str) -> bool:
    """Return whether a model takes `pool`, `timeout_s` and `relax_timeout_s`."""
    return name not in _MODELS or _MODELS[name].in_workers


def energy_model(name: str, **options: Any) -> EnergyModel:
    """Return an energy model.

    Args:
        name: ``nequix``, ``chgnet``, ``mace``, or ``ase:<module>:<class or function>`` for any
            ASE calculator.
        options: of :func:`~chemeleon2_jax.energy.nequix.load_nequix` for ``nequix``; of
            :class:`~chemeleon2_jax.energy.ase_models.AseModel` for the others (``pool``,
            ``timeout_s``, ``relax_timeout_s``, ``corrected``), whose other options go to the
            calculator.

    Raises:
        EnergyError: the model is unknown, what it needs is not installed, or its weights cannot be
            had.
    """
    if name.startswith("ase:"):
        from chemeleon2_jax.energy.ase_models import ase_model

        return ase_model(name.removeprefix("ase:"), **options)
    if name not in _MODELS:
        known = [*_MODELS, "ase:<module>:<class>"]
        raise EnergyError(f"no energy model {name!r}: {suggest(name, known)}")
    module, _, function = _MODELS[name].maker.partition(":")
    make = getattr(importlib.import_module(f"{__package__}.{module}"), function)
    return make(**options)
