"""The latent diffusion stage: a DiT learns to generate the latents of a frozen VAE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.common.randomness import named_key
from chemeleon2_jax.data.augment import augment
from chemeleon2_jax.diffusion.gaussian import training_loss
from chemeleon2_jax.diffusion.sampler import Sampler, step_constants
from chemeleon2_jax.diffusion.samplers import make_sampler
from chemeleon2_jax.diffusion.schedule import Schedule
from chemeleon2_jax.diffusion.times import TIMES
from chemeleon2_jax.inference.denoiser import denoiser
from chemeleon2_jax.inference.generator import Generator, draw_num_atoms
from chemeleon2_jax.metrics.structure import covalent_check, validity_check
from chemeleon2_jax.models.dit import DiT
from chemeleon2_jax.models.lora import only_adapters
from chemeleon2_jax.models.losses import Terms
from chemeleon2_jax.models.meta import ModelMeta
from chemeleon2_jax.models.sizes import NAMED_SIZES, DiffusionConfig, DiTSizes, VAESizes
from chemeleon2_jax.models.vae import sample_posterior
from chemeleon2_jax.pretrained.loading import LDMParts
from chemeleon2_jax.rows.rows import Rows, atom_normal, crystal_keys
from chemeleon2_jax.stages.common import (
    VALIDATION_SEED,
    augmentation,
    compute_dtype,
    evaluator,
    items_with,
    ldm_meta,
    make_stage,
    new_module,
    sum_terms,
)
from chemeleon2_jax.stages.conditions import columns, drop_some, lora_sizes, make_sizes, read_kinds
from chemeleon2_jax.stages.data import StageData, load_data
from chemeleon2_jax.stages.ldm_start import (
    LatentMoments,
    LDMStart,
    latent_moments,
    open_ldm_start,
    start_weights,
)
from chemeleon2_jax.stages.posteriors import cache_posteriors, posterior_of
from chemeleon2_jax.stages.reflow import TEACHER_ITEM, draw_pair, open_teacher, read_sampler
from chemeleon2_jax.training.parallel import replicate
from chemeleon2_jax.training.stage import LossFn, Stage, ValidateFn, Validation


def build_ldm(config: ConfigDict, *, resume_dir: Path | None = None) -> Stage:
    """Build the stage; see `stages.build`."""
    module = config.ldm_module
    start = open_ldm_start(module, resume_dir, dtype=compute_dtype(config))
    diffusion, sampler = _read_chain(module, start.vae.sizes)
    sizes, data = _sizes_and_data(config, start)
    graphdef, params = new_module(DiT, sizes, config)
    if start.weights is not None:
        path = module.ldm_ckpt_path
        params = start_weights(params, sizes, start.weights, diffusion=diffusion, path=path)
    vae = replace(start.vae, params=replicate(start.vae.params, data.mesh))
    frozen = {"vae": vae.params}
    pair_sampler = read_sampler(module, diffusion)
    if pair_sampler is not None:
        teacher = open_teacher(params, has_start=start.weights is not None, resume_dir=resume_dir)
        frozen[TEACHER_ITEM] = replicate(teacher, data.mesh)
    elif module.cache_posteriors and not _augments(module):
        data = cache_posteriors(data, vae)
    moments = latent_moments(start, data, vae, options=module.diffusion, seed=config.seed)
    _log_moments(moments)
    ldm = LDMParts(
        sizes=sizes,
        graphdef=graphdef,
        params=None,
        diffusion=diffusion,
        vae=vae,
        latent_std=moments.std,
        latent_channels=moments.channels,
        size_table=np.asarray(data.size_table),
    )
    meta = ModelMeta(
        stage="train_ldm",
        vae=vae.sizes,
        ldm=ldm_meta(ldm, module.ema),
        size_table=data.size_table,
        config=config.to_dict(),
        vae_config=start.vae_config,
        data=data.digest,
    )
    num_samples = module.sampling.num_samples
    return make_stage(
        config,
        meta,
        params=params,
        loss_fn=_make_loss(ldm, module, pair_sampler),
        batches=data.loader(config.seed),
        frozen=frozen,
        validate=_make_validate(
            data,
            ldm,
            sampler,
            frozen=frozen,
            num_samples=num_samples,
            posterior_scale=module.diffusion.posterior_scale,
            pair_sampler=pair_sampler,
        ),
        value_names=value_names(sizes, num_samples=num_samples),
        items=items_with(**frozen),
        shown={
            "grad_norm": "gradient",
            "val/valid_share": "valid",
            "val/covalent_share": "covalent",
        },
        examples=sizes.conditions.describe(data.train, 0) if sizes.conditions else {},
    )


def _augments(module: ConfigDict) -> bool:
    return bool(module.augmentation.rotate or module.augmentation.translate)


def _log_moments(moments: LatentMoments) -> None:
    logging.info("latent_std = %.6g over the training set", moments.std)
    if moments.channels is not None:
        spread = " ".join(f"{std:.3g}" for std in moments.channels.std)
        logging.info("standard deviations of the latents' channels: %s", spread)


def _sizes_and_data(config: ConfigDict, start: LDMStart) -> tuple[DiTSizes, StageData]:
    """Read the denoiser's sizes, and load the data with the inputs of its conditions."""
    module = config.ldm_module
    sizes, kinds = dit_sizes(module, start.vae.sizes.latent_dim), read_kinds(module)
    data = load_data(
        config,
        edges=start.vae.sizes.encoder.needs_edges,
        interleaved=sizes.variance_needs_padding,
        targets=columns(kinds),
    )
    conditions = make_sizes(
        module,
        kinds,
        hidden_dim=sizes.hidden_size,
        splits=(data.train, data.val),
        known=start.conditions,
    )
    if conditions is None:
        return sizes, data
    data = replace(data, condition_fn=conditions.encode_crystals)
    return replace(sizes, conditions=conditions), data


def dit_sizes(module: ConfigDict, latent_dim: int) -> DiTSizes:
    """Read the denoiser's sizes off `ldm_module`, without conditions: those need the data.

    Raises:
        ConfigError: an unknown size, or adapters that cannot be trained.
    """
    options = module.denoiser
    if options.size == "custom":
        depth, hidden, heads = options.depth, options.hidden_size, options.num_heads
    elif options.size in NAMED_SIZES:
        depth, hidden, heads = NAMED_SIZES[options.size]
    else:
        raise ConfigError(
            f"ldm_module.denoiser.size is {options.size!r}; it is {', '.join(NAMED_SIZES)} or "
            "custom"
        )
    return DiTSizes(
        latent_dim=latent_dim,
        hidden_size=hidden,
        depth=depth,
        num_heads=heads,
        mlp_ratio=options.mlp_ratio,
        learn_sigma=module.diffusion.learn_sigma,
        variance_layout=module.diffusion.variance_layout,
        lora=lora_sizes(module),
        self_conditioning=options.self_conditioning,
    )


def _read_chain(module: ConfigDict, vae: VAESizes) -> tuple[DiffusionConfig, Sampler]:
    """Read the diffusion chain and the sampler of validation off `ldm_module`."""
    options, sampling = module.diffusion, module.sampling
    try:
        diffusion = DiffusionConfig(options.num_steps, options.schedule, options.target)
        schedule = Schedule.of(diffusion)
        sampler = make_sampler(sampling.sampler, sampling.steps, sampling.eta)
        if sampling.num_samples:
            step_constants(schedule, sampler)
    except ValueError as error:
        raise ConfigError(f"ldm_module: {error}") from error
    if sampling.num_samples and not vae.atom_type_predict:
        raise ConfigError(
            "ldm_module.sampling.num_samples is not 0, but the VAE does not predict atom types: "
            "set it to 0"
        )
    return diffusion, sampler


def _make_loss(ldm: LDMParts, module: ConfigDict, pair_sampler: Sampler | None) -> LossFn:
    augment_options, conditions = augmentation(module.augmentation), ldm.sizes.conditions
    options = module.diffusion

    def loss_fn(params: Any, frozen: Any, key: jax.Array, rows: Rows) -> Any:
        augment_key, drop_key, loss_key = jax.random.split(key, 3)
        estimate_key = jax.random.fold_in(key, 3) if ldm.sizes.self_conditioning else None
        rows = augment(augment_key, rows, augment_options)
        if conditions is not None:
            share, mode = conditions.drop_prob, module.condition_module.drop
            rows = replace(rows, conditions=drop_some(drop_key, rows, share, mode=mode))
        if ldm.sizes.lora is not None:
            params = only_adapters(params)
        terms = ldm_terms(
            ldm,
            params,
            rows,
            frozen=frozen,
            key=loss_key,
            times=options.times,
            posterior_scale=options.posterior_scale,
            weighting=options.weighting,
            estimate_key=estimate_key,
            pair_sampler=pair_sampler,
        )
        means = {name: total / jnp.maximum(count, 1.0) for name, (total, count) in terms.items()}
        return means.pop("total_loss"), means

    return loss_fn


def ldm_terms(
    ldm: LDMParts,
    params: Any,
    rows: Rows,
    *,
    frozen: Mapping[str, Any],
    key: jax.Array,
    times: str = "uniform",
    posterior_scale: float = 1.0,
    weighting: str = "uniform",
    estimate_key: jax.Array | None = None,
    pair_sampler: Sampler | None = None,
) -> Terms:
    """Return sums over crystals of the loss and its terms, with the number of crystals.

    Args:
        ldm: sizes, chain and scale of the latents.
        params: of the denoiser.
        rows: the crystals.
        frozen: parameters of the VAE, and of the teacher with `pair_sampler`.
        key: of latents, times and noise.
        times: distribution of the diffusion times, a name in `diffusion.times.TIMES`.
        posterior_scale: share of the posterior's standard deviation in the latents.
        weighting: of the loss by noise level, a name in `diffusion.weights.WEIGHTINGS`.
        estimate_key: of self-conditioning; see `training_loss`.
        pair_sampler: makes latents of the noise with the teacher, see `reflow`; None takes latents
            of the crystals.
    """
    sample_key, time_key, noise_key = jax.random.split(key, 3)
    width, schedule = ldm.sizes.latent_dim, Schedule.of(ldm.diffusion)
    is_crystal = rows.is_crystal
    if pair_sampler is None:
        posterior = posterior_of(ldm.vae, frozen["vae"], rows)
        drawn = atom_normal(sample_key, rows, width)
        z = ldm.standardise(sample_posterior(posterior, drawn, scale=posterior_scale))
        noise = atom_normal(noise_key, rows, width)
    else:
        noise, z, is_whole = draw_pair(
            ldm, frozen[TEACHER_ITEM], rows, sampler=pair_sampler, key=noise_key
        )
        is_crystal &= is_whole
    z, noise = (jnp.where(rows.is_atom[..., None], values, 0.0) for values in (z, noise))
    draw = jax.vmap(jax.vmap(lambda k: TIMES[times](k, schedule.num_steps)))
    t = draw(crystal_keys(time_key, rows))
    loss, terms = training_loss(
        denoiser(ldm.module(params), ldm.sizes, rows),
        jax.lax.stop_gradient(z),
        t=t,
        noise=noise,
        schedule=schedule,
        rows=rows,
        target=ldm.diffusion.target,
        weighting=weighting,
        estimate_key=estimate_key,
    )
    weights = is_crystal.astype(jnp.float32)
    count = jnp.sum(weights)
    named = {"total_loss": loss, **{f"loss_{name}": value for name, value in terms.items()}}
    return {name: (jnp.sum(value * weights), count) for name, value in named.items()}


def value_names(sizes: DiTSizes, *, num_samples: int) -> tuple[str, ...]:
    """Return the names of the validation values of `_make_validate`."""
    names = ["total_loss", "loss_mse"]
    if sizes.learn_sigma:
        names.append("loss_vb")
    if num_samples:
        names += ["valid_share", "covalent_share"]
    return tuple(f"val/{name}" for name in names)


def _make_validate(
    data: StageData,
    ldm: LDMParts,
    sampler: Sampler,
    *,
    frozen: Mapping[str, Any],
    num_samples: int,
    posterior_scale: float = 1.0,
    pair_sampler: Sampler | None = None,
) -> ValidateFn:
    """Loss over the validation set, always with the same uniform times, weights and noises; with
    `num_samples` also the validity of generated crystals.
    """
    key = named_key(VALIDATION_SEED, "validation")
    jitted = evaluator(
        lambda params, frozen, rows: ldm_terms(
            ldm,
            params,
            rows,
            frozen=frozen,
            key=key,
            posterior_scale=posterior_scale,
            pair_sampler=pair_sampler,
        ),
        data.mesh,
    )
    generator = Generator(ldm, sampler, mesh=data.mesh) if num_samples else None

    def validate(params: Any, _: Mapping[str, Any]) -> Validation:
        batches = (rows for rows, _, _ in data.val_batches())
        sums = sum_terms(jitted(params, frozen, rows) for rows in batches)
        values = {f"val/{name}": total / count for name, (total, count) in sums.items()}
        if generator is not None:
            num_atoms = draw_num_atoms(ldm.size_table, num_samples, VALIDATION_SEED)
            generated = generator.generate(num_atoms, seed=VALIDATION_SEED, params=params).crystals
            values["val/valid_share"] = validity_check(generated).share
            values["val/covalent_share"] = covalent_check(generated).share
        return Validation(values)

    return validate
