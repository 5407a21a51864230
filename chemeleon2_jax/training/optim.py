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


_RMS = 0.2
"""Root mean square of Muon's updates, about that of AdamW's (Liu et al. 2025, eq. 4)."""


def _muon(c: OptimizerConfig) -> optax.GradientTransformation:
    return optax.contrib.muon(
        1.0,
        weight_decay=c.weight_decay,
        adam_b1=c.beta1,
        adam_b2=c.beta2,
        adam_weight_decay=c.weight_decay,
        eps=c.eps,
        consistent_rms=_RMS,
    )


_BY_NAME: dict[str, Callable[[OptimizerConfig], optax.GradientTransformation]] = {
    "nadamw": lambda c: optax.nadamw(1.0, c.beta1, c.beta2, c.eps, weight_decay=c.weight_decay),
    "lamb": lambda c: optax.lamb(1.0, c.beta1, c.beta2, c.eps, weight_decay=c.weight_decay),
    "lion": lambda c: optax.lion(1.0, c.beta1, c.beta2, weight_decay=c.weight_decay),
    "adan": lambda c: optax.adan(1.0, weight_decay=c.weight_decay),
    "muon": _muon,
}


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Return the optimiser without a learning rate: the step multiplies updates by -lr."""
    if config.name not in ("adam", "adamw"):
        # optax returns what is to be added; the step subtracts.
        return optax.chain(_BY_NAME[config.name](config), optax.scale(-1.0))
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
