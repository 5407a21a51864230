"""The loss of a recorded chain, and its gradient, are those of the PyTorch original."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from chemeleon2_jax.diffusion.sampler import (
    SamplerConfig,
    log_probability,
    step_constants,
    transition,
)
from chemeleon2_jax.diffusion.schedule import Schedule
from chemeleon2_jax.models.dit import split_output
from chemeleon2_jax.rl.grpo import StepTerms, advantages, step_terms
from tests.parity.golden import golden_rows, to_slots, to_tokens

CHAIN = "ldm/sample/ddim10_eta1"
STEPS = 10
WEIGHTS = {"clip_ratio": 1e-3, "kl_weight": 1.0, "entropy_weight": 1e-5}


def test_advantages(golden):
    found = advantages(jnp.asarray(golden.arrays["rl/rewards"]), group_size=4)
    np.testing.assert_allclose(found, golden.arrays["rl/advantages"], atol=2e-6)


def make_scorer(golden, rows):
    """(params, states) -> (K - 1, R, S) log-probabilities of all steps that have noise."""
    dit, sizes = golden.dit("ldm")
    delta = golden.arrays["rl/final_layer_linear_weight_delta"]
    dit.final.kernel[...] += delta.T
    graphdef, params = nnx.split(dit, nnx.Param)
    constants = step_constants(Schedule.make(), SamplerConfig("ddim", STEPS, 1.0))
    noisy = jax.tree.map(lambda v: jnp.asarray(v[:-1]), constants)

    def score(params, states):
        model = nnx.merge(graphdef, params)

        def denoise(x, t):
            return split_output(model(x, t, rows), rows, sizes)

        def step(_, inputs):
            x, following, values = inputs
            gaussian = transition(denoise, x, values, rows=rows, sampler="ddim")
            return None, log_probability(gaussian, following, rows)

        return jax.lax.scan(step, None, (states[:-2], states[1:-1], noisy))[1]

    return score, params


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_loss_and_gradient(golden, layout):
    arrays = golden.arrays
    rows, where = golden_rows(arrays, layout)
    states = jnp.stack([to_tokens(z, where) for z in arrays[f"{CHAIN}/zs"]])
    old = jnp.stack([to_slots(p, where) for p in arrays[f"{CHAIN}/log_probs"][:-1]])
    advantage = to_slots(arrays["rl/advantages"], where)
    score, params = make_scorer(golden, rows)

    def loss_fn(params):
        terms = [
            step_terms(now, then, advantage, weights=rows.is_crystal, **WEIGHTS)
            for now, then in zip(score(params, states), old, strict=True)
        ]
        stacked = StepTerms(*(jnp.stack(values) for values in zip(*terms, strict=True)))
        return stacked.loss.sum() / STEPS, stacked

    (loss, terms), gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params)
    total = {name: float(values.sum()) for name, values in terms._asdict().items()}
    assert float(loss) == pytest.approx(float(arrays["rl/scaled_loss"]), abs=1e-7)
    assert total["loss"] == pytest.approx(float(arrays["rl/loss"]), abs=1e-6)
    # The original's name of the objective that is maximised is spelt so.
    assert total["surrogate"] == pytest.approx(float(arrays["rl/sorrogate_objective"]), abs=1e-6)
    assert total["kl"] == pytest.approx(float(arrays["rl/kl_div"]), rel=1e-3)
    assert total["kl_rollout"] == total["kl"]
    assert total["entropy"] == pytest.approx(float(arrays["rl/entropy"]), abs=2e-5)
    for name in ("log_ratio", "ratio"):
        last = float(getattr(terms, name)[-1])
        assert last == pytest.approx(float(arrays[f"rl/{name}"]), abs=2e-5)
    norm = float(optax.tree.norm(gradient))
    assert norm == pytest.approx(float(arrays["rl/grad_norm"]), rel=1e-4)
