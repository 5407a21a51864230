"""Advantages and the terms of a step against values worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chemeleon2_jax.rl.grpo import EPSILON, advantages, step_terms


def test_advantages_within_groups():
    rewards = jnp.array([1.0, 3.0, 12.0, 10.0])
    scaled = 1.0 / (np.sqrt(2.0) + EPSILON)  # the spread of two values one from their mean
    expected = [-scaled, scaled, scaled, -scaled]
    np.testing.assert_allclose(advantages(rewards, group_size=2), expected, rtol=1e-6)


def test_advantages_over_the_batch():
    rewards = jnp.array([1.0, 2.0, 3.0, 6.0])
    std = np.sqrt((4 + 1 + 0 + 9) / 3)
    expected = np.array([-2.0, -1.0, 0.0, 3.0]) / (std + EPSILON)
    for group_size in (1, 2, 4):
        values = advantages(rewards, group_size=group_size, scope="batch")
        np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_groups_without_spread_have_no_advantage():
    # 1e-5 apart: a difference of rounding, not of quality.
    rewards = jnp.array([0.5, 0.5, 0.5 + 1e-5, 0.0, 1.0, 0.5])
    values = advantages(rewards, group_size=3)
    np.testing.assert_array_equal(values[:3], 0.0)
    scaled = 0.5 / (0.5 + EPSILON)
    np.testing.assert_allclose(values[3:], [-scaled, scaled, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(advantages(jnp.ones(1), group_size=1, scope="batch"), 0.0)


@pytest.mark.parametrize(
    ("group_size", "scope", "message"),
    [
        (2, "row", "scope 'row' of advantages is unknown"),
        (4, "group", "6 samples are not whole groups of 4"),
        (0, "batch", "6 samples are not whole groups of 0"),
        (1, "group", "a group of one sample has no spread: use the scope 'batch'"),
    ],
)
def test_advantages_that_make_no_sense(group_size, scope, message):
    with pytest.raises(ValueError, match=message):
        advantages(jnp.zeros(6), group_size=group_size, scope=scope)


@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate", "has_gradient"),
    [
        (1.0, 2.0, 2.0, True),
        (1.1, 2.0, 2.2, True),
        (1.5, 2.0, 2.4, False),  # clipped: nothing is gained by going on
        (1.5, -2.0, -3.0, True),
        (0.5, 2.0, 1.0, True),
        (0.5, -2.0, -1.6, False),
    ],
)
def test_clipping(ratio, advantage, surrogate, has_gradient):
    def loss_fn(log_prob):
        terms = step_terms(log_prob, jnp.zeros(1), jnp.array([advantage]), clip_ratio=0.2)
        return terms.loss, terms

    (_, terms), gradient = jax.value_and_grad(loss_fn, has_aux=True)(jnp.log(jnp.array([ratio])))
    assert float(terms.surrogate) == pytest.approx(surrogate, rel=1e-6)
    assert float(terms.loss) == pytest.approx(-surrogate, rel=1e-6)
    assert float(terms.ratio) == pytest.approx(ratio, rel=1e-6)
    assert float(terms.clip_share) == float(not 0.8 <= ratio <= 1.2)
    expected = -ratio * advantage if has_gradient else 0.0
    assert float(gradient[0]) == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_first_inner_step_is_a_policy_gradient():
    advantage = jnp.array([1.0, -2.0, 0.5])
    log_prob = jnp.array([-1.3, -1.2, -1.4])

    def loss_fn(log_prob):
        terms = step_terms(
            log_prob,
            jax.lax.stop_gradient(log_prob),
            advantage,
            clip_ratio=1e-3,
            kl_weight=1.0,
            entropy_weight=0.1,
        )
        return terms.loss, terms

    (loss, terms), gradient = jax.value_and_grad(loss_fn, has_aux=True)(log_prob)
    assert (float(terms.ratio), float(terms.kl), float(terms.clip_share)) == (1.0, 0.0, 0.0)
    assert float(terms.entropy) == pytest.approx(1.3)
    assert float(loss) == pytest.approx(0.5 / 3 - 0.13, rel=1e-6)
    np.testing.assert_allclose(gradient, (-advantage + 0.1) / 3, rtol=1e-6)


def test_divergences():
    terms = step_terms(
        jnp.log(jnp.array([2.0, 2.0])),
        jnp.zeros(2),
        jnp.zeros(2),
        clip_ratio=0.2,
        kl_weight=10.0,
        reference_log_prob=jnp.log(jnp.array([2.0, 8.0])),
    )
    assert float(terms.kl_rollout) == pytest.approx(0.5 - 1 + np.log(2.0), rel=1e-6)
    # Nothing from the first; 4 - 1 - log 4 from the second.
    assert float(terms.kl) == pytest.approx((3 - np.log(4.0)) / 2, rel=1e-6)
    assert float(terms.loss) == pytest.approx(10 * float(terms.kl), rel=1e-6)
    assert float(terms.ratio) == pytest.approx(2.0, rel=1e-6)


def test_small_divergences_are_not_lost():
    terms = step_terms(jnp.full(1, 1e-4), jnp.zeros(1), jnp.zeros(1), clip_ratio=0.2)
    assert float(terms.kl) == pytest.approx(0.5e-8, rel=0.2)


def test_empty_slots_do_not_count():
    rng = np.random.default_rng(0)
    log_prob, old, advantage, reference = (jnp.asarray(rng.normal(size=6)) for _ in range(4))
    options = {"clip_ratio": 0.2, "kl_weight": 0.3, "entropy_weight": 0.1}

    def loss_fn(log_prob, old, advantage, reference, weights=None):
        terms = step_terms(
            log_prob, old, advantage, reference_log_prob=reference, weights=weights, **options
        )
        return terms.loss, terms

    compute = jax.value_and_grad(loss_fn, has_aux=True)
    (_, expected), expected_gradient = compute(log_prob, old, advantage, reference)
    is_crystal = jnp.array([[True, True, True, False], [True, True, True, False]])

    def place(values, filler=jnp.nan):
        return jnp.pad(values.reshape(2, 3), ((0, 0), (0, 1)), constant_values=filler)

    rows = [place(values) for values in (log_prob, old, advantage, reference)]
    (_, terms), gradient = compute(*rows, weights=is_crystal)
    for name in expected._fields:
        value = float(getattr(expected, name))
        assert float(getattr(terms, name)) == pytest.approx(value, rel=1e-5), name
    np.testing.assert_allclose(gradient, place(expected_gradient, 0.0), rtol=1e-5)
