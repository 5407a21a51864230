"""Checks of configs and their flags; each error is one line that says what to do."""

import importlib.util
import math
import re
from collections.abc import Collection, Iterable

from ml_collections import ConfigDict

from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.common.suggest import did_you_mean, nearest
from chemeleon2_jax.diffusion.samplers import SAMPLERS
from chemeleon2_jax.diffusion.schedule import SCHEDULES
from chemeleon2_jax.diffusion.targets import TARGETS
from chemeleon2_jax.diffusion.times import TIMES
from chemeleon2_jax.diffusion.weights import WEIGHTINGS
from chemeleon2_jax.models.condition_kinds import DROPS
from chemeleon2_jax.models.encoders.registry import ENCODERS, default_options
from chemeleon2_jax.models.latents import STANDARDISATIONS
from chemeleon2_jax.models.sizes import COORDS_UNITS, NAMED_SIZES, REDUCTIONS, VARIANCE_LAYOUTS
from chemeleon2_jax.runs.config import fit_config, flatten, module_of, rename_columns, split_shares
from chemeleon2_jax.runs.original_names import advise_key
from chemeleon2_jax.training.config import MODES, PRECISIONS

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)(?:=(.*))?", re.DOTALL)

_CHOICES = {
    "callbacks.early_stopping.mode": MODES,
    "callbacks.model_checkpoint.mode": MODES,
    "ldm_module.condition_module.drop": DROPS,
    "ldm_module.denoiser.size": (*NAMED_SIZES, "custom"),
    "ldm_module.diffusion.latent_standardisation": STANDARDISATIONS,
    "ldm_module.diffusion.schedule": tuple(SCHEDULES),
    "ldm_module.diffusion.target": tuple(TARGETS),
    "ldm_module.diffusion.times": tuple(TIMES),
    "ldm_module.diffusion.variance_layout": VARIANCE_LAYOUTS,
    "ldm_module.diffusion.weighting": tuple(WEIGHTINGS),
    "ldm_module.sampling.sampler": SAMPLERS,
    "packing.layout": ("packed", "padded"),
    "predictor_module.reduce": REDUCTIONS,
    "rl_module.rl_configs.kl_reference": ("rollout", "initial"),
    "rl_module.sampling_configs.sampler": SAMPLERS,
    "trainer.precision": tuple(PRECISIONS),
    "vae_module.coords_loss.unit": COORDS_UNITS,
    "vae_module.encoder.name": tuple(ENCODERS),
}
_POSITIVE = (
    "callbacks.model_checkpoint.save_top_k",
    "data.batch_size",
    "ldm_module.denoiser.depth",
    "ldm_module.denoiser.hidden_size",
    "ldm_module.denoiser.num_heads",
    "ldm_module.diffusion.num_steps",
    "ldm_module.sampling.steps",
    "packing.max_shapes",
    "rl_module.rl_configs.num_group_samples",
    "rl_module.rl_configs.num_inner_batch",
    "rl_module.validation.draw_every_n_steps",
    "rl_module.validation.num_samples",
    "trainer.log_every_n_steps",
    "vae_module.decoder.d_model",
    "vae_module.decoder.dim_feedforward",
    "vae_module.decoder.nhead",
    "vae_module.decoder.num_layers",
    "vae_module.latent_dim",
    *(f"vae_module.encoder.{k}" for k, v in default_options().items() if type(v) is int),
)
_MORE_THAN_0 = (
    "ldm_module.denoiser.mlp_ratio",
    "ldm_module.lora_configs.lora_alpha",
    "rl_module.reward_fn.eps",
    "rl_module.reward_fn.timeout_s",
    "rl_module.rl_configs.clip_ratio",
    "vae_module.match_rate.timeout_s",
)
# A reward checks its own options: some may be negative.
_ANY_SIGN = re.compile(r"rl_module\.reward_fn\.\w+\.\w+|rl_module\.sampling_configs\.cfg_scale")
_AT_MOST = {
    "packing.max_shapes": 8,  # each is compiled
    "ldm_module.condition_module.drop_prob": 1.0,
    "ldm_module.diffusion.posterior_scale": 1.0,
    "vae_module.tolerance.posterior_scale": 1.0,
    "vae_module.noise.ratio": 0.5,  # this share of atoms is masked, another is moved
}


def check_overrides(config: ConfigDict, argv: Iterable[str]) -> None:
    """Check every `--config.<key>=<value>` among the arguments against the config.

    Raises:
        ConfigError: a key is unknown (the nearest is named), is a block, or cannot be set; or a
            value is of another type.
    """
    flat = flatten(config)
    for argument in argv:
        match = _OVERRIDE.fullmatch(argument)
        if not match:
            _check_prefix(argument, flat)
            continue
        key, text = match[1], match[2]
        if key == "experiment":
            raise ConfigError(
                "name the experiment after the config file: --config=<file>:<experiment>"
            )
        if key in flat:
            _check_type(key, text, flat[key])
            continue
        inside = [known for known in flat if known.startswith(f"{key}.")]
        if inside:
            names = ", ".join(known.removeprefix(f"{key}.") for known in inside)
            raise ConfigError(f"--config.{key} is a block; set one of its values: {names}")
        advice = advise_key(key)
        if advice:
            raise ConfigError(f"unknown config key {key!r}; here: {advice}")
        raise ConfigError(f"unknown config key {key!r}.{_nearest_key(key, list(flat))}")


def _check_prefix(argument: str, known: Collection[str]) -> None:
    """Raise for `trainer.max_epochs=5`, with or without dashes."""
    key, equals, value = argument.lstrip("-").partition("=")
    if "." in key and (key in known or (equals and nearest(key, known, cutoff=0.8))):
        key = nearest(key, known, cutoff=0.8) or key
        raise ConfigError(
            f"{argument!r} is no flag: values of the config start with --config., as in "
            f"--config.{key}={value}"
        )


def _check_type(key: str, text: str | None, default: object) -> None:
    if text is None:  # a value in the next argument, or a bare bool
        return
    if isinstance(default, bool):
        if text.lower() not in ("true", "false", "t", "f", "1", "0"):
            raise ConfigError(f"{key} is true or false, not {text!r}")
    elif isinstance(default, int | float):
        kind = "a whole number" if isinstance(default, int) else "a number"
        try:
            type(default)(text)
        except ValueError:
            raise ConfigError(f"{key} is {kind}, not {text!r}") from None


def _nearest_key(key: str, known: list[str]) -> str:
    leaf = key.rpartition(".")[2]
    same_leaf = [k for k in known if k.rpartition(".")[2] == leaf]
    if same_leaf:
        return f" Did you mean {' or '.join(repr(k) for k in same_leaf[:3])}?"
    near = nearest(key, known, cutoff=0.5)
    if near is None:  # perhaps a misspelt name without its block
        leaves = {k.rpartition(".")[2]: k for k in known}
        near = leaves.get(nearest(leaf, leaves) or "")
    return " --print_config shows all keys." if near is None else f" Did you mean {near!r}?"


def check_config(config: ConfigDict) -> None:
    """Check all values that need neither model nor data.

    Raises:
        ConfigError: a value is not among its choices, or out of range.
    """
    for key, value in flatten(config).items():
        _check_value(key, value)
    _check_length(config)
    _check_warmup(config)
    _check_heads(config)
    fit_config(config)
    rename_columns(config.data.rename)
    split_shares(config.data.split)
    if config.logger.wandb.project and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            "logger.wandb.project is set, but wandb is not installed: pip install wandb"
        )


def _check_value(key: str, value: object) -> None:
    choices = _CHOICES.get(key)
    if choices and value not in choices:
        hint = did_you_mean(str(value), choices)
        raise ConfigError(f"{key} is {value!r}; it is one of {', '.join(choices)}.{hint}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if _ANY_SIGN.fullmatch(key) and math.isfinite(value):
        return
    if not math.isfinite(value) or value < 0:
        raise ConfigError(f"{key} is {value}; it is a finite number, 0 or more")
    if key in _POSITIVE and value < 1:
        raise ConfigError(f"{key} is {value}; it is 1 or more")
    if key in _MORE_THAN_0 and value <= 0:
        raise ConfigError(f"{key} is {value}; it is more than 0")
    if value > _AT_MOST.get(key, value):
        raise ConfigError(f"{key} is {value}; it is at most {_AT_MOST[key]}")
    if key == "seed" and value >= 2**32:  # JAX drops higher bits
        raise ConfigError(f"{key} is {value}; it is less than 2**32")


def _check_length(config: ConfigDict) -> None:
    limited = config.trainer.max_steps or config.trainer.max_epochs
    if not limited and not config.callbacks.early_stopping.patience:
        raise ConfigError(
            "the run would never end: set trainer.max_steps, trainer.max_epochs or "
            "callbacks.early_stopping.patience"
        )
    scheduler = module_of(config).scheduler
    if scheduler.name == "cosine" and not limited and not scheduler.decay_steps:
        raise ConfigError(
            "the cosine schedule needs an end: set scheduler.decay_steps, trainer.max_steps or "
            "trainer.max_epochs"
        )


def _check_warmup(config: ConfigDict) -> None:
    """Check the warm-up of a run of `max_steps`; `fit` knows the length of an epoch."""
    name = f"{config.task_name.removeprefix('train_')}_module.scheduler"
    scheduler, max_steps = module_of(config).scheduler, config.trainer.max_steps
    end = scheduler.decay_steps or max_steps
    if scheduler.name == "cosine" and 0 < end <= scheduler.warmup_steps:
        key = f"{name}.decay_steps" if scheduler.decay_steps else "trainer.max_steps"
        raise ConfigError(
            f"{name}.warmup_steps is {scheduler.warmup_steps}, but the cosine ends at step {end} "
            f"({key}): shorten the warm-up or train longer"
        )


def _check_heads(config: ConfigDict) -> None:
    flat = flatten(config)
    pairs = [
        ("vae_module.decoder.d_model", "vae_module.decoder.nhead"),
        ("ldm_module.denoiser.hidden_size", "ldm_module.denoiser.num_heads"),
    ]
    if hasattr(ENCODERS.get(flat.get("vae_module.encoder.name", "")), "nhead"):
        pairs.append(("vae_module.encoder.d_model", "vae_module.encoder.nhead"))
    for width, heads in pairs:
        # Even, since the index embedding has as many sines as cosines.
        if width in flat and (flat[width] % flat[heads] or flat[width] % 2):
            raise ConfigError(
                f"{width} is {flat[width]}; it must be even and a multiple of {heads} = "
                f"{flat[heads]}"
            )
