"""The loss of a recorded chain, and its gradient, are those of the PyTorch original."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from chemeleon2_jax.diffusion.samplers import make_sampler
from chemeleon2_jax.diffusion.schedule import Schedule
from chemeleon2_jax.models.dit import split_output
from chemeleon2_jax.rl.grpo import advantages
from chemeleon2_jax.rl.update import Chunk, Objective, make_pass
from tests.parity.golden import golden_rows, to_slots, to_tokens

CHAIN = "ldm/sample/ddim10_eta1"
STEPS = 10


def test_advantages(golden):
    found = advantages(jnp.asarray(golden.arrays["rl/rewards"]), group_size=4)
    np.testing.assert_allclose(found, golden.arrays["rl/advantages"], atol=2e-6)


@pytest.fixture(scope="module")
def moved(golden):
    """(params, pass) of the model that the original changed after the chain was drawn."""
    dit, sizes = golden.dit("ldm")
    dit.final.kernel[...] += golden.arrays["rl/final_layer_linear_weight_delta"].T
    graphdef, params = nnx.split(dit, nnx.Param)

    def policy(params, rows):
        model = nnx.merge(graphdef, params)
        return lambda x, t: split_output(model(x, t, rows), rows, sizes)

    update = make_pass(
        policy,
        schedule=Schedule.make(),
        sampler=make_sampler("ddim", STEPS, 1.0),
        objective=Objective(clip_ratio=1e-3, kl_weight=1.0, entropy_weight=1e-5),
    )
    return params, jax.jit(update)


def chunk_of(arrays, layout):
    rows, where = golden_rows(arrays, layout)
    return where, Chunk(
        rows=rows,
        states=jnp.stack([to_tokens(z, where) for z in arrays[f"{CHAIN}/zs"]]),
        old_log_probs=jnp.stack([to_slots(p, where) for p in arrays[f"{CHAIN}/log_probs"][:-1]]),
        advantages=to_slots(arrays["rl/advantages"], where),
        weights=rows.is_crystal.astype(jnp.float32),
        share=jnp.float32(1.0),
        is_drawn_with=jnp.bool_(False),
    )


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_loss_and_gradient(golden, moved, layout):
    arrays, (params, run_pass) = golden.arrays, moved
    where, chunk = chunk_of(arrays, layout)
    found = run_pass(params, {}, chunk)
    metrics = {name: float(value) for name, value in found.metrics.items()}
    count = STEPS - 1  # the original sums over the steps that have noise
    assert metrics["loss"] == pytest.approx(float(arrays["rl/scaled_loss"]), abs=1e-7)
    assert STEPS * metrics["loss"] == pytest.approx(float(arrays["rl/loss"]), abs=1e-6)
    # The original's name of the objective that is maximised is spelt so.
    expected = float(arrays["rl/sorrogate_objective"])
    assert count * metrics["surrogate"] == pytest.approx(expected, abs=1e-6)
    assert count * metrics["kl_rollout"] == pytest.approx(float(arrays["rl/kl_div"]), rel=1e-3)
    assert -count * metrics["log_prob"] == pytest.approx(float(arrays["rl/entropy"]), abs=2e-5)
    # Those of the last step that counts.
    last = where.take_slots(found.log_probs[-1] - chunk.old_log_probs[-1])
    assert last.mean() == pytest.approx(float(arrays["rl/log_ratio"]), abs=2e-5)
    assert np.exp(last).mean() == pytest.approx(float(arrays["rl/ratio"]), abs=2e-5)
    norm = float(optax.tree.norm(found.gradient))
    assert norm == pytest.approx(float(arrays["rl/grad_norm"]), rel=1e-4)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_scored_log_probabilities_are_those_drawn(golden, moved, layout):
    """By the model that drew the chain: `rl/*` moved its last layer."""
    params, run_pass = moved
    dit, _ = golden.dit("ldm")
    unmoved = nnx.split(dit, nnx.Param)[1]
    assert jax.tree.structure(unmoved) == jax.tree.structure(params)
    where, chunk = chunk_of(golden.arrays, layout)
    found = run_pass(unmoved, {}, chunk).log_probs
    for ours, drawn in zip(found, chunk.old_log_probs, strict=True):
        np.testing.assert_allclose(where.take_slots(ours), where.take_slots(drawn), atol=1e-5)
