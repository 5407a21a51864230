"""Back to a checkpoint that the PyTorch original can load: a state_dict and plain values.

The original reads an output of twice the latent width interleaved (see `dit.split_output`). A model
with a variance per token therefore goes back as `learn_sigma = false`: its eps half, the weights
that it samples with under DDIM.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.common.version import __version__
from chemeleon2_jax.models.condition_kinds import (
    CategoricalCondition,
    ChemicalSystemCondition,
    CompositionCondition,
    FloatCondition,
    TextCondition,
)
from chemeleon2_jax.models.encoders.registry import CSPNetSizes, EncoderSizes, TransformerSizes
from chemeleon2_jax.models.lora import merge
from chemeleon2_jax.models.meta import LDMMeta
from chemeleon2_jax.models.sizes import (
    DecoderSizes,
    DiffusionConfig,
    DiTSizes,
    LoRASizes,
    PredictorSizes,
    VAESizes,
)
from chemeleon2_jax.torch_format.content import OWN_KEY
from chemeleon2_jax.torch_format.model import OpenModel, Report
from chemeleon2_jax.torch_format.names import (
    LATENT_STD,
    Entry,
    condition_entries,
    dit_entries,
    predictor_entries,
    their_layer,
    vae_entries,
)
from chemeleon2_jax.training.plain_trees import flat_names

_Parts = tuple[dict[str, np.ndarray], dict[str, Any], dict[str, Any], Report]
"""state_dict, hyper_parameters, what this package adds, report."""


_CONDITION_KINDS = (
    *(FloatCondition, CompositionCondition, ChemicalSystemCondition),
    *(CategoricalCondition, TextCondition),
)


def torch_content(model: OpenModel) -> tuple[dict[str, Any], Report]:
    """Return what a PyTorch checkpoint of a model holds, and a report.

    Raises:
        CheckpointError: it is no model that the original knows, or its arrays are broken.
    """
    try:
        return _content(model)
    except CheckpointError:
        raise
    # Its arrays are none of the model's, or its `source` names no dtypes.
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
        raise CheckpointError(f"{model.path} was written by stage {meta.stage!r}: not known")
    dtypes = meta.source.dtypes if meta.source else {}
    state = OrderedDict((n, _with_dtype(a, dtypes.get(n, "float32"))) for n, a in state.items())
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
    return state, _vae_options(sizes), {}, Report("VAE")


def _ldm(model: OpenModel, meta: LDMMeta) -> _Parts:
    vae, dit, report = model.meta.vae, meta.dit, Report("LDM")
    params = model.restore(meta.sample_item)
    if dit.lora is not None and _own_adapters(dit):
        params, dit = merge(params, dit.lora), replace(dit, lora=None)
        report.notes.append("adapters on layers that have none there are merged into the weights")
    if dit.lora is not None:
        params, folded = _without_idle_adapters(params, dit.lora)
        if folded:
            report.notes.append(
                f"{folded} adapters on attn.out_proj are added to its weights: there they would "
                "not act"
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
    own = {"vae": _vae_options(vae)}
    return state, _ldm_options(dit, meta.diffusion), own, report


def _predictor(model: OpenModel, sizes: PredictorSizes) -> _Parts:
    vae = model.meta.vae
    state = _state(vae_entries(vae, "vae."), model.restore("vae"))
    state |= _state(predictor_entries(sizes), model.restore("params"))
    targets = {
        target.name: {} if target.mean is None else {"mean": target.mean, "std": target.std}
        for target in sizes.targets
    }
    hyper = {
        "vae": _vae_options(vae),
        "target_conditions": targets,
        "reduce": sizes.reduce,
        "use_encoder_features": sizes.use_encoder_features,
        "optimizer": None,
        "scheduler": None,
    }
    return state, hyper, {}, Report("predictor")


def _state(entries: list[Entry], tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Tensors in the original's order, names and layout."""
    flat = flat_names(dict(tree))
    missing = [entry.ours for entry in entries if entry.ours not in flat]
    if missing:
        raise CheckpointError(f"the checkpoint lacks the parameter {missing[0]}")
    return {e.theirs: flat[e.ours].T if e.transposed else flat[e.ours] for e in entries}


def _with_dtype(array: np.ndarray, dtype: str) -> np.ndarray:
    """The dtype that the tensor came with; what is trained here is float32."""
    return np.asarray(array, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def _without_idle_adapters(tree: Mapping[str, Any], lora: LoRASizes) -> tuple[dict[str, Any], int]:
    """Add adapters of attention outputs to their weights, where they do something: the original's
    attention reads those weights directly, so that its adapters never act. Returns their number,
    too.
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
    """Whether there are adapters on layers that are no Linear layers there."""
    assert dit.lora is not None
    return any(their_layer(target) is None for target in dit.lora.targets)


def _eps_half(params: Mapping[str, Any], dit: DiTSizes) -> dict[str, Any]:
    """The last layer without the columns of the variance."""
    final = {name: array[..., : dit.latent_dim] for name, array in params["final"].items()}
    if "lora_a" in final:  # of its own width, not the output's
        final["lora_a"] = params["final"]["lora_a"]
    return {**params, "final": final}


def _vae_options(sizes: VAESizes) -> dict[str, Any]:
    """Arguments of the original's VAEModule, modules as the arguments that build them."""
    return {
        "encoder": _encoder_options(sizes.encoder),
        "decoder": {
            "atom_type_predict": sizes.atom_type_predict,
            **_transformer_options(sizes.decoder),
        },
        "latent_dim": sizes.latent_dim,
        "loss_weights": {
            "atom_types": 1.0 if sizes.atom_type_predict else 0.0,
            "lengths": 1.0,
            "angles": 10.0,
            "frac_coords": 10.0,
            "kl": 1e-5,
            "fa": 1.0 if sizes.foundation_alignment else 0.0,
        },
        "augmentation": {"translate": True, "rotate": True},
        "noise": {"ratio": 0.0, "corruption_scale": 0.1},
        "atom_type_predict": sizes.atom_type_predict,
        "structure_matcher": None,
        "optimizer": None,
        "scheduler": None,
    }


def _encoder_options(sizes: EncoderSizes) -> dict[str, Any]:
    if isinstance(sizes, CSPNetSizes):
        return {
            "hidden_dim": sizes.d_model,
            "num_layers": sizes.num_layers,
            "num_freqs": sizes.num_freqs,
            "ln": sizes.layer_norm,
        }
    assert isinstance(sizes, TransformerSizes)  # others have no names of tensors either
    return _transformer_options(sizes)


def _transformer_options(sizes: TransformerSizes | DecoderSizes) -> dict[str, Any]:
    return {
        "d_model": sizes.d_model,
        "nhead": sizes.nhead,
        "dim_feedforward": sizes.dim_feedforward,
        "num_layers": sizes.num_layers,
        "activation": "gelu",
        "norm_first": True,
    }


def _ldm_options(dit: DiTSizes, diffusion: DiffusionConfig) -> dict[str, Any]:
    """Arguments of the original's LDMModule, the denoiser as the arguments that build it."""
    denoiser: dict[str, Any] = {
        "latent_dim": dit.latent_dim,
        "hidden_size": dit.hidden_size,
        "depth": dit.depth,
        "num_heads": dit.num_heads,
        "learn_sigma": dit.learn_sigma,
    }
    if dit.mlp_ratio != 4.0:
        denoiser["mlp_ratio"] = dit.mlp_ratio
    chain = {
        "timestep_respacing": "",
        "diffusion_steps": diffusion.num_steps,
        "noise_schedule": diffusion.schedule,
        "predict_xstart": diffusion.target == "x_0",
        "learn_sigma": dit.learn_sigma,
        "rescale_learned_sigmas": dit.learn_sigma,
    }
    return {
        "normalize_latent": True,
        "denoiser": denoiser,
        "augmentation": {"translate": False, "rotate": False},
        "diffusion_configs": chain,
        "optimizer": None,
        "scheduler": None,
        "condition_module": _condition_options(dit),
        "vae_ckpt_path": None,
        "lora_configs": _lora_options(dit),
    }


def _condition_options(dit: DiTSizes) -> dict[str, Any] | None:
    if dit.conditions is None:
        return None
    conditions = dit.conditions.conditions
    for condition in conditions:
        if type(condition) not in _CONDITION_KINDS:
            raise CheckpointError(
                f"its condition {condition.name!r} of kind {condition.kind!r} has no PyTorch form"
            )
    classes = {c.num_classes for c in conditions if isinstance(c, CategoricalCondition)}
    if len(classes) > 1:
        raise CheckpointError(
            f"its categorical conditions have {sorted(classes)} classes; the original has one "
            "number for all, so that it cannot hold this model"
        )
    options: dict[str, Any] = {
        "condition_type": {c.name: c.kind for c in conditions},
        "hidden_dim": dit.conditions.hidden_dim,
        "drop_prob": dit.conditions.drop_prob,
        "stats": {
            c.name: {"mean": c.mean, "std": c.std}
            for c in conditions
            if isinstance(c, FloatCondition) and c.mean is not None
        },
    }
    return {**options, "num_classes": classes.pop()} if classes else options


def _lora_options(dit: DiTSizes) -> dict[str, Any] | None:
    if dit.lora is None:
        return None
    return {
        "r": dit.lora.rank,
        "lora_alpha": dit.lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": _target_modules(dit, dit.lora),
        "bias": "none",
    }


def _target_modules(dit: DiTSizes, lora: LoRASizes) -> list[str]:
    """Names for the library of adapters, which takes every layer that ends in one of them: a full
    path where an ending would match more layers than have adapters.
    """
    paths = [entry.ours.rpartition("/")[0].replace("/", ".") for entry in dit_entries(dit)]
    layers = {path: their_layer(path) for path in dict.fromkeys(paths)}
    wanted = {theirs for path, theirs in layers.items() if theirs and lora.applies_to(path)}
    names: list[str] = []
    for target in lora.targets:
        ending = their_layer(target)
        found = {t for t in layers.values() if t and f".{t}".endswith(f".{ending}")}
        if ending and found <= wanted:
            names.append(ending)
        else:
            names += sorted(
                theirs
                for path, theirs in layers.items()
                if theirs and f".{path}".endswith(f".{target}")
            )
    return names
