"""Samplers by name. A new one is a file beside this and a line in `_CLASSES`.

Free of JAX: flags and checks of a config read the names before anything heavy is imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chemeleon2_jax.diffusion.sampler import Sampler

DEFAULT_SAMPLER = "ddim"

# Name, which is also that of the file -> class.
_CLASSES = {
    "ddim": "Ddim",
    "ddpm": "Ddpm",
}
SAMPLERS = tuple(_CLASSES)


def sampler_class(name: str) -> type[Sampler]:
    """Return the class of a sampler.

    Raises:
        ValueError: unknown name.
    """
    if name not in _CLASSES:
        raise ValueError(f"sampler {name!r} is unknown; choose one of {', '.join(SAMPLERS)}")
    return getattr(import_module(f"{__name__}.{name}"), _CLASSES[name])


def make_sampler(name: str = DEFAULT_SAMPLER, steps: int = 50, eta: float = 1.0) -> Sampler:
    """Return a sampler with its options; see `diffusion.sampler.Sampler`.

    Raises:
        ValueError: unknown name, or an option out of range.
    """
    return sampler_class(name)(steps, eta)
