import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_stage import ToyBatches, loss_fn, same_trees, toy_stage

from chemeleon2_jax.training.config import FitConfig, OptimizerConfig
from chemeleon2_jax.training.parallel import make_mesh, replicate, shard_batch
from chemeleon2_jax.training.state import init_state
from chemeleon2_jax.training.step import Updater, make_train_step
from tests.lowering import lower_train_step

CONFIG = FitConfig(
    max_steps=4,
    gradient_clip_val=0.5,
    ema_decay=0.99,
    optimizer=OptimizerConfig(lr=0.01, weight_decay=0.1),
)


def test_one_step_equals_its_definition_and_keeps_the_initial_parameters() -> None:
    stage, mesh = toy_stage(), make_mesh(1)
    updater = Updater.from_config(CONFIG, total_steps=4)
    state = init_state(stage.init_params, updater.tx, seed=3, ema=True, mesh=mesh)
    batch = ToyBatches().batch(0).arrays
    key = jax.random.fold_in(jax.random.key(3), 0)
    (loss, _), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
        stage.init_params, stage.frozen, key, batch
    )
    step = make_train_step(stage.loss_fn, updater, mesh=mesh)
    donated = state.params["out"]
    state, metrics = step(state, replicate(stage.frozen, mesh), shard_batch(batch, mesh))

    assert donated.is_deleted()
    assert not stage.init_params["out"].is_deleted()
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(gradients)))
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    assert norm > CONFIG.gradient_clip_val  # the metric is the norm before clipping
    assert set(metrics) == {"loss", "abs_error", "grad_norm", "lr"}
    # Adam's first update is the sign of the gradient, of any scale.
    before, gradient = stage.init_params["out"], gradients["out"]
    expected = before - 0.01 * (jnp.sign(gradient) + 0.1 * before)
    np.testing.assert_allclose(state.params["out"], expected, rtol=1e-4, atol=1e-6)
    average = before + 0.9 * (expected - before)
    np.testing.assert_allclose(state.ema_params["out"], average, rtol=1e-4, atol=1e-6)
    assert int(state.step) == 1


def test_compiles_once_for_each_shape() -> None:
    stage, mesh = toy_stage(), make_mesh(1)
    updater = Updater.from_config(CONFIG, total_steps=4)
    state = init_state(stage.init_params, updater.tx, seed=0, ema=True, mesh=mesh)
    step = make_train_step(stage.loss_fn, updater, mesh=mesh)
    frozen = replicate(stage.frozen, mesh)
    source = ToyBatches(alternate=True)
    for index in range(6):
        state, _ = step(state, frozen, shard_batch(source.batch(index).arrays, mesh))
    assert step._cache_size() == 2


def test_a_metric_named_loss_does_not_replace_the_loss() -> None:
    def named_loss(params, frozen, key, batch):
        loss, _ = loss_fn(params, frozen, key, batch)
        return loss, {"loss": loss * 0.0}

    stage, mesh = toy_stage(loss_fn=named_loss), make_mesh(1)
    updater = Updater.from_config(CONFIG, total_steps=4)
    state = init_state(stage.init_params, updater.tx, seed=0, ema=False, mesh=mesh)
    batch = shard_batch(ToyBatches().batch(0).arrays, mesh)
    _, metrics = make_train_step(named_loss, updater, mesh=mesh)(
        state, replicate(stage.frozen, mesh), batch
    )
    assert float(metrics["loss"]) > 0.0


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_lowers_for_accelerators(platform: str) -> None:
    exported = lower_train_step(toy_stage(), CONFIG, platform=platform)
    assert exported.platforms == (platform,)
    assert "stablehlo" in exported.mlir_module()


def test_seeds_differ() -> None:
    stage, mesh = toy_stage(), make_mesh(1)
    updater = Updater.from_config(CONFIG, total_steps=4)
    frozen = replicate(stage.frozen, mesh)
    batch = ToyBatches().batch(0).arrays
    step = make_train_step(stage.loss_fn, updater, mesh=mesh)
    results = []
    for seed in (0, 0, 1):
        state = init_state(stage.init_params, updater.tx, seed=seed, ema=False, mesh=mesh)
        results.append(step(state, frozen, shard_batch(batch, mesh))[0].params)
    assert same_trees(results[0], results[1])
    assert not same_trees(results[0], results[2])


def test_more_devices_than_there_are() -> None:
    with pytest.raises(ValueError, match="num_devices is 1000"):
        make_mesh(1000)
