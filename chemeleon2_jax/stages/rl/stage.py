"""The reinforcement learning stage: a latent diffusion model is fine-tuned towards rewards.

Beside this file: `requests` (prompts and their rows), `programs` (compiled functions), `step` (one
rollout and its updates), `rewards` (reward functions from the config), `validation`. The result is
a checkpoint of a latent diffusion model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.diffusion.samplers import make_sampler
from chemeleon2_jax.diffusion.schedule import Schedule
from chemeleon2_jax.inference.generator import Generator
from chemeleon2_jax.models.meta import ModelMeta
from chemeleon2_jax.pretrained.loading import LDMParts, ldm_of
from chemeleon2_jax.rl.rollout import drawn_steps
from chemeleon2_jax.rl.update import Objective
from chemeleon2_jax.runs.config import split_names
from chemeleon2_jax.stages.common import (
    items_with,
    ldm_meta,
    log_size,
    make_pool,
    make_stage,
    open_start,
    resumed_from,
)
from chemeleon2_jax.stages.data import digest_splits
from chemeleon2_jax.stages.rl.programs import Settings, make_programs
from chemeleon2_jax.stages.rl.requests import (
    PromptBatches,
    example_conditions,
    load_crystals,
    plan_batches,
    read_prompts,
)
from chemeleon2_jax.stages.rl.rewards import check_reward_fn, make_reward
from chemeleon2_jax.stages.rl.step import RolloutStep
from chemeleon2_jax.stages.rl.validation import make_validate, value_names
from chemeleon2_jax.training.parallel import make_mesh, replicate
from chemeleon2_jax.training.stage import Stage
from chemeleon2_jax.training.step import Updater


@dataclass(frozen=True)
class Start:
    """The model to fine-tune.

    Attributes:
        ldm: with its first weights.
        meta: of its checkpoint.
        reference: weights of the policy that the KL term refers to; {} for none.
        floors: of the first validation, where the checkpoint has them in its meta.
    """

    ldm: LDMParts
    meta: ModelMeta
    reference: Any
    floors: Mapping[str, float]


def build_rl(config: ConfigDict, *, resume_dir: Path | None = None) -> Stage:
    """Build the stage; see `stages.build`."""
    module = config.rl_module
    _check_settings(config)
    start = _open_start(module, resume_dir)
    if start.ldm.sizes.self_conditioning:
        raise ConfigError(
            "rl_module.ldm_ckpt_path names a model with self-conditioning: its steps depend on "
            "earlier ones, so that a state alone has no probability; take a model without it"
        )
    settings = _read_settings(config, start.ldm)
    mesh = make_mesh(config.trainer.num_devices)
    crystals = load_crystals(config, start.ldm)
    source, val_prompts = read_prompts(config, start.ldm, crystals)
    batches = plan_batches(
        config, source, start.ldm, sampler=settings.sampler, num_devices=mesh.devices.size
    )
    known = None if crystals is None else crystals[0]
    reward = make_reward(module.reward_fn, vae=start.ldm.vae, known=known, pool=make_pool(config))
    vae = replace(start.ldm.vae, params=replicate(start.ldm.vae.params, mesh))
    ldm = replace(start.ldm, params=None, vae=vae)
    generator = Generator(ldm, settings.sampler, cfg_scale=settings.cfg_scale, mesh=mesh)
    _log_sizes(start.ldm, batches)

    def make_step(updater: Updater, mesh: Mesh) -> RolloutStep:
        programs = make_programs(
            ldm, settings, updater=updater, mesh=mesh, with_reference=bool(start.reference)
        )
        return RolloutStep(programs, settings, batches=batches, reward=reward, mesh=mesh)

    meta = replace(
        start.meta,
        stage="train_rl",
        ldm=ldm_meta(ldm, module.ema),
        config=config.to_dict(),
        data={} if crystals is None else digest_splits(*crystals),
        validation_floors={},
    )
    reference = {"reference": start.reference} if start.reference else {}
    return make_stage(
        config,
        meta,
        params=start.ldm.params,
        loss_fn=None,
        make_step=make_step,
        updates_per_step=batches.num_mini_batches,
        batches=batches,
        frozen={"vae": vae.params, "reference": start.reference},
        validate=make_validate(generator, val_prompts, reward),
        validate_first=True,
        validation_state={"floors": dict(start.floors)},
        value_names=value_names(split_names(module.reward_fn.components)),
        items=items_with(vae=vae.params, **reference),
        shown={
            "reward/raw_reward": "reward",
            "kl_rollout": "KL",
            "val/valid_share": "valid",
            "val/unique_share": "unique",
        },
        examples=example_conditions(config, start.ldm, known),
    )


def _log_sizes(ldm: LDMParts, batches: PromptBatches) -> None:
    log_size("DiT", ldm.params)
    logging.info(
        "a rollout: %d crystals, %d of each of %d prompts, in %d chunks",
        *(batches.num_crystals, batches.group_size),
        *(batches.num_crystals // batches.group_size, len(batches.chunks)),
    )


def _check_settings(config: ConfigDict) -> None:
    """Check what needs no model, before one is opened."""
    options = config.rl_module.rl_configs
    if config.trainer.precision != "f32":
        raise ConfigError(
            "trainer.precision must be f32 for RL: bf16 lacks digits that the log-probabilities of "
            "the last steps need"
        )
    if options.group_reward_norm and options.num_group_samples < 2:
        raise ConfigError(
            "rl_module.rl_configs.group_reward_norm needs groups: set num_group_samples to 2 or "
            "more, or group_reward_norm to false"
        )
    check_reward_fn(config.rl_module.reward_fn)


def _open_start(module: ConfigDict, resume_dir: Path | None) -> Start:
    """Open the model that `rl_module` names; a run to resume keeps its own."""
    with_reference = module.rl_configs.kl_reference == "initial"
    resumed = resumed_from(resume_dir)
    if resumed is not None:
        reference = ldm_of(resumed, item="reference").params if with_reference else {}
        ldm = ldm_of(resumed, item="params")
        return Start(ldm, resumed.meta, reference, resumed.meta.validation_floors)
    model = open_start(
        module.ldm_ckpt_path,
        key="rl_module.ldm_ckpt_path",
        stage="train_ldm",
        vae=module.vae_ckpt_path,
    )
    ldm = ldm_of(model)
    return Start(ldm, model.meta, ldm.params if with_reference else {}, floors={})


def _read_settings(config: ConfigDict, ldm: LDMParts) -> Settings:
    module = config.rl_module
    options, sampling = module.rl_configs, module.sampling_configs
    try:
        sampler = make_sampler(sampling.sampler, sampling.sampling_steps, sampling.eta)
        drawn_steps(Schedule.of(ldm.diffusion), sampler)  # raises where no step draws
    except ValueError as error:
        raise ConfigError(f"rl_module.sampling_configs: {error}") from error
    return Settings(
        sampler=sampler,
        cfg_scale=sampling.cfg_scale,
        objective=Objective(options.clip_ratio, options.kl_weight, options.entropy_weight),
        group_size=options.num_group_samples,
        norm_in_groups=options.group_reward_norm,
        seed=config.seed,
        shuffle=module.reward_fn.shuffle,
        num_drawn=module.validation.num_drawn,
        draw_every=module.validation.draw_every_n_steps,
    )
