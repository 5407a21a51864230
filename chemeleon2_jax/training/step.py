"""The compiled training step."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import optax
from jax import stages
from jax.sharding import Mesh

from chemeleon2_jax.training.config import FitConfig
from chemeleon2_jax.training.optim import Schedule, make_optimizer, make_schedule, update_ema
from chemeleon2_jax.training.parallel import replicated
from chemeleon2_jax.training.stage import LossFn, Metrics, PyTree
from chemeleon2_jax.training.state import TrainState


@dataclass(frozen=True)
class Updater:
    """Optimiser, learning rate schedule, gradient clipping and moving average."""

    tx: optax.GradientTransformation
    schedule: Schedule
    gradient_clip_val: float = 0.0
    ema_decay: float = 0.0

    @classmethod
    def from_config(cls, config: FitConfig, *, total_steps: int | None) -> "Updater":
        """Build an updater for a run of `total_steps` updates (None: no limit)."""
        return cls(
            tx=make_optimizer(config.optimizer),
            schedule=make_schedule(
                config.scheduler,
                learning_rate=config.optimizer.lr,
                total_steps=total_steps,
            ),
            gradient_clip_val=config.gradient_clip_val,
            ema_decay=config.ema_decay,
        )

    def apply(self, state: TrainState, gradients: PyTree) -> tuple[TrainState, Metrics]:
        """Return the state after an update, and `grad_norm` (before clipping) and `lr`."""
        norm = optax.tree.norm(gradients)
        if self.gradient_clip_val:
            # optax.clip_by_global_norm rounds otherwise, and runs of earlier versions resume bit
            # for bit. Exactly 1 where nothing is to clip.
            scale = self.gradient_clip_val / jnp.maximum(norm, self.gradient_clip_val)
            gradients = jax.tree.map(lambda g: g * scale.astype(g.dtype), gradients)
        updates, opt_state = self.tx.update(gradients, state.opt_state, state.params)
        rate = self.schedule(state.step) * state.lr_scale
        params = jax.tree.map(lambda p, u: p - rate.astype(p.dtype) * u, state.params, updates)
        ema_params = state.ema_params
        if ema_params is not None:
            ema_params = update_ema(ema_params, params, step=state.step, decay=self.ema_decay)
        state = replace(
            state, step=state.step + 1, params=params, opt_state=opt_state, ema_params=ema_params
        )
        return state, {"grad_norm": norm, "lr": rate}


def make_train_step(loss_fn: LossFn, updater: Updater, *, mesh: Mesh) -> stages.Wrapped:
    """Return the jitted `(state, frozen, batch) -> (state, metrics)`.

    The step donates the state that it is called with. `metrics` are those of the loss function,
    `loss`, `grad_norm` (before clipping) and `lr`. It compiles once for each shape of the batch.
    """

    def train_step(state: TrainState, frozen: PyTree, batch: PyTree) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(state.key, state.step)
        value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, metrics), gradients = value_and_grad(state.params, frozen, step_key, batch)
        state, update_metrics = updater.apply(state, gradients)
        return state, {**metrics, "loss": loss, **update_metrics}

    return jax.jit(train_step, donate_argnums=0, out_shardings=replicated(mesh))


@jax.jit
def all_finite(tree: PyTree) -> jax.Array:
    """Return whether every number in the tree is finite, () bool."""
    leaves = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(leaves)) if leaves else jnp.bool_(True)
