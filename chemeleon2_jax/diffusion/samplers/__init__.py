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
    "dpmpp_2m": "DpmPlusPlus2M",
    "euler": "Euler",
    "heun": "Heun",
    "unipc": "UniPC",
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


def default_sampler(target: str) -> str:
    """Return the sampler of a model with this target, where none is chosen: along the straight
    lines that a flow was trained on, else as the original.
    """
    return "euler" if target == "flow" else DEFAULT_SAMPLER


def make_sampler(name: str = DEFAULT_SAMPLER, steps: int = 50, eta: float | None = None) -> Sampler:
    """Return a sampler with its options; None is the sampler's own eta. See
    `diffusion.sampler.Sampler`.

    Raises:
        ValueError: unknown name, or an option out of range.
    """
    chosen = sampler_class(name)
    return chosen(steps) if eta is None else chosen(steps, eta)
