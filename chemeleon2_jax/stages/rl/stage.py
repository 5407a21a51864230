"""The reinforcement learning stage: a latent diffusion model is fine-tuned towards rewards.

The step itself is in `rl_step`, what is asked for in `rl_prompts`, what it is worth in
`rl_rewards`. The result is a checkpoint of a latent diffusion model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.crystals.arrays import Crystals
from chemeleon2_jax.data.loader import Loader
from chemeleon2_jax.diffusion.sampler import Sampler
from chemeleon2_jax.diffusion.samplers import make_sampler
from chemeleon2_jax.diffusion.schedule import Schedule
from chemeleon2_jax.inference.generator import Generator, padding
from chemeleon2_jax.inference.requests import Prompts
from chemeleon2_jax.models.abstract import count_parameters
from chemeleon2_jax.models.meta import LDMMeta, ModelMeta
from chemeleon2_jax.pretrained.loading import LDMParts, ldm_of, open_model
from chemeleon2_jax.rl.rollout import drawn_steps
from chemeleon2_jax.rl.update import Objective
from chemeleon2_jax.rows.layout import Layout
from chemeleon2_jax.runs.config import split_names
from chemeleon2_jax.stages.common import make_pool, resumed_from
from chemeleon2_jax.stages.data import load_splits
from chemeleon2_jax.stages.rl.programs import Settings, make_programs
from chemeleon2_jax.stages.rl.requests import (
    FromCrystals,
    FromModel,
    PromptBatches,
    cut,
    sizes_to_plan_for,
)
from chemeleon2_jax.stages.rl.rewards import check_reward_fn, make_reward
from chemeleon2_jax.stages.rl.step import RolloutStep
from chemeleon2_jax.stages.rl.validation import SEED, make_validate, value_names
from chemeleon2_jax.torch_format.model import OpenModel
from chemeleon2_jax.training.parallel import make_mesh, replicate
from chemeleon2_jax.training.stage import Stage, params_and_ema


@dataclass(frozen=True)
class Start:
    """The model that is fine-tuned.

    Attributes:
        parts: with the weights to go on with.
        meta: of its checkpoint.
        reference: weights of the policy to stay near to; {} for none.
    """

    parts: LDMParts
    meta: ModelMeta
    reference: Any


def build_rl(config: ConfigDict, *, resume_dir: Path | None = None) -> Stage:
    """Build the stage; see `stages.build`."""
    module = config.rl_module
    if config.trainer.precision != "f32":
        raise ConfigError(
            "trainer.precision must be f32 here: the log-probabilities of the last steps hang on "
            "the digits that bf16 does not have"
        )
    check_reward_fn(module.reward_fn)
    resumed = resumed_from(resume_dir)
    start = _load_start(module, resumed)
    parts = start.parts
    sampler, settings = _settings(config, parts)
    mesh = make_mesh(config.trainer.num_devices)
    crystals = _load_crystals(config, parts)
    source, val_prompts = _prompts(config, parts, crystals)
    group_size = module.rl_configs.num_group_samples
    batches = _batches(config, source, parts, sampler=sampler, num_devices=mesh.devices.size)
    pool = make_pool(config)
    reward = make_reward(
        module.reward_fn, vae=parts.vae, known=None if crystals is None else crystals[0], pool=pool
    )
    parts = replace(parts, vae=replace(parts.vae, params=replicate(parts.vae.params, mesh)))
    logging.info("DiT with %.1f million parameters", count_parameters(parts.params) / 1e6)
    logging.info(
        "a rollout: %d crystals, %d of each of %d prompts, in %d chunks",
        *(batches.parts[-1].stop, group_size, batches.parts[-1].stop // group_size),
        len(batches.parts),
    )

    def make_step(updater: Any, mesh: Any) -> RolloutStep:
        programs = make_programs(
            parts, settings, updater=updater, mesh=mesh, with_reference=bool(start.reference)
        )
        return RolloutStep(programs, settings, batches=batches, reward=reward, mesh=mesh)

    meta = replace(
        start.meta,
        stage="train_rl",
        ldm=LDMMeta(
            dit=parts.sizes,
            diffusion=parts.diffusion,
            latent_std=parts.latent_std,
            sample_weights="ema" if module.ema.decay > 0 else "raw",
        ),
        config=config.to_dict(),
        validation_floors={},
    )
    extra = {"vae": parts.vae.params} | ({"reference": start.reference} if start.reference else {})
    generator = Generator(
        replace(parts, params=None), sampler, cfg_scale=settings.cfg_scale, mesh=mesh
    )
    return Stage(
        name="train_rl",
        init_params=jax.device_get(parts.params),
        loss_fn=None,
        batches=batches,
        meta=meta.to_json(),
        frozen={"vae": parts.vae.params, "reference": start.reference},
        validate=make_validate(generator, val_prompts, reward),
        validation_state={"floors": resumed.meta.validation_floors if resumed else {}},
        monitor=config.callbacks.model_checkpoint.monitor,
        mode=config.callbacks.model_checkpoint.mode,
        value_names=value_names(split_names(module.reward_fn.components)),
        items=lambda params, ema: {**params_and_ema(params, ema), **extra},
        make_step=make_step,
        updates_per_step=module.rl_configs.num_inner_batch,
        validate_first=True,
        shown={
            "reward/raw_reward": "reward",
            "kl_rollout": "KL",
            "val/valid_share": "valid",
            "val/unique_share": "unique",
        },
    )


def _load_start(module: ConfigDict, resumed: OpenModel | None) -> Start:
    """Open the model to fine-tune, or the one that a run goes on with."""
    with_reference = module.rl_configs.kl_reference == "initial"
    if resumed is not None:
        # A run keeps what it started from, whatever became of the folder that it came from.
        reference = ldm_of(resumed, item="reference").params if with_reference else {}
        return Start(ldm_of(resumed, item="params"), resumed.meta, reference)
    if not module.ldm_ckpt_path:
        raise ConfigError(
            "rl_module.ldm_ckpt_path is empty: give the run folder of a latent diffusion model, "
            "--config.rl_module.ldm_ckpt_path=logs/train_ldm/runs/<run>"
        )
    model = open_model(module.ldm_ckpt_path, vae=module.vae_ckpt_path)
    parts = ldm_of(model)
    return Start(parts, model.meta, parts.params if with_reference else {})


def _settings(config: ConfigDict, parts: LDMParts) -> tuple[Sampler, Settings]:
    module = config.rl_module
    options, sampling = module.rl_configs, module.sampling_configs
    if options.group_reward_norm and options.num_group_samples < 2:
        raise ConfigError(
            "rl_module.rl_configs.group_reward_norm needs groups: set num_group_samples to 2 or "
            "more, or group_reward_norm to false"
        )
    try:
        sampler = make_sampler(sampling.sampler, sampling.sampling_steps, sampling.eta)
        drawn_steps(Schedule.of(parts.diffusion), sampler)  # raises where there are none
    except ValueError as error:
        raise ConfigError(f"rl_module.sampling_configs: {error}") from error
    return sampler, Settings(
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


def _load_crystals(config: ConfigDict, parts: LDMParts) -> tuple[Crystals, Crystals] | None:
    """Training and validation crystals; None where no data is named."""
    if not (config.data.name or config.data.data_dir):
        return None
    known = parts.sizes.conditions.conditions if parts.sizes.conditions else ()
    wanted = () if config.rl_module.conditions else known
    return load_splits(config, [c.name for c in wanted if c.source == "column"])


def _prompts(
    config: ConfigDict, parts: LDMParts, crystals: tuple[Crystals, Crystals] | None
) -> tuple[FromCrystals | FromModel, Prompts]:
    """Where prompts come from, and those of validation."""
    module, count = config.rl_module, config.rl_module.validation.num_samples
    gives_types = not parts.vae.sizes.atom_type_predict
    if module.conditions or crystals is None:
        asked = _read_conditions(module.conditions, parts)
        own = FromModel(parts, asked, config.data.batch_size, config.seed)
        try:
            own(0)
            return own, own.draw(count, SEED)
        except ValueError as error:
            raise ConfigError(f"rl_module.conditions: {error}") from error
    train, val = crystals
    describe = parts.sizes.conditions.encode_crystals if parts.sizes.conditions else None
    # It only chooses crystals: a rollout has rows of its own.
    loader = Loader(train, config.data.batch_size, Layout(()), config.seed)
    source = FromCrystals(loader, describe, gives_types)
    order = np.random.default_rng(SEED).permutation(len(val))
    return source, source.of(val.take(np.resize(order, count)))


def _read_conditions(text: str, parts: LDMParts) -> dict[str, Any]:
    """Read 'name=value', comma-separated."""
    known = {c.name: c for c in parts.sizes.conditions.conditions} if parts.sizes.conditions else {}
    found: dict[str, Any] = {}
    for piece in split_names(text):
        name, equals, value = (part.strip() for part in piece.partition("="))
        if not (name and equals and value) or name in found:
            raise ConfigError(
                f"rl_module.conditions has the part {piece!r}; it is name=value, comma-separated, "
                "each name once"
            )
        # An unknown name is an error of `make_prompts`, which says what there is.
        try:
            found[name] = known[name].read(value) if name in known else value
        except ValueError as error:
            raise ConfigError(f"rl_module.conditions: {error}") from error
    return found


def _batches(
    config: ConfigDict,
    source: FromCrystals | FromModel,
    parts: LDMParts,
    *,
    sampler: Sampler,
    num_devices: int,
) -> PromptBatches:
    module, group_size = config.rl_module, config.rl_module.rl_configs.num_group_samples
    prompts = len(source(0).num_atoms)  # fewer than asked for if there are no more crystals
    try:
        pieces = cut(
            prompts * group_size,
            module.rl_configs.num_inner_batch,
            module.sampling_configs.chunk_size,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    sizes = sizes_to_plan_for(source)
    try:
        padded_tokens = padding(parts, sampler, sizes)
    except ValueError as error:
        raise ConfigError(f"rl_module.sampling_configs.sampler: {error}") from error
    if config.packing.layout == "padded":
        padded_tokens = len(parts.size_table) - 1
    try:
        layout = Layout.plan(
            sizes,
            max(part.stop - part.start for part in pieces),
            num_devices=num_devices,
            row_tokens=config.packing.row_tokens,
            max_shapes=config.packing.max_shapes,
            padded_tokens=padded_tokens,
            copies=group_size,
        )
    except ValueError as error:
        raise ConfigError(f"packing: {error}") from error
    return PromptBatches(source, group_size, pieces, layout)
