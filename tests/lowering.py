"""Lowers a stage's training step for accelerators that need not be there."""

from collections.abc import Callable
from typing import Any

import jax
from jax import export

from chemeleon2_jax.training.config import FitConfig
from chemeleon2_jax.training.parallel import make_mesh, replicated, sharding_of
from chemeleon2_jax.training.stage import PyTree, Stage
from chemeleon2_jax.training.state import abstract_state
from chemeleon2_jax.training.step import Updater, make_train_step


def lower_train_step(stage: Stage, config: FitConfig, *, platform: str) -> export.Exported:
    """Lower a stage's training step, on its first batch, for 'tpu' or 'cuda'."""
    assert stage.loss_fn is not None
    mesh = make_mesh(1)
    updater = Updater.from_config(config, total_steps=config.max_steps or 1_000)
    state = abstract_state(stage.init_params, updater.tx, ema=config.ema_decay > 0)

    def abstract(tree: PyTree, sharding_fn: Callable[[Any], jax.sharding.Sharding]) -> PyTree:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding_fn(x)), tree
        )

    return export.export(make_train_step(stage.loss_fn, updater, mesh=mesh), platforms=[platform])(
        abstract(state, lambda _: replicated(mesh)),
        abstract(stage.frozen, lambda _: replicated(mesh)),
        abstract(stage.batches.batch(0).arrays, lambda x: sharding_of(x, mesh)),
    )
