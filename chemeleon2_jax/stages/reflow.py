"""Distillation of a flow model to a few steps: it learns from its own pairs of noise and latents.

A flow model learns the velocities of straight lines between noise and data that were drawn apart.
Their lines cross, so that the paths of its ODE are curved. Latents that the trained model, the
teacher, makes of a noise belong to that noise, and lines between such pairs hardly cross: the
student that learns their velocities has almost straight paths, and one to four steps of Euler's
method follow them (reflow, Liu et al. 2023, section 2.2). It stays a flow model like any other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.diffusion.chain import initial_noise, sample_chain
from chemeleon2_jax.diffusion.sampler import Sampler, step_constants
from chemeleon2_jax.diffusion.samplers import make_sampler
from chemeleon2_jax.diffusion.schedule import Schedule
from chemeleon2_jax.inference.denoiser import denoiser
from chemeleon2_jax.models.sizes import DiffusionConfig
from chemeleon2_jax.pretrained.loading import LDMParts, ldm_of
from chemeleon2_jax.rows.rows import Rows, mean_over_crystal, slot_matrix
from chemeleon2_jax.stages.common import resumed_from

TEACHER_ITEM = "teacher"
"""Item of the checkpoint with the teacher's weights, for a run to resume."""


def read_sampler(module: ConfigDict, diffusion: DiffusionConfig) -> Sampler | None:
    """Read the sampler of the teacher off `ldm_module.reflow`; None without reflow.

    Raises:
        ConfigError: a wrong sampler, or a model that is no flow.
    """
    options = module.reflow
    if not options.steps:
        return None
    if diffusion.target != "flow":
        raise ConfigError(
            f"ldm_module.reflow straightens the paths of flow models; diffusion.target is "
            f"{diffusion.target!r}, so set ldm_module.reflow.steps to 0"
        )
    try:
        sampler = make_sampler(options.sampler, options.steps, 0.0)
        step_constants(Schedule.of(diffusion), sampler)
    except ValueError as error:
        raise ConfigError(f"ldm_module.reflow: {error}") from error
    if sampler.num_drawn:
        raise ConfigError(
            f"ldm_module.reflow.sampler is {options.sampler!r}, which draws noise: latents belong "
            "to their first noise only along a deterministic chain"
        )
    return sampler


def open_teacher(start_params: Any, *, has_start: bool, resume_dir: Path | None) -> Any:
    """Return the teacher's weights: those that the run started from.

    Args:
        start_params: first weights of the run.
        has_start: whether these are those of a trained model.
        resume_dir: folder of a run to resume, if any.

    Raises:
        ConfigError: there is no trained model to start from.
    """
    resumed = resumed_from(resume_dir)
    if resumed is not None:
        return ldm_of(resumed, item=TEACHER_ITEM).params
    if not has_start:
        raise ConfigError(
            "ldm_module.reflow learns from a trained flow model: give its run folder as "
            "ldm_module.ldm_ckpt_path, or set ldm_module.reflow.steps to 0"
        )
    return jax.tree.map(jnp.copy, start_params)  # training donates the others


def draw_pair(
    ldm: LDMParts, params: Any, rows: Rows, *, sampler: Sampler, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return a noise and the latents, standardised, that a teacher makes of it, (R, T, L) each, and
    (R, S) whether it made any: a crystal at which the chain failed has latents 0.

    Args:
        ldm: sizes and chain, which teacher and student share.
        params: of the teacher.
        rows: sizes, atom types and conditions of the crystals.
        sampler: of the teacher's chain.
        key: of the noise.
    """
    latents = sample_chain(
        denoiser(ldm.module(params), ldm.sizes, rows, cfg_scale=1.0),
        key,
        rows,
        schedule=Schedule.of(ldm.diffusion),
        sampler=sampler,
        latent_dim=ldm.sizes.latent_dim,
        target=ldm.diffusion.target,
        self_conditioning=ldm.sizes.self_conditioning,
    )
    noise = initial_noise(key, rows, ldm.sizes.latent_dim)
    failed = jnp.isnan(latents).any(-1, keepdims=True).astype(jnp.float32)  # (R, T, 1)
    is_whole = mean_over_crystal(rows, slot_matrix(rows), failed)[..., 0] == 0
    return noise, jnp.nan_to_num(latents), is_whole
