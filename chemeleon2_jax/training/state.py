"""The state of a training run on the devices: one frozen pytree."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from chemeleon2_jax.training.checkpoint_reader import Checkpoint
from chemeleon2_jax.training.parallel import replicate, replicated

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Argument and result of a training step.

    Attributes:
        step: () int32, updates done.
        params: trainable parameters.
        opt_state: the optimiser's moments.
        ema_params: moving average of `params`; None where EMA is off.
        key: root random key of the run; the key of a step is `fold_in(key, step)`.
        lr_scale: () float32, factor on the learning rate, which the plateau scheduler lowers.
    """

    step: jax.Array
    params: PyTree
    opt_state: PyTree
    ema_params: PyTree | None
    key: jax.Array
    lr_scale: jax.Array


def create_state(
    init_params: PyTree, tx: optax.GradientTransformation, *, seed: int, ema: bool
) -> TrainState:
    """Return the state at step 0, with copies of the parameters: a step donates its state."""
    return TrainState(
        step=jnp.int32(0),
        params=jax.tree.map(jnp.copy, init_params),
        opt_state=tx.init(init_params),
        # Another copy: a donated state must not hold a buffer twice.
        ema_params=jax.tree.map(jnp.copy, init_params) if ema else None,
        key=jax.random.key(seed),
        lr_scale=jnp.float32(1.0),
    )


def init_state(
    init_params: PyTree, tx: optax.GradientTransformation, *, seed: int, ema: bool, mesh: Mesh
) -> TrainState:
    """Return the state at step 0 on every device of the mesh."""

    def init(params: PyTree) -> TrainState:
        return create_state(params, tx, seed=seed, ema=ema)

    return jax.jit(init, out_shardings=replicated(mesh))(replicate(init_params, mesh))


def abstract_state(
    init_params: PyTree, tx: optax.GradientTransformation, *, ema: bool
) -> TrainState:
    """Return shapes and dtypes of a state without computing it."""
    return jax.eval_shape(lambda params: create_state(params, tx, seed=0, ema=ema), init_params)


def train_item(state: TrainState) -> dict[str, PyTree]:
    """Return the item of a checkpoint that, with the parameters, makes a resume exact."""
    return {
        "step": state.step,
        "opt_state": state.opt_state,
        "key": jax.random.key_data(state.key),
        "lr_scale": state.lr_scale,
    }


def restore_state(checkpoint: Checkpoint, target: TrainState, *, mesh: Mesh) -> TrainState:
    """Return the state of a checkpoint on every device of the mesh.

    Args:
        checkpoint: of a run.
        target: shapes of the state (`abstract_state`).
        mesh: any devices, whatever those of the run that saved the checkpoint.

    Raises:
        CheckpointError: the checkpoint is broken, or of another model or optimiser.
    """
    train = checkpoint.restore("train", jax.eval_shape(train_item, target))
    has_ema = target.ema_params is not None
    state = TrainState(
        step=train["step"],
        params=checkpoint.restore("params", target.params),
        opt_state=train["opt_state"],
        ema_params=checkpoint.restore("ema", target.ema_params) if has_ema else None,
        key=train["key"],
        lr_scale=train["lr_scale"],
    )
    state = replicate(state, mesh)
    # Numbers, unlike keys, can be put on the devices of several hosts.
    key = jax.jit(jax.random.wrap_key_data, out_shardings=replicated(mesh))(state.key)
    return dataclasses.replace(state, key=key)
