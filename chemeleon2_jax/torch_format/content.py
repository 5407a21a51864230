"""Parts of a Lightning checkpoint: tensors, options, moving averages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.common.stubs import printable
from chemeleon2_jax.torch_format.hyperparameters import plain
from chemeleon2_jax.torch_format.names import LATENT_STD
from chemeleon2_jax.torch_format.tensors import Tensor

OWN_KEY = "chemeleon2_jax"
"""Entry of this package's files with values that the original does not need."""

_NAMED = 5  # names listed in a message


def state_dict_of(content: Any) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint's `state_dict`, or of a bare one.

    Raises:
        CheckpointError: there is none.
    """
    state = content.get("state_dict") if isinstance(content, Mapping) else None
    state = content if state is None else state
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise CheckpointError("it holds no state_dict: it is no checkpoint of a model")
    tensors = {_unwrapped(n): value for n, value in state.items() if isinstance(value, Tensor)}
    if len(tensors) < len(state) or not tensors:
        raise CheckpointError(
            "its state_dict holds something else than tensors: "
            + listed([name for name in state if name not in tensors] or ["it is empty"])
        )
    return tensors


def _unwrapped(name: str) -> str:
    """A name without the prefixes of torch.compile and of parallel training."""
    return name.removeprefix("module.").replace("_orig_mod.", "")


def kind_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the kind of model that has such tensors: VAE, LDM or predictor.

    Raises:
        CheckpointError: none has.
    """
    starts = {name.partition(".")[0] for name in tensors}
    if "denoiser" in starts:
        return "LDM"
    if "vae" in starts and "proj" in starts:
        return "predictor"
    if {"encoder", "decoder", "quant_conv"} <= starts:
        return "VAE"
    raise CheckpointError(
        "it is no checkpoint of Chemeleon2: its tensors begin with "
        f"{listed(sorted(starts))}, while a VAE has encoder, decoder and quant_conv, an LDM "
        "denoiser and vae, a predictor vae and proj"
    )


def hyper_parameters_of(content: Any) -> dict[str, Any]:
    """Return the options of a checkpoint, {} where it has none; values may be pickled objects."""
    values = content.get("hyper_parameters") if isinstance(content, Mapping) else None
    options = values if isinstance(values, Mapping) else plain(values)
    return {str(k): v for k, v in options.items()} if isinstance(options, Mapping) else {}


def own_entry(content: Any) -> Mapping[str, Any]:
    """Return this package's own entry of a file; empty in one of the original."""
    own = content.get(OWN_KEY) if isinstance(content, Mapping) else None
    return own if isinstance(own, Mapping) else {}


def averages_of(content: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with moving averages: `ema_state` lists them in the order of parameters.

    Raises:
        CheckpointError: there are none, or they do not fit.
    """
    ema = plain(content.get("ema_state")) if isinstance(content, Mapping) else None
    shadow = ema.get("shadow_params") if isinstance(ema, Mapping) else None
    if not isinstance(shadow, list | tuple):
        raise CheckpointError("it holds no moving averages (ema_state); leave --ema away")
    names = [name for name in tensors if name != LATENT_STD]
    if len(names) != len(shadow):
        raise CheckpointError(
            f"its ema_state has {len(shadow)} tensors for {len(names)} parameters"
        )
    out = dict(tensors)
    for name, average in zip(names, shadow, strict=True):
        if not isinstance(average, Tensor) or average.shape != tensors[name].shape:
            raise CheckpointError(f"its ema_state does not fit its parameters at {name}")
        out[name] = average
    return out


def listed(names: list[str]) -> str:
    """Return the first names and the number of the others, for a message."""
    names = [printable(name) for name in names]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
