"""Crystal generation with latent diffusion in JAX.

`load_model` opens a trained model, and `evaluate` judges crystals; training and sampling are
command lines (`python -m chemeleon2_jax.train`, `python -m chemeleon2_jax.sample`). Importing the
package loads neither JAX nor pymatgen: a name is imported when it is first used.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from chemeleon2_jax.common.version import __version__

if TYPE_CHECKING:
    from chemeleon2_jax.inference.api import load_model
    from chemeleon2_jax.metrics.report import evaluate

__all__ = ["__version__", "evaluate", "load_model"]

_MODULE_OF = {
    "evaluate": "chemeleon2_jax.metrics.report",
    "load_model": "chemeleon2_jax.inference.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps public names from modules of the same name.

    The import system sets every submodule as an attribute of its package: after an import of
    `chemeleon2_jax.evaluate`, the command line, `c2.evaluate` would be that module and no longer
    the function. The module itself is in `sys.modules`, where imports and `python -m` look.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _MODULE_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
