"""The compiled functions of reinforcement learning: rollout, pass over a chunk, update."""

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

# The last step's standard deviation is 0.01: a matmul in bfloat16 or TF32 moves log p by as much as
# the clipping range.
_PRECISION = "highest"


@dataclass(frozen=True)
class Settings:
    """Settings of rollouts and updates.

    Attributes:
        sampler: of the chains.
        cfg_scale: strength of the guidance, where the prompts have conditions.
        objective: weights of the loss.
        group_size: crystals of a prompt.
        norm_in_groups: standardise advantages within each group, not over the rollout.
        seed: of the noise and of `shuffle`.
        shuffle: give the rewards to other crystals, of the same group with `norm_in_groups`, as a
            control.
        num_drawn: best and worst crystals in a picture; 0 draws none.
        draw_every: rollouts between pictures.
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
    """Compiled functions of a stage.

    Attributes:
        roll_out: (params, vae_params, key, rows) -> (Trajectory, Reconstruction).
        run_pass: (params, reference_params, chunk) -> Pass.
        apply: (state, gradient) -> (state, metrics); the state is donated.
    """

    roll_out: stages.Wrapped
    run_pass: stages.Wrapped
    apply: stages.Wrapped


def make_programs(
    ldm: LDMParts, settings: Settings, *, updater: Updater, mesh: Mesh, with_reference: bool
) -> Programs:
    """Return the programs of a model; each is compiled once for each shape of the rows."""
    schedule = Schedule.of(ldm.diffusion)

    def policy(params: Any, rows: Rows) -> DenoiseFn:
        if ldm.sizes.lora is not None:
            params = only_adapters(params)
        return denoiser(ldm.module(params), ldm.sizes, rows, cfg_scale=settings.cfg_scale)

    def rollout(params: Any, vae_params: Any, key: jax.Array, rows: Rows) -> Any:
        with jax.default_matmul_precision(_PRECISION):
            trajectory = roll_out(
                policy(params, rows),
                key,
                rows,
                schedule=schedule,
                sampler=settings.sampler,
                latent_dim=ldm.sizes.latent_dim,
                target=ldm.diffusion.target,
            )
            latents = ldm.restore(trajectory.states[-1])
            return trajectory, reconstruct(ldm.vae.module(vae_params).decode(latents, rows), rows)

    pass_fn = make_pass(
        policy,
        schedule=schedule,
        sampler=settings.sampler,
        objective=settings.objective,
        target=ldm.diffusion.target,
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
