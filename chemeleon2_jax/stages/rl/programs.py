"""The programs of reinforcement learning: drawing chains, going over them, updating."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
from jax import stages
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from chemeleon2_jax.diffusion.chain import Trajectory, roll_out
from chemeleon2_jax.diffusion.gaussian import DenoiseFn
from chemeleon2_jax.diffusion.sampler import Sampler
from chemeleon2_jax.diffusion.schedule import Schedule
from chemeleon2_jax.inference.denoiser import denoiser
from chemeleon2_jax.models.lora import only_adapters
from chemeleon2_jax.models.vae import reconstruct
from chemeleon2_jax.pretrained.loading import LDMParts
from chemeleon2_jax.rl.update import Chunk, Objective, Pass, make_pass
from chemeleon2_jax.rows.rows import Rows
from chemeleon2_jax.training.parallel import DATA_AXIS, replicated
from chemeleon2_jax.training.step import Updater

# The last step's standard deviation is 0.01: what a matmul in bfloat16 or TF32 loses is as much as
# the clipping range.
_PRECISION = "highest"


@dataclass(frozen=True)
class Settings:
    """How to roll out and what to update with.

    Attributes:
        sampler: its steps.
        cfg_scale: guidance, where the prompts have conditions.
        objective: weights of the loss.
        group_size: crystals of a prompt.
        norm_in_groups: advantages within each group, or over the rollout.
        seed: of the noise.
        shuffle: give the rewards to the wrong crystals, for a control.
        num_drawn: pictures of so many of the best and worst crystals; 0 is off.
        draw_every: rollouts from picture to picture.
    """

    sampler: Sampler
    cfg_scale: float
    objective: Objective
    group_size: int
    norm_in_groups: bool
    seed: int
    shuffle: bool = False
    num_drawn: int = 0
    draw_every: int = 1


@dataclass(frozen=True)
class Programs:
    """What is compiled.

    Attributes:
        roll_out: (params, vae_params, key, rows) -> (Trajectory, Reconstruction).
        run_pass: (params, reference_params, chunk) -> Pass.
        apply: (state, gradient) -> (state, metrics); the state is donated.
    """

    roll_out: stages.Wrapped
    run_pass: stages.Wrapped
    apply: stages.Wrapped


def make_programs(
    parts: LDMParts, settings: Settings, *, updater: Updater, mesh: Mesh, with_reference: bool
) -> Programs:
    """Prepare the programs of a model; each is compiled once for each shape of the rows."""
    schedule = Schedule.of(parts.diffusion)

    def policy(params: Any, rows: Rows) -> DenoiseFn:
        if parts.sizes.lora is not None:
            params = only_adapters(params)
        return denoiser(parts.module(params), parts.sizes, rows, cfg_scale=settings.cfg_scale)

    def rollout(params: Any, vae_params: Any, key: jax.Array, rows: Rows) -> Any:
        with jax.default_matmul_precision(_PRECISION):
            trajectory = roll_out(
                policy(params, rows),
                key,
                rows,
                schedule=schedule,
                sampler=settings.sampler,
                latent_dim=parts.sizes.latent_dim,
                target=parts.diffusion.target,
            )
            latents = trajectory.states[-1] * parts.latent_std
            return trajectory, reconstruct(parts.vae.module(vae_params).decode(latents, rows), rows)

    pass_fn = make_pass(
        policy,
        schedule=schedule,
        sampler=settings.sampler,
        objective=settings.objective,
        target=parts.diffusion.target,
        reference_fn=policy if with_reference else None,
    )

    def run_pass(params: Any, reference_params: Any, chunk: Chunk) -> Pass:
        with jax.default_matmul_precision(_PRECISION):
            return pass_fn(params, reference_params, chunk)

    whole: Any = replicated(mesh)
    by_step: Any = NamedSharding(mesh, P(None, DATA_AXIS))
    return Programs(
        jax.jit(rollout, out_shardings=(Trajectory(by_step, whole), whole)),
        jax.jit(run_pass, out_shardings=Pass(whole, whole, by_step)),
        jax.jit(updater.apply, donate_argnums=0, out_shardings=whole),
    )
