import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from chemeleon2_jax.common.errors import SettingsError
from chemeleon2_jax.training import patience as monitors
from chemeleon2_jax.training.config import (
    EarlyStoppingConfig,
    FitConfig,
    OptimizerConfig,
    SchedulerConfig,
)
from chemeleon2_jax.training.optim import (
    clip_by_norm,
    global_norm,
    make_optimizer,
    make_schedule,
    update_ema,
)


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
    config = SchedulerConfig(name="cosine", total_steps=4)
    np.testing.assert_allclose(rates(config, [2, 4], None), [1.0, 0.0], atol=1e-6)
    with pytest.raises(SettingsError, match=r"trainer\.max_steps"):
        rates(SchedulerConfig(name="cosine"), [0], None)
    with pytest.raises(SettingsError, match=r"scheduler\.warmup_steps is 10, .* ends at step 10"):
        rates(SchedulerConfig(name="cosine", warmup_steps=10), [0])


def test_plateau_lowers_the_rate_after_more_than_patience_bad_validations() -> None:
    config = SchedulerConfig(name="plateau", factor=0.5, patience=1, threshold=0.1, min_lr=0.3)
    watcher, scale = monitors.plateau(config, mode="min"), 1.0
    scales = []
    # 0.95 is less than 10 % better than 1.0, and so is no improvement; 0.8 is one.
    for value in [1.0, 0.95, 0.95, 0.8, 0.8, 0.8, float("nan"), 0.8]:
        watcher, scale = monitors.reduce_on_plateau(
            watcher.update(value), scale, config=config, learning_rate=1.0
        )
        scales.append(scale)
    assert scales == [1.0, 1.0, 0.5, 0.5, 0.5, 0.3, 0.3, 0.3]


def test_patience_of_a_maximum_and_through_json() -> None:
    watcher = monitors.early_stopping(EarlyStoppingConfig(patience=2, min_delta=0.5), mode="max")
    for value, num_bad in [(1.0, 0), (1.4, 1), (1.6, 0), (1.0, 1)]:
        watcher = watcher.update(value)
        assert watcher.num_bad == num_bad
    fresh = monitors.early_stopping(EarlyStoppingConfig(patience=2, min_delta=0.5), mode="max")
    assert fresh.from_json(watcher.to_json()) == watcher


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
    ],
)
def test_optimizer_by_name_equals_optax(name: str, expected_fn) -> None:
    config = OptimizerConfig(
        name=name, learning_rate=0.01, weight_decay=0.1, betas=(0.8, 0.9), eps=1e-6
    )
    params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array(3.0)}
    gradients = {"a": jnp.array([0.5, 0.1]), "b": jnp.array(-1.0)}
    ours, theirs = make_optimizer(config), expected_fn()
    updates, _ = ours.update(gradients, ours.init(params), params)
    expected, _ = theirs.update(gradients, theirs.init(params), params)
    for update, want in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(-0.01 * update, want, rtol=1e-6)


def test_clipping_by_global_norm() -> None:
    gradients = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}
    norm = global_norm(gradients)
    assert float(norm) == 5.0
    clipped = clip_by_norm(gradients, norm, max_norm=1.0)
    np.testing.assert_allclose(clipped["a"], [0.6, 0.0], rtol=1e-6)
    np.testing.assert_allclose(clipped["b"], [[0.8]], rtol=1e-6)
    small = clip_by_norm(gradients, norm, max_norm=5.0)
    np.testing.assert_array_equal(small["a"], gradients["a"])
    assert clip_by_norm(gradients, norm, max_norm=0.0) is gradients


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
        lambda: OptimizerConfig(betas=(0.9, 1.0)),
        lambda: SchedulerConfig(name="cosin"),
        lambda: SchedulerConfig(name="plateau", factor=1.0),
        lambda: SchedulerConfig(name="plateau", mode="least"),
        lambda: FitConfig(max_steps=-1),
        lambda: FitConfig(log_every_n_steps=0),
        lambda: FitConfig(ema_decay=1.0),
    ],
)
def test_settings_out_of_range_are_errors(wrong) -> None:
    with pytest.raises(ValueError, match=r"is none of|are two|between|or more|in \[0, 1\)"):
        wrong()


def test_run_length_is_the_shorter_limit() -> None:
    assert FitConfig(max_steps=10, max_epochs=3).total_steps(4) == 10
    assert FitConfig(max_steps=20, max_epochs=3).total_steps(4) == 12
    assert FitConfig().total_steps(4) is None
