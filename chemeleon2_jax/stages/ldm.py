"""The latent diffusion stage: a DiT learns to generate the latents of a frozen VAE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from ml_collections import ConfigDict

from chemeleon2_jax.common.errors import CheckpointError, ConfigError
from chemeleon2_jax.common.randomness import named_key
from chemeleon2_jax.data.augment import augment
from chemeleon2_jax.diffusion.gaussian import training_loss
from chemeleon2_jax.diffusion.sampler import Sampler, step_constants
from chemeleon2_jax.diffusion.samplers import make_sampler
from chemeleon2_jax.diffusion.schedule import Schedule
from chemeleon2_jax.inference.denoiser import denoiser
from chemeleon2_jax.inference.generator import Generator, draw_num_atoms
from chemeleon2_jax.metrics.structure import covalent_check, validity_check
from chemeleon2_jax.models.abstract import count_parameters
from chemeleon2_jax.models.dit import DiT
from chemeleon2_jax.models.lora import merge, only_adapters
from chemeleon2_jax.models.losses import Terms
from chemeleon2_jax.models.meta import LDMMeta, ModelMeta
from chemeleon2_jax.models.sizes import NAMED_SIZES, ConditionSizes, DiffusionConfig, DiTSizes
from chemeleon2_jax.models.vae import sample_posterior
from chemeleon2_jax.pretrained.loading import (
    LDMParts,
    VAEParts,
    ldm_of,
    open_model,
    vae_of,
)
from chemeleon2_jax.rows.rows import Rows, atom_normal, crystal_keys
from chemeleon2_jax.stages.common import (
    augmentation,
    compute_dtype,
    evaluator,
    resumed_from,
    sum_terms,
)
from chemeleon2_jax.stages.conditions import (
    columns,
    drop_some,
    lora_sizes,
    make_sizes,
    read_kinds,
)
from chemeleon2_jax.stages.data import StageData, load_data
from chemeleon2_jax.torch_format.model import OpenModel
from chemeleon2_jax.training.parallel import replicate
from chemeleon2_jax.training.plain_trees import from_plain, to_plain
from chemeleon2_jax.training.stage import Stage, ValidateFn, Validation, params_and_ema

_VALIDATION_SEED = 0


def dit_sizes(module: ConfigDict, latent_dim: int) -> DiTSizes:
    """Read the denoiser's sizes off `ldm_module`; its conditions need the data."""
    denoiser, diffusion = module.denoiser, module.diffusion
    if denoiser.size == "custom":
        depth, hidden, heads = denoiser.depth, denoiser.hidden_size, denoiser.num_heads
    elif denoiser.size in NAMED_SIZES:
        depth, hidden, heads = NAMED_SIZES[denoiser.size]
    else:
        raise ConfigError(
            f"ldm_module.denoiser.size is {denoiser.size!r}; it is {', '.join(NAMED_SIZES)} or "
            "custom"
        )
    return DiTSizes(
        latent_dim=latent_dim,
        hidden_size=hidden,
        depth=depth,
        num_heads=heads,
        mlp_ratio=denoiser.mlp_ratio,
        learn_sigma=diffusion.learn_sigma,
        variance_layout=diffusion.variance_layout,
        lora=lora_sizes(module),
    )


def build_ldm(config: ConfigDict, *, resume_dir: Path | None = None) -> Stage:
    """Build the stage; see `stages.build`."""
    module, dtype = config.ldm_module, compute_dtype(config)
    # A run keeps its VAE and latent_std, whatever became of the folder that they came from.
    resumed = resumed_from(resume_dir)
    start: LDMParts | None = None
    if resumed is not None:
        model_with_vae = resumed
    elif module.ldm_ckpt_path:
        if module.vae_ckpt_path:
            logging.info("The VAE comes with ldm_ckpt_path; vae_ckpt_path is not used")
        model_with_vae = open_model(module.ldm_ckpt_path)
        start = ldm_of(model_with_vae, dtype=dtype)
    else:
        model_with_vae = _open_vae(module)
    vae = vae_of(model_with_vae, dtype=dtype) if start is None else start.vae
    known = None if resumed is None and start is None else model_with_vae.meta.ldm
    options = module.diffusion
    try:
        diffusion = DiffusionConfig(options.num_steps, options.schedule, options.target)
        schedule = Schedule.of(diffusion)
        sampler = make_sampler(module.sampling.sampler, module.sampling.steps, module.sampling.eta)
        sizes = dit_sizes(module, vae.sizes.latent_dim)
        kinds = read_kinds(module)
        if module.sampling.num_samples:
            _check_sampling(sampler, schedule, vae)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"ldm_module: {error}") from error
    # The interleaved variance is defined by the padding: always to the largest crystal of the
    # training set.
    data = load_data(
        config,
        edges=vae.sizes.encoder.needs_edges,
        interleaved=sizes.variance_needs_padding,
        targets=columns(kinds),
    )
    conditions = make_sizes(
        module,
        kinds,
        hidden_dim=sizes.hidden_size,
        splits=(data.train, data.val),
        known=None if known is None else known.dit.conditions,
    )
    if conditions is not None:
        sizes = replace(sizes, conditions=conditions)
        data = replace(data, condition_fn=conditions.encode_crystals)
    vae = replace(vae, params=replicate(vae.params, data.mesh))
    graphdef, params = _new_denoiser(sizes, seed=config.seed, dtype=dtype)
    if start is not None:
        params = start_weights(params, sizes, start, diffusion, path=module.ldm_ckpt_path)
    latent_std = None if known is None else known.latent_std
    logging.info("DiT with %.1f million parameters", count_parameters(params) / 1e6)
    if latent_std is None:
        latent_std = measure_latent_std(data, vae, seed=config.seed)
    logging.info("latent_std = %.6g over the training set", latent_std)

    ldm = LDMParts(
        sizes=sizes,
        graphdef=graphdef,
        params=None,  # the training state's
        diffusion=diffusion,
        vae=vae,
        latent_std=latent_std,
        size_table=np.asarray(data.size_table),
    )
    augment_options = augmentation(module.augmentation)

    def loss_fn(params: Any, frozen: Any, key: jax.Array, rows: Rows) -> Any:
        augment_key, drop_key, loss_key = jax.random.split(key, 3)
        rows = augment(augment_key, rows, augment_options)
        if conditions is not None:
            rows = replace(rows, conditions=drop_some(drop_key, rows, conditions.drop_prob))
        if sizes.lora is not None:
            params = only_adapters(params)
        terms = ldm_terms(ldm, params, frozen, rows, loss_key, schedule)
        means = {name: total / jnp.maximum(count, 1.0) for name, (total, count) in terms.items()}
        return means.pop("total_loss"), means

    meta = ModelMeta(
        stage="train_ldm",
        vae=vae.sizes,
        ldm=LDMMeta(
            dit=sizes,
            diffusion=diffusion,
            latent_std=latent_std,
            sample_weights="ema" if module.ema.decay > 0 else "raw",
        ),
        size_table=data.size_table,
        config=config.to_dict(),
        vae_config=model_with_vae.meta.config_of_vae,
    )
    return Stage(
        name="train_ldm",
        init_params=jax.device_get(params),  # on the host: the training state holds its own
        loss_fn=loss_fn,
        batches=data.loader(config.seed),
        meta=meta.to_json(),
        frozen=vae.params,
        validate=_make_validate(config, data, ldm, schedule, sampler),
        monitor=config.callbacks.model_checkpoint.monitor,
        mode=config.callbacks.model_checkpoint.mode,
        value_names=value_names(module),
        items=lambda params, ema: {**params_and_ema(params, ema), "vae": vae.params},
        shown={
            "grad_norm": "gradient",
            "val/valid_share": "valid",
            "val/covalent_share": "covalent",
        },
        precision=config.trainer.precision,
    )


def value_names(module: ConfigDict) -> tuple[str, ...]:
    """Names of the values of a validation, for a check before training."""
    names = ["total_loss", "loss_mse"]
    if module.diffusion.learn_sigma:
        names.append("loss_vb")
    if module.sampling.num_samples:
        names += ["valid_share", "covalent_share"]
    return tuple(f"val/{name}" for name in names)


def _open_vae(module: ConfigDict) -> OpenModel:
    if not module.vae_ckpt_path:
        raise ConfigError(
            "ldm_module.vae_ckpt_path is empty: give the run folder of a trained VAE, "
            "--config.ldm_module.vae_ckpt_path=logs/train_vae/runs/<run>"
        )
    return open_model(module.vae_ckpt_path)


def _new_denoiser(sizes: DiTSizes, *, seed: int, dtype: Any) -> tuple[Any, Any]:
    """Graph definition and first parameters."""
    try:
        model = DiT(sizes, rngs=nnx.Rngs(named_key(seed, "init")), dtype=dtype)
    except ValueError as error:
        raise ConfigError(f"ldm_module: {error}") from error
    return nnx.split(model, nnx.Param)


def start_weights(
    params: Any, sizes: DiTSizes, start: LDMParts, diffusion: DiffusionConfig, *, path: str
) -> Any:
    """Return parameters with those of another LDM where it has them.

    Conditions and adapters that it does not have stay new; adapters that are not the same are added
    to its weights.

    Raises:
        CheckpointError: another network, other conditions or another chain.
    """
    theirs = {**_network(start.sizes), **asdict(start.diffusion)}
    ours = {**_network(sizes), **asdict(diffusion)}
    differing = [f"{k} = {theirs[k]!r} (here {ours[k]!r})" for k in ours if ours[k] != theirs[k]]
    if differing:
        raise CheckpointError(
            f"{path} has {', '.join(differing)}: set these in ldm_module.denoiser (size = custom) "
            "and ldm_module.diffusion, or start from another model"
        )
    asked, has = (_inputs(s.conditions) for s in (sizes, start.sizes))
    if has and has != asked:
        raise CheckpointError(
            f"{path} has the conditions {has}, but the config asks for {asked or 'none'}"
        )
    found = to_plain(start.params)
    if start.sizes.lora is not None and start.sizes.lora != sizes.lora:
        found = merge(found, start.sizes.lora)
    return from_plain(_overlaid(to_plain(params), found), params)


def _network(sizes: DiTSizes) -> dict[str, Any]:
    """What must be the same for weights to be taken over."""
    return {k: v for k, v in asdict(sizes).items() if k not in ("conditions", "lora")}


def _inputs(conditions: ConditionSizes | None) -> dict[str, str]:
    """Name -> kind and width."""
    return {c.name: f"{c.kind} ({c.width})" for c in conditions.conditions} if conditions else {}


def _overlaid(new: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts with what is found in place of what is new."""
    return {
        name: _overlaid(value, found.get(name, {}))
        if isinstance(value, Mapping)
        else found.get(name, value)
        for name, value in new.items()
    }


def ldm_terms(
    ldm: LDMParts, params: Any, vae_params: Any, rows: Rows, key: jax.Array, schedule: Schedule
) -> Terms:
    """Sums over crystals of the loss and its terms, and the number of crystals."""
    sample_key, time_key, noise_key = jax.random.split(key, 3)
    width = ldm.sizes.latent_dim
    posterior = ldm.vae.module(vae_params).encode(rows)
    z = sample_posterior(posterior, atom_normal(sample_key, rows, width)) / ldm.latent_std
    z = jnp.where(rows.is_atom[..., None], z, 0.0)
    draw = jax.vmap(jax.vmap(lambda k: jax.random.randint(k, (), 0, schedule.num_steps)))
    t = draw(crystal_keys(time_key, rows))
    noise = jnp.where(rows.is_atom[..., None], atom_normal(noise_key, rows, width), 0.0)
    loss, parts = training_loss(
        denoiser(ldm.module(params), ldm.sizes, rows),
        jax.lax.stop_gradient(z),
        t=t,
        noise=noise,
        schedule=schedule,
        rows=rows,
        target=ldm.diffusion.target,
    )
    weights = rows.is_crystal.astype(jnp.float32)
    count = jnp.sum(weights)
    named = {"total_loss": loss, **{f"loss_{name}": value for name, value in parts.items()}}
    return {name: (jnp.sum(value * weights), count) for name, value in named.items()}


def measure_latent_std(data: StageData, vae: VAEParts, *, seed: int) -> float:
    """Standard deviation of all numbers in sampled latents of the whole training set, without
    augmentation.
    """
    key = named_key(seed, "latent_std")

    def moments(params: Any, rows: Rows) -> Terms:
        posterior = vae.module(params).encode(rows)
        z = sample_posterior(posterior, atom_normal(key, rows, posterior.mean.shape[-1]))
        weights = rows.is_atom.astype(jnp.float32)
        count = jnp.sum(weights) * z.shape[-1]
        return {
            "first": (jnp.sum(jnp.sum(z, -1) * weights), count),
            "second": (jnp.sum(jnp.sum(z**2, -1) * weights), count),
        }

    jitted = evaluator(moments, data.mesh)
    sums = sum_terms(jitted(vae.params, rows) for rows, _, _ in data.train_batches())
    (first, count), (second, _) = sums["first"], sums["second"]
    variance = (second - first**2 / count) / (count - 1)
    return float(np.sqrt(variance))


def _check_sampling(sampler: Sampler, schedule: Schedule, vae: VAEParts) -> None:
    step_constants(schedule, sampler)
    if not vae.sizes.atom_type_predict:
        raise ValueError(
            "sampling.num_samples asks for crystals, but the VAE does not predict atom types: set "
            "it to 0"
        )


def _make_validate(
    config: ConfigDict, data: StageData, ldm: LDMParts, schedule: Schedule, sampler: Sampler
) -> ValidateFn:
    """Loss over the validation set, always with the same times and noises, and validity of samples
    if asked for.
    """
    key = named_key(_VALIDATION_SEED, "validation")
    jitted = evaluator(
        lambda params, vae_params, rows: ldm_terms(ldm, params, vae_params, rows, key, schedule),
        data.mesh,
    )
    num_samples = config.ldm_module.sampling.num_samples
    generator = Generator(ldm, sampler, mesh=data.mesh) if num_samples else None

    def validate(params: Any, _: Mapping[str, Any]) -> Validation:
        batches = (rows for rows, _, _ in data.val_batches())
        sums = sum_terms(jitted(params, ldm.vae.params, rows) for rows in batches)
        values = {f"val/{name}": total / count for name, (total, count) in sums.items()}
        if generator is not None:
            sizes = draw_num_atoms(ldm.size_table, num_samples, _VALIDATION_SEED)
            found = generator.generate(sizes, seed=_VALIDATION_SEED, params=params).crystals
            values["val/valid_share"] = validity_check(found).share
            values["val/covalent_share"] = covalent_check(found).share
        return Validation(values)

    return validate
