"""Crystal generation with latent diffusion in JAX.

`load_model` opens a trained model; training and sampling are command lines (`python -m
chemeleon2_jax.train`, `python -m chemeleon2_jax.sample`). Importing the package loads neither JAX
nor pymatgen: a name is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from chemeleon2_jax._version import __version__

if TYPE_CHECKING:
    from chemeleon2_jax.api import load_model

__all__ = ["__version__", "load_model"]

_MODULE_OF = {"load_model": "chemeleon2_jax.api"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
