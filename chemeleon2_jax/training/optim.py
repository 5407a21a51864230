"""Optimisers, learning rate schedules, gradient clipping and the moving average."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from chemeleon2_jax.common.errors import SettingsError
from chemeleon2_jax.training.config import OptimizerConfig, SchedulerConfig

PyTree = Any
Schedule = Callable[[jax.Array], jax.Array]


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Return the optimiser without a learning rate: the step multiplies updates by -lr."""

    adam = optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.eps)
    if not config.weight_decay:
        return optax.chain(adam)
    decay = optax.add_decayed_weights(config.weight_decay)
    return optax.chain(adam, decay) if config.name == "adamw" else optax.chain(decay, adam)


def make_schedule(
    config: SchedulerConfig, *, learning_rate: float, total_steps: int | None
) -> Schedule:
    """Return the learning rate as a function of the update (from 0).

    optax's schedules differ in the last bit, and runs of earlier versions resume bit for bit.

    Raises:
        SettingsError: a cosine in a run without a limit, or a warm-up as long as the cosine.
    """
    horizon = config.decay_steps or total_steps or 0
    if config.name == "cosine" and horizon <= config.warmup_steps:
        raise SettingsError(
            f"scheduler.warmup_steps is {config.warmup_steps}, but the cosine ends at step "
            f"{horizon}: set scheduler.decay_steps, trainer.max_steps or trainer.max_epochs, "
            "longer than the warm-up"
        )

    def schedule(step: jax.Array) -> jax.Array:
        step = step.astype(jnp.float32)
        rate = jnp.float32(learning_rate)
        if config.name == "cosine":
            done = jnp.clip((step - config.warmup_steps) / (horizon - config.warmup_steps), 0, 1)
            cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * done))
            rate = rate * (config.final_factor + (1.0 - config.final_factor) * cosine)
        if config.warmup_steps:
            rate = rate * jnp.minimum(1.0, (step + 1.0) / config.warmup_steps)
        return rate

    return schedule


def update_ema(ema_params: PyTree, params: PyTree, *, step: jax.Array, decay: float) -> PyTree:
    """Return the moving average after update number `step` (from 0).

    The decay is min(decay, (1 + step) / (10 + step)), so that the average of a short run is not
    that of its start.
    """
    step = step.astype(jnp.float32)
    weight = 1.0 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda e, p: e + weight.astype(e.dtype) * (p - e), ema_params, params)
