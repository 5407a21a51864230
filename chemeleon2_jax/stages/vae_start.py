"""The weights that a VAE is trained from, if it does not start from random ones."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.models.sizes import VAESizes
from chemeleon2_jax.pretrained.loading import open_model, vae_of
from chemeleon2_jax.training.plain_trees import from_plain, overlay, to_plain

_HEADS = ("foundation_alignment",)  # their weights stay new


def start_weights(params: Any, sizes: VAESizes, path: str) -> Any:
    """Return the parameters of the VAE that `path` names, for training to go on from.

    Args:
        params: new parameters of a VAE; those that the other lacks stay.
        sizes: of the new VAE.
        path: of a VAE, or of a model with one.

    Raises:
        CheckpointError: no model there, or its VAE has other sizes.
    """
    vae = vae_of(open_model(path))
    there, here = (_flat(s) for s in (vae.sizes, sizes))
    differing = [
        f"{name} = {there.get(name)!r} (here {value!r})"
        for name, value in here.items()
        if there.get(name) != value
    ]
    if differing:
        raise CheckpointError(
            f"{path} has {', '.join(differing)}: set these in vae_module, or start from another VAE"
        )
    tree = to_plain(vae.params)
    if vae.sizes.foundation_alignment and not sizes.foundation_alignment:
        known = to_plain(params)
        tree = {name: value for name, value in tree.items() if name in known}
    return from_plain(overlay(to_plain(params), tree), params)


def _flat(sizes: VAESizes) -> dict[str, Any]:
    """Sizes that must be equal for weights to fit, by the names of the config."""
    values = {"encoder.name": sizes.encoder.name}
    for name, value in asdict(sizes).items():
        if isinstance(value, dict):
            values |= {f"{name}.{key}": v for key, v in value.items()}
        elif name not in _HEADS:
            values[name] = value
    return values
