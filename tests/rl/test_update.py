"""One pass over a recorded trajectory: its log-probabilities, its gradient, its mini-batches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from chemeleon2_jax.diffusion.chain import roll_out
from chemeleon2_jax.diffusion.samplers import make_sampler
from chemeleon2_jax.diffusion.schedule import Schedule
from chemeleon2_jax.models.dit import DiT, split_output
from chemeleon2_jax.models.sizes import DiTSizes
from chemeleon2_jax.rl.update import Chunk, Objective, make_pass
from tests.examples import packed, random_crystals, random_model, relative
from tests.tiny import noisy, numbers

SCHEDULE, LATENT, STEPS = Schedule.make(), 4, 6
SIZES = DiTSizes(latent_dim=LATENT, hidden_size=16, depth=1, num_heads=2)
SAMPLER = make_sampler("ddim", STEPS, 1.0)
GRAPHDEF, PARAMS = random_model(lambda: DiT(SIZES, rngs=nnx.Rngs(0)))
PARAMS = jax.tree.map(lambda leaf: 0.3 * leaf, PARAMS)  # the chain stays of order 1


def policy(params, rows):
    dit = nnx.merge(GRAPHDEF, params)
    return lambda x, t: split_output(dit(x, t, rows), rows, SIZES)


def make_jitted(reference=False, **weights):
    return jax.jit(
        make_pass(
            policy,
            schedule=SCHEDULE,
            sampler=SAMPLER,
            objective=Objective(**weights),
            reference_fn=policy if reference else None,
        )
    )


@pytest.fixture(scope="module")
def batch():
    return packed(random_crystals())


@pytest.fixture(scope="module")
def trajectory(batch):
    @jax.jit
    def run(params):
        return roll_out(
            policy(params, batch.rows),
            jax.random.key(3),
            batch.rows,
            schedule=SCHEDULE,
            sampler=SAMPLER,
            latent_dim=LATENT,
        )

    return run(PARAMS)


@pytest.fixture(scope="module")
def run_pass():
    return make_jitted()


def chunk_of(batch, trajectory, *, old=None, is_drawn_with=False, weights=None, share=1.0):
    count = len(batch.indices)
    advantages = np.linspace(-1.5, 1.5, count).astype(np.float32)
    weights = np.ones(count, np.float32) if weights is None else np.asarray(weights, np.float32)
    slots = batch.rows.is_crystal.shape
    return Chunk(
        rows=batch.rows,
        states=trajectory.states,
        old_log_probs=jnp.zeros((STEPS - 1, *slots)) if old is None else old,
        advantages=batch.to_slots(advantages),
        weights=batch.to_slots(weights),
        share=jnp.float32(share),
        is_drawn_with=jnp.bool_(is_drawn_with),
    )


@pytest.fixture(scope="module")
def recorded(batch, trajectory, run_pass):
    """The pass with the policy that drew the chain."""
    return run_pass(PARAMS, {}, chunk_of(batch, trajectory, is_drawn_with=True))


def test_first_ratio_is_exactly_1_against_recorded_probabilities(
    batch, trajectory, run_pass, recorded
):
    again = run_pass(PARAMS, {}, chunk_of(batch, trajectory, old=recorded.log_probs))
    assert float(again.metrics["ratio"]) == 1.0
    assert float(again.metrics["kl_rollout"]) == 0.0
    assert float(again.metrics["clip_share"]) == 0.0
    np.testing.assert_array_equal(again.log_probs, recorded.log_probs)
    np.testing.assert_array_equal(numbers(again.gradient), numbers(recorded.gradient))


def test_first_ratio_of_a_flow_is_exactly_1(batch):
    """Of the stochastic form of its chain, which draws at all steps but the last."""
    fixed = {
        "schedule": Schedule.make("straight_line"),
        "sampler": make_sampler("euler", STEPS, 1.0),
        "target": "flow",
    }
    trajectory = jax.jit(
        lambda p: roll_out(
            policy(p, batch.rows), jax.random.key(3), batch.rows, latent_dim=LATENT, **fixed
        )
    )(PARAMS)
    run = jax.jit(make_pass(policy, objective=Objective(), **fixed))
    recorded = run(PARAMS, {}, chunk_of(batch, trajectory, is_drawn_with=True))
    again = run(PARAMS, {}, chunk_of(batch, trajectory, old=recorded.log_probs))
    for passed in (recorded, again):
        assert float(passed.metrics["ratio"]) == 1.0
        assert float(passed.metrics["clip_share"]) == 0.0
    assert np.abs(numbers(recorded.gradient)).max() > 0
    np.testing.assert_array_equal(numbers(again.gradient), numbers(recorded.gradient))


def test_after_an_update_the_ratio_moves(batch, trajectory, run_pass, recorded):
    norm = np.linalg.norm(numbers(recorded.gradient))
    moved = jax.tree.map(lambda p, g: p - 1e-4 * g / norm, PARAMS, recorded.gradient)
    chunk = chunk_of(batch, trajectory, old=recorded.log_probs)
    after = run_pass(moved, {}, chunk)
    assert float(after.metrics["kl_rollout"]) > 0
    assert float(after.metrics["ratio"]) != 1.0
    # What is better than its group became likelier, what is worse less likely.
    change = np.asarray((after.log_probs - recorded.log_probs).mean(0))
    assert float((change * chunk.advantages).sum()) > 0
    assert float(after.metrics["loss"]) < float(recorded.metrics["loss"])


def test_chunks_of_a_mini_batch_add_up(batch, trajectory, run_pass, recorded):
    halves = [[1, 0, 1, 0, 0, 1], [0, 1, 0, 1, 1, 0]]
    passes = [
        run_pass(
            PARAMS,
            {},
            chunk_of(batch, trajectory, is_drawn_with=True, weights=half, share=sum(half) / 6),
        )
        for half in halves
    ]
    total = numbers(passes[0].gradient) + numbers(passes[1].gradient)
    assert relative(total, numbers(recorded.gradient)) < 1e-5
    for name, value in recorded.metrics.items():
        total_metric = sum(float(each.metrics[name]) for each in passes)
        assert total_metric == pytest.approx(float(value), rel=1e-5, abs=1e-7), name


def test_what_has_no_weight_has_no_effect(batch, trajectory, run_pass):
    weights = [1, 1, 0, 1, 1, 1]
    without = run_pass(PARAMS, {}, chunk_of(batch, trajectory, is_drawn_with=True, weights=weights))
    # The third crystal's chain broke down: zeros where numbers should be.
    token = batch.where.split_atoms(
        np.arange(batch.rows.position.size).reshape(batch.rows.position.shape)
    )[2]
    states = np.array(trajectory.states)
    states.reshape(len(states), -1, LATENT)[:, token] = 0.0
    broken = trajectory._replace(states=jnp.asarray(states))
    with_broken = run_pass(PARAMS, {}, chunk_of(batch, broken, is_drawn_with=True, weights=weights))
    assert np.isfinite(numbers(with_broken.gradient)).all()
    assert relative(numbers(with_broken.gradient), numbers(without.gradient)) < 1e-6


def test_frozen_reference(batch, trajectory, recorded):
    """The divergence that counts is the one from the reference, also in the first pass."""
    run = make_jitted(reference=True, kl_weight=2.0, entropy_weight=0.0)
    chunk = chunk_of(batch, trajectory, old=recorded.log_probs)
    near, far = (run(PARAMS, reference, chunk) for reference in (PARAMS, noisy(PARAMS)))
    assert float(near.metrics["kl_reference"]) == pytest.approx(0.0, abs=1e-6)
    assert float(far.metrics["kl_reference"]) > 1e-3
    assert float(far.metrics["kl_rollout"]) == pytest.approx(0.0, abs=1e-6)
    # Means are over the steps with noise, the loss is over all of them.
    added = 2.0 * float(far.metrics["kl_reference"]) * (STEPS - 1) / STEPS
    gain = float(far.metrics["loss"]) - float(near.metrics["loss"])
    assert gain == pytest.approx(added, rel=1e-3)
    assert relative(numbers(far.gradient), numbers(near.gradient)) > 1e-3


def test_gradient_is_that_of_the_loss(batch, trajectory, recorded):
    """Against central differences along the gradient, away from the policy that drew the chain."""
    run_pass = make_jitted(clip_ratio=100.0)  # no kinks
    moved = jax.tree.map(lambda a, b: a + 0.02 * (b - a), PARAMS, noisy(PARAMS))
    chunk = chunk_of(batch, trajectory, old=recorded.log_probs)
    result = run_pass(moved, {}, chunk)
    norm = np.linalg.norm(numbers(result.gradient))
    ends = [
        run_pass(
            jax.tree.map(lambda p, g, s=s: p + s * g / norm, moved, result.gradient), {}, chunk
        )
        for s in (1e-3, -1e-3)
    ]
    slope = (float(ends[0].metrics["loss"]) - float(ends[1].metrics["loss"])) / 2e-3
    assert slope == pytest.approx(norm, rel=0.05)


def test_memory_does_not_depend_on_the_number_of_steps(batch):
    def temporaries(count):
        sampler = make_sampler("ddim", count, 1.0)
        update = make_pass(policy, schedule=SCHEDULE, sampler=sampler, objective=Objective())
        slots = batch.rows.is_crystal.shape
        chunk = Chunk(
            rows=batch.rows,
            states=jax.ShapeDtypeStruct((count + 1, *batch.rows.position.shape, LATENT), "float32"),
            old_log_probs=jax.ShapeDtypeStruct((count - 1, *slots), "float32"),
            advantages=jax.ShapeDtypeStruct(slots, "float32"),
            weights=jax.ShapeDtypeStruct(slots, "float32"),
            share=jax.ShapeDtypeStruct((), "float32"),
            is_drawn_with=jax.ShapeDtypeStruct((), "bool"),
        )
        compiled = jax.jit(update).lower(PARAMS, {}, chunk).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(200) <= 1.1 * temporaries(50)
