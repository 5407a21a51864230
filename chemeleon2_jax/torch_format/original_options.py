"""The `hyper_parameters` of a checkpoint of the PyTorch original: arguments of its modules.

A module among the arguments is given by its own arguments.
"""

from __future__ import annotations

from typing import Any

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.models.condition_kinds import (
    CategoricalCondition,
    ChemicalSystemCondition,
    CompositionCondition,
    FloatCondition,
    TextCondition,
)
from chemeleon2_jax.models.encoders.registry import CSPNetSizes, EncoderSizes, TransformerSizes
from chemeleon2_jax.models.sizes import (
    DecoderSizes,
    DiffusionConfig,
    DiTSizes,
    LoRASizes,
    PredictorSizes,
    VAESizes,
)
from chemeleon2_jax.torch_format.names import SCHEDULES, TARGETS, dit_entries, torch_layer

_CONDITION_KINDS = (
    *(FloatCondition, CompositionCondition, ChemicalSystemCondition),
    *(CategoricalCondition, TextCondition),
)


def vae_options(sizes: VAESizes) -> dict[str, Any]:
    """Return the arguments of the original's VAEModule."""
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


def ldm_options(dit: DiTSizes, diffusion: DiffusionConfig) -> dict[str, Any]:
    """Return the arguments of the original's LDMModule.

    Raises:
        CheckpointError: it does not have such conditions, or such a chain.
    """
    if diffusion.target not in TARGETS or diffusion.schedule not in SCHEDULES:
        raise CheckpointError(
            f"a model with the target {diffusion.target!r} on the schedule {diffusion.schedule!r} "
            f"has no form in the original, whose targets are {' and '.join(TARGETS)} on the "
            f"schedules {' and '.join(SCHEDULES)}"
        )
    if dit.self_conditioning:
        raise CheckpointError("a model with self-conditioning has no form in the original")
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


def predictor_options(sizes: PredictorSizes, vae: VAESizes) -> dict[str, Any]:
    """Return the arguments of the original's PredictorModule."""
    targets = {
        target.name: {} if target.mean is None else {"mean": target.mean, "std": target.std}
        for target in sizes.targets
    }
    return {
        "vae": vae_options(vae),
        "target_conditions": targets,
        "reduce": sizes.reduce,
        "use_encoder_features": sizes.use_encoder_features,
        "optimizer": None,
        "scheduler": None,
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
    """Names of layers for peft, which adapts every layer that ends in one of them: a full name
    where an ending would match layers without adapters.
    """
    paths = dict.fromkeys(entry.parameter.rpartition("/")[0] for entry in dit_entries(dit))
    layers = {path.replace("/", "."): torch_layer(path.replace("/", ".")) for path in paths}
    adapted = {name for path, name in layers.items() if name and lora.applies_to(path)}
    names: list[str] = []
    for target in lora.targets:
        ending = torch_layer(target)
        matches = {name for name in layers.values() if name and f".{name}".endswith(f".{ending}")}
        if ending and matches <= adapted:
            names.append(ending)
        else:
            names += sorted(
                name for path, name in layers.items() if name and f".{path}".endswith(f".{target}")
            )
    return names
