from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from chemeleon2_jax.common.errors import SettingsError
from chemeleon2_jax.training.config import (
    EarlyStoppingConfig,
    FitConfig,
    OptimizerConfig,
    SchedulerConfig,
)
from chemeleon2_jax.training.optim import make_optimizer, make_schedule, update_ema
from chemeleon2_jax.training.patience import watch_validation
from chemeleon2_jax.training.progress import Progress
from chemeleon2_jax.training.state import create_state
from chemeleon2_jax.training.step import Updater


def rates(config: SchedulerConfig, steps: list[int], total_steps: int | None = 10) -> list[float]:
    schedule = make_schedule(config, learning_rate=2.0, total_steps=total_steps)
    return [float(schedule(jnp.int32(step))) for step in steps]


def test_constant_schedule() -> None:
    assert rates(SchedulerConfig(), [0, 7, 1000], None) == [2.0, 2.0, 2.0]


def test_warmup_is_linear_and_its_first_step_moves() -> None:
    config = SchedulerConfig(name="warmup_linear", warmup_steps=4)
    np.testing.assert_allclose(rates(config, [0, 1, 3, 4, 9]), [0.5, 1.0, 2.0, 2.0, 2.0])


def test_cosine_against_hand_values() -> None:
    # Warm-up over 2 of 10 steps, then half a cosine over the other 8 down to a tenth.
    config = SchedulerConfig(name="cosine", warmup_steps=2, final_factor=0.1)
    quarter = 2.0 * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi / 4)))
    np.testing.assert_allclose(
        rates(config, [0, 1, 2, 4, 6, 10, 50]), [1.0, 2.0, 2.0, quarter, 1.1, 0.2, 0.2], rtol=1e-6
    )


def test_cosine_has_its_own_horizon_and_needs_one() -> None:
    config = SchedulerConfig(name="cosine", decay_steps=4)
    np.testing.assert_allclose(rates(config, [2, 4], None), [1.0, 0.0], atol=1e-6)
    with pytest.raises(SettingsError, match=r"trainer\.max_steps"):
        rates(SchedulerConfig(name="cosine"), [0], None)
    with pytest.raises(SettingsError, match=r"scheduler\.warmup_steps is 10, .* ends at step 10"):
        rates(SchedulerConfig(name="cosine", warmup_steps=10), [0])


def test_plateau_lowers_the_rate_after_more_than_patience_bad_validations() -> None:
    config = FitConfig(
        optimizer=OptimizerConfig(lr=1.0),
        scheduler=SchedulerConfig(
            name="plateau", factor=0.5, patience=1, threshold=0.1, min_lr=0.3
        ),
    )
    progress, scale, scales = Progress(monitor="val"), 1.0, []
    # 0.95 is less than 10 % better than 1.0, and so is no improvement; 0.8 is one.
    for value in [1.0, 0.95, 0.95, 0.8, 0.8, 0.8, float("nan"), 0.8]:
        progress = progress.after_validation({"val": value}, state={})
        progress, scale = watch_validation(progress, scale, config=config)
        scales.append(scale)
    assert scales == [1.0, 1.0, 0.5, 0.5, 0.5, 0.3, 0.3, 0.3]


def test_early_stopping_of_a_maximum() -> None:
    stopping = EarlyStoppingConfig(patience=2, monitor="other", mode="max", min_delta=0.5)
    progress = Progress(monitor="val", mode="min")
    for value, num_bad in [(float("nan"), 1), (1.0, 0), (1.4, 1), (1.6, 0), (1.0, 1)]:
        progress = progress.after_validation({"val": 0.0, "other": value}, state={})
        progress, scale = watch_validation(progress, 0.7, config=FitConfig(early_stopping=stopping))
        assert (progress.early_stopping.num_bad, scale) == (num_bad, 0.7)
    assert progress.early_stopping.best == 1.6


@pytest.mark.parametrize(
    ("name", "expected_fn"),
    [
        ("adamw", lambda: optax.adamw(0.01, b1=0.8, b2=0.9, eps=1e-6, weight_decay=0.1)),
        (
            "adam",
            lambda: optax.chain(
                optax.add_decayed_weights(0.1), optax.adam(0.01, b1=0.8, b2=0.9, eps=1e-6)
            ),
        ),
        ("nadamw", lambda: optax.nadamw(0.01, b1=0.8, b2=0.9, eps=1e-6, weight_decay=0.1)),
        ("lamb", lambda: optax.lamb(0.01, b1=0.8, b2=0.9, eps=1e-6, weight_decay=0.1)),
        ("lion", lambda: optax.lion(0.01, b1=0.8, b2=0.9, weight_decay=0.1)),
        ("adan", lambda: optax.adan(0.01, weight_decay=0.1)),
    ],
)
def test_optimizer_by_name_equals_optax(name: str, expected_fn) -> None:
    config = OptimizerConfig(name=name, lr=0.01, weight_decay=0.1, beta1=0.8, beta2=0.9, eps=1e-6)
    params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array(3.0)}
    gradients = {"a": jnp.array([0.5, 0.1]), "b": jnp.array(-1.0)}
    optimizer, reference = make_optimizer(config), expected_fn()
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    expected, _ = reference.update(gradients, reference.init(params), params)
    for update, want in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(-0.01 * update, want, rtol=1e-6)


def test_muon_orthogonalises_matrices_and_leaves_the_rest_to_nadamw() -> None:
    config = OptimizerConfig(name="muon", beta1=0.8, beta2=0.9, eps=1e-6)
    rng = np.random.default_rng(0)
    params = {"bias": jnp.zeros(3), "kernel": jnp.zeros((48, 16))}
    gradients = {
        "bias": jnp.array([0.5, -0.1, 2.0]),
        "kernel": jnp.asarray(rng.normal(size=(48, 16)) * np.geomspace(1, 1e-2, 16), jnp.float32),
    }
    optimizer = make_optimizer(config)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    nadamw = make_optimizer(replace(config, name="nadamw"))
    expected, _ = nadamw.update(gradients, nadamw.init(params), params)
    np.testing.assert_allclose(updates["bias"], expected["bias"], rtol=1e-5)
    before, after = (
        np.linalg.svd(np.asarray(matrix), compute_uv=False)
        for matrix in (gradients["kernel"], updates["kernel"])
    )
    assert before[0] / before[-1] > 50
    # All directions move alike, and in the root mean square as far as with AdamW.
    assert after[0] / after[-1] < 2.5
    rms = float(jnp.sqrt(jnp.mean(updates["kernel"] ** 2)))
    assert rms == pytest.approx(0.2, rel=0.3)
    assert float(jnp.sum(updates["kernel"] * gradients["kernel"])) > 0  # the step subtracts


@pytest.mark.parametrize(("max_norm", "clipped_norm"), [(1.0, 1.0), (5.0, 5.0), (0.0, 5.0)])
def test_clipping_by_global_norm(max_norm: float, clipped_norm: float) -> None:
    gradients = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}
    updater = Updater(optax.identity(), lambda step: jnp.float32(1.0), gradient_clip_val=max_norm)
    zeros = jax.tree.map(jnp.zeros_like, gradients)
    state = create_state(zeros, updater.tx, seed=0, ema=False)
    state, metrics = updater.apply(state, gradients)
    assert float(metrics["grad_norm"]) == 5.0  # before clipping
    if clipped_norm == 5.0:
        jax.tree.map(lambda p, g: np.testing.assert_array_equal(p, -g), state.params, gradients)
    np.testing.assert_allclose(optax.tree.norm(state.params), clipped_norm, rtol=1e-6)


def test_ema_warms_up() -> None:
    # Update 0 has decay 1/10, update 1 has 2/11, a late one the full decay.
    ema = update_ema(jnp.array(0.0), jnp.array(1.0), step=jnp.int32(0), decay=0.9)
    assert float(ema) == pytest.approx(0.9)
    ema = update_ema(ema, jnp.array(2.0), step=jnp.int32(1), decay=0.9)
    assert float(ema) == pytest.approx(0.9 * 2 / 11 + 2.0 * 9 / 11)
    ema = update_ema(jnp.array(0.0), jnp.array(1.0), step=jnp.int32(10_000), decay=0.9)
    assert float(ema) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: OptimizerConfig(name="sgd"),
        lambda: OptimizerConfig(beta2=1.0),
        lambda: SchedulerConfig(name="cosin"),
        lambda: SchedulerConfig(name="plateau", factor=1.0),
        lambda: SchedulerConfig(name="plateau", mode="least"),
        lambda: FitConfig(max_steps=-1),
        lambda: FitConfig(log_every_n_steps=0),
        lambda: FitConfig(ema_decay=1.0),
    ],
)
def test_settings_out_of_range_are_errors(wrong) -> None:
    with pytest.raises(ValueError, match=r"is none of|betas|between|or more|in \[0, 1\)"):
        wrong()


def test_run_length_is_the_shorter_limit() -> None:
    assert FitConfig(max_steps=10, max_epochs=3).total_steps(4) == 10
    assert FitConfig(max_steps=20, max_epochs=3).total_steps(4) == 12
    assert FitConfig().total_steps(4) is None
