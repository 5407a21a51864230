"""From a model to the content of a checkpoint of the PyTorch original: a state_dict, plain values.

The original reads an output of twice the latent width interleaved (see `dit.split_output`). A model
with a variance per token is therefore written with `learn_sigma = false`: the eps half of its
output, with which it samples under DDIM.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.common.version import __version__
from chemeleon2_jax.models.lora import merge
from chemeleon2_jax.models.meta import LDMMeta
from chemeleon2_jax.models.sizes import DiTSizes, LoRASizes, PredictorSizes
from chemeleon2_jax.torch_format.content import OWN_KEY
from chemeleon2_jax.torch_format.model import OpenModel, Report
from chemeleon2_jax.torch_format.names import (
    LATENT_STD,
    Entry,
    condition_entries,
    dit_entries,
    predictor_entries,
    torch_layer,
    vae_entries,
)
from chemeleon2_jax.torch_format.original_options import (
    ldm_options,
    predictor_options,
    vae_options,
)
from chemeleon2_jax.torch_format.tensors import DTYPES
from chemeleon2_jax.training.plain_trees import flat_names

_Parts = tuple[dict[str, np.ndarray], dict[str, Any], dict[str, Any], Report]
"""state_dict, hyper_parameters, this package's own options, report."""


def torch_content(model: OpenModel) -> tuple[dict[str, Any], Report]:
    """Return the content of a PyTorch checkpoint of a model, and a report.

    Raises:
        CheckpointError: the original has no such model, or arrays of it are missing or wrong.
    """
    try:
        return _content(model)
    except CheckpointError:
        raise
    # Arrays that are not of its sizes, or types in its `source` that do not exist.
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{model.path} is damaged ({error!r})") from error


def _content(model: OpenModel) -> tuple[dict[str, Any], Report]:
    meta = model.meta
    if meta.predictor is not None:
        state, hyper, own, report = _predictor(model, meta.predictor)
    elif meta.ldm is not None:
        state, hyper, own, report = _ldm(model, meta.ldm)
    elif meta.stage == "train_vae":
        state, hyper, own, report = _vae(model)
    else:
        raise CheckpointError(
            f"{model.path} is of stage {meta.stage!r}, which the original does not have"
        )
    dtypes = meta.source.dtypes if meta.source else {}
    # The types that the tensors came with; trained here, they are float32.
    state = OrderedDict(
        (name, np.asarray(array, DTYPES[dtypes.get(name, "float32")]))
        for name, array in state.items()
    )
    report.num_tensors = len(state)
    report.num_parameters = sum(a.size for a in state.values())
    content = {
        "epoch": meta.source.epoch if meta.source else 0,
        "global_step": meta.source.global_step if meta.source else model.step,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": state,
        "hyper_parameters": hyper,
        OWN_KEY: {"version": __version__, "size_table": list(meta.size_table), **own},
    }
    return content, report


def _vae(model: OpenModel) -> _Parts:
    sizes = model.meta.vae
    state = _state(vae_entries(sizes), model.restore("params"))
    return state, vae_options(sizes), {}, Report("VAE")


def _ldm(model: OpenModel, meta: LDMMeta) -> _Parts:
    if meta.latent_channels is not None:
        # One divisor of all is all that the original has, and neither the last layer of its encoder
        # nor the first of its decoder has a bias that could take the means.
        raise CheckpointError(
            f"{model.path} standardises each channel of its latents, which the original cannot: "
            "train with ldm_module.diffusion.latent_standardisation=global"
        )
    vae, dit, report = model.meta.vae, meta.dit, Report("LDM")
    params = model.restore(meta.sample_item)
    if dit.lora is not None and _own_adapters(dit):
        params, dit = merge(params, dit.lora), replace(dit, lora=None)
        report.notes.append(
            "adapters on layers that the original cannot adapt are merged into the weights"
        )
    if dit.lora is not None:
        params, folded = _without_idle_adapters(params, dit.lora)
        if folded:
            report.notes.append(
                f"{folded} adapters on attn.out_proj are merged into its weights: the original "
                "would ignore them"
            )
    if dit.learn_sigma and dit.variance_layout == "per_token":
        params, dit = _eps_half(params, dit), replace(dit, learn_sigma=False)
        report.notes.append(
            "the variance is left out (learn_sigma = false): the original reads it interleaved. "
            "DDIM samples the same, DDPM with the fixed variance"
        )
    state: dict[str, np.ndarray] = {LATENT_STD: np.array(meta.latent_std, np.float32)}
    state |= _state(dit_entries(dit), params)
    state |= _state(vae_entries(vae, "vae."), model.restore("vae"))
    state |= _state(condition_entries(dit), params)
    own = {"vae": vae_options(vae)}
    return state, ldm_options(dit, meta.diffusion), own, report


def _predictor(model: OpenModel, sizes: PredictorSizes) -> _Parts:
    vae = model.meta.vae
    state = _state(vae_entries(vae, "vae."), model.restore("vae"))
    state |= _state(predictor_entries(), model.restore("params"))
    return state, predictor_options(sizes, vae), {}, Report("predictor")


def _state(entries: list[Entry], tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Tensors with the names, order and layout of the original."""
    flat = flat_names(dict(tree))
    missing = [entry.parameter for entry in entries if entry.parameter not in flat]
    if missing:
        raise CheckpointError(f"the parameter {missing[0]} is missing")
    return {e.tensor: flat[e.parameter].T if e.transposed else flat[e.parameter] for e in entries}


def _without_idle_adapters(tree: Mapping[str, Any], lora: LoRASizes) -> tuple[dict[str, Any], int]:
    """Merge adapters of attention outputs that are not 0 into the weights; return their number too.

    The original's attention reads these weights directly, so that adapters on them never act.
    """
    out, folded = {}, 0
    for name, node in tree.items():
        if name == "out" and isinstance(node, Mapping) and "lora_b" in node:
            if np.any(node["lora_b"]):
                node = {**node, **merge(node, lora), "lora_b": np.zeros_like(node["lora_b"])}
                folded += 1
        elif isinstance(node, Mapping):
            node, inside = _without_idle_adapters(node, lora)
            folded += inside
        out[name] = node
    return out, folded


def _own_adapters(dit: DiTSizes) -> bool:
    """Whether adapters sit on layers that are not Linear layers in the original."""
    assert dit.lora is not None
    return any(torch_layer(target) is None for target in dit.lora.targets)


def _eps_half(params: Mapping[str, Any], dit: DiTSizes) -> dict[str, Any]:
    """Parameters without the last layer's columns of the variance."""
    final = {name: array[..., : dit.latent_dim] for name, array in params["final"].items()}
    if "lora_a" in final:  # of its own width, not the output's
        final["lora_a"] = params["final"]["lora_a"]
    return {**params, "final": final}
