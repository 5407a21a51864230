"""Sizes of a denoiser in a PyTorch checkpoint: network, adapters, conditions, diffusion."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.common.stubs import Stub, printable
from chemeleon2_jax.models.condition_kinds import (
    CategoricalCondition,
    Condition,
    read_condition,
)
from chemeleon2_jax.models.sizes import (
    NAMED_SIZES,
    ConditionSizes,
    DiffusionConfig,
    DiTSizes,
    LoRASizes,
)
from chemeleon2_jax.torch_format.hyperparameters import (
    finite,
    number_of_heads,
    plain,
    statistics,
    stubs_within,
)
from chemeleon2_jax.torch_format.names import (
    ADAPTER,
    CONDITIONS,
    DENOISER,
    PEFT,
    SCHEDULES,
    adapted_layer,
)
from chemeleon2_jax.torch_format.sizes import State, check_width


def ldm_sizes(state: State, options: Mapping[str, Any]) -> DiTSizes:
    """Return the sizes of a denoiser with its conditions and adapters.

    Args:
        state: all tensors of the file.
        options: its hyper_parameters.

    Raises:
        CheckpointError: a tensor or an option is missing, or has no counterpart here.
    """
    lora = lora_sizes(state, options)
    denoiser = state.below(DENOISER if lora is None else DENOISER + PEFT)
    base = "" if lora is None else ".base_layer"

    def shape(layer: str) -> tuple[int, ...]:
        adapted = f"{layer}{base}.weight"
        return denoiser.shape(adapted if adapted in denoiser else f"{layer}.weight")

    hidden, latent_dim = shape("x_embedder")
    check_width(hidden, "denoiser")
    depth = denoiser.count(r"blocks\.(\d+)\.")
    out = shape("final_layer.linear")[0]
    if out not in (latent_dim, 2 * latent_dim):
        raise CheckpointError(
            f"its denoiser has {out} outputs for latents of width {latent_dim}; it must have as "
            "many or twice as many"
        )
    return DiTSizes(
        latent_dim=latent_dim,
        hidden_size=hidden,
        depth=depth,
        num_heads=_denoiser_heads(options, hidden, depth),
        mlp_ratio=shape("blocks.0.mlp.fc1")[0] / hidden,
        learn_sigma=out == 2 * latent_dim,
        # The layout with which the published weights were trained.
        variance_layout="interleaved" if out == 2 * latent_dim else "per_token",
        conditions=condition_sizes(state, options),
        lora=lora,
    )


def _denoiser_heads(options: Mapping[str, Any], hidden: int, depth: int) -> int:
    heads = number_of_heads(options.get("denoiser"))
    if heads is not None:
        return heads
    for known_depth, width, known_heads in NAMED_SIZES.values():
        if (known_depth, width) == (depth, hidden):
            return known_heads
    raise CheckpointError(
        "its hyper_parameters do not tell the number of attention heads of the denoiser, and "
        f"{depth} blocks of width {hidden} are none of the named sizes {', '.join(NAMED_SIZES)}"
    )


_LORA = re.compile(r"(.+)\.lora_A\.(.+)\.weight")


def lora_sizes(state: State, options: Mapping[str, Any]) -> LoRASizes | None:
    """Return the sizes of a denoiser's adapters; None without any.

    Raises:
        CheckpointError: adapters of several names, ranks or scales, or of an unknown kind.
    """
    prefix = state.prefix + DENOISER + PEFT
    if not any(name.startswith(prefix) for name in state.tensors):
        return None
    ranks: dict[str, int] = {}
    for name in state.tensors:
        inner = name.removeprefix(prefix)
        match = _LORA.fullmatch(inner) if inner != name else None
        if match is None:
            if "lora_magnitude" in inner or "lora_embedding" in inner:
                raise CheckpointError(f"its adapter {printable(name)} is no plain LoRA")
            continue
        layer = adapted_layer(match[1])
        if layer is None or match[2] != ADAPTER:
            raise CheckpointError(
                f"its adapter {printable(name)} is not known; only adapters named {ADAPTER!r} on "
                "Linear layers of the denoiser are"
            )
        ranks[layer] = state.shape(name.removeprefix(state.prefix))[0]
    if not ranks:
        raise CheckpointError("its denoiser is wrapped for adapters, but has none")
    if len(set(ranks.values())) != 1:
        raise CheckpointError(
            f"its adapters have the ranks {sorted(set(ranks.values()))}; all must have one rank"
        )
    rank = next(iter(ranks.values()))
    return LoRASizes(rank, _alpha(options, rank), _targets(list(ranks), state.below(prefix)))


def _alpha(options: Mapping[str, Any], rank: int) -> float:
    """alpha of y = W x + (alpha / rank) B A x, from the pickled layers or from the options."""
    scales = set()
    for stub in stubs_within(options.get("denoiser")):
        scaling = stub.get("scaling") if stub.name.startswith("peft.") else None
        if isinstance(scaling, Mapping) and isinstance(scaling.get(ADAPTER), int | float):
            scales.add(float(scaling[ADAPTER]))
    if len(scales) == 1:
        return next(iter(scales)) * rank
    configs = plain(options.get("lora_configs"))
    if not scales and isinstance(configs, Mapping | Stub):
        if configs.get("alpha_pattern") or configs.get("rank_pattern"):
            raise CheckpointError("its adapters have several scales or ranks (alpha_pattern)")
        alpha = configs.get("lora_alpha")
        if alpha is not None and configs.get("r") == rank:
            return finite(alpha, "lora_alpha") * (rank**0.5 if configs.get("use_rslora") else 1.0)
    raise CheckpointError(
        "its hyper_parameters do not tell one scale (lora_alpha / r) for all adapters"
    )


def _targets(layers: list[str], denoiser: State) -> tuple[str, ...]:
    """Layers with adapters; for a kind of layer that has one in every block, the kind alone."""
    depth = denoiser.count(r"blocks\.(\d+)\.")
    by_kind: dict[str, list[str]] = {}
    for layer in layers:
        block = re.fullmatch(r"blocks\.\d+\.(.+)", layer)
        by_kind.setdefault(block[1] if block else layer, []).append(layer)
    targets: list[str] = []
    for kind, members in by_kind.items():
        targets += [kind] if members == [kind] or len(members) == depth else members
    return tuple(targets)


def condition_sizes(state: State, options: Mapping[str, Any]) -> ConditionSizes | None:
    """Return the sizes of an LDM's conditions; None for an unconditional one.

    Raises:
        CheckpointError: tensors of conditions without their options, or an unknown kind.
    """
    if not any(name.startswith(state.prefix + CONDITIONS) for name in state.tensors):
        return None
    values = plain(options.get("condition_module"))
    kinds = values.get("condition_type") if isinstance(values, Mapping) else None
    if not isinstance(values, Mapping) or not isinstance(kinds, Mapping):
        raise CheckpointError(
            "it has conditions, but its hyper_parameters do not tell their types "
            "(condition_module.condition_type)"
        )
    stats = values.get("stats") or {}
    try:
        conditions = tuple(
            _condition(state, str(name), kind, stats.get(name) or {})
            for name, kind in kinds.items()
        )
        return ConditionSizes(
            conditions,
            hidden_dim=state.shape(f"{CONDITIONS}proj.2.weight")[0],
            drop_prob=finite(values.get("drop_prob", 0.0), "drop_prob"),
        )
    except CheckpointError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"its conditions cannot be read: {error}") from error


def _condition(state: State, name: str, kind: Any, stats: Any) -> Condition:
    mean, std = statistics(stats)
    options: dict[str, Any] = {"mean": mean, "std": std}
    if kind == CategoricalCondition.kind:
        options["num_classes"] = state.shape(f"{CONDITIONS}encoders.{name}.null_embed")[1]
    return read_condition({"name": name, "kind": kind, **options})


def diffusion_config(options: Mapping[str, Any]) -> DiffusionConfig:
    """Return the diffusion of an LDM; options that are missing are those of the published models.

    Raises:
        CheckpointError: the diffusion has no counterpart here.
    """
    values = plain(options.get("diffusion_configs"))
    values = values if isinstance(values, Mapping) else {}
    if values.get("sigma_small"):
        raise CheckpointError("its diffusion has sigma_small, the small fixed variance: not known")
    try:
        config = DiffusionConfig(
            num_steps=values.get("diffusion_steps", 1000),
            schedule=str(values.get("noise_schedule", "linear")),
            target="x_0" if values.get("predict_xstart") else "eps",
        )
        if config.schedule not in SCHEDULES:
            raise ValueError(f"noise_schedule {config.schedule!r:.60} is none of {SCHEDULES}")
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"its diffusion_configs cannot be used: {error}") from error
    return config
