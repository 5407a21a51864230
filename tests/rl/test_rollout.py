"""Trajectories: the chain that sampling draws, scored by what drew it, and its gradients."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from chemeleon2_jax.diffusion.chain import roll_out, sample_chain
from chemeleon2_jax.diffusion.gaussian import level_at, predictor
from chemeleon2_jax.diffusion.sampler import step_constants
from chemeleon2_jax.diffusion.samplers import make_sampler, sampler_class
from chemeleon2_jax.diffusion.schedule import Schedule
from chemeleon2_jax.diffusion.targets import TARGETS
from chemeleon2_jax.models.dit import DiT, split_output
from chemeleon2_jax.models.sizes import DiTSizes
from chemeleon2_jax.rl.rollout import accumulate, drawn_steps, score_step
from chemeleon2_jax.rows.rows import atom_normal
from tests.examples import packed, random_crystals, random_model

LATENT = 4
CHAINS = {  # sampler -> schedule and target of the model
    "ddim": (Schedule.make(), "eps"),
    "ddpm": (Schedule.make(), "eps"),
    "euler": (Schedule.make("straight_line"), "flow"),
}
SIZES = DiTSizes(latent_dim=LATENT, hidden_size=16, depth=1, num_heads=2)


@pytest.fixture(scope="module")
def batch():
    return packed(random_crystals())


@pytest.fixture(scope="module")
def model():
    """(graphdef, params) of a small denoiser."""
    return random_model(lambda: DiT(SIZES, rngs=nnx.Rngs(0)))


def denoiser(model, params, rows, chain="ddim"):
    """What is right for data of mean 0 and variance 1, and a little of the model: the states stay
    of the order of 1.
    """
    dit = nnx.merge(model[0], params)
    schedule, target = CHAINS[chain]

    def denoise(x, t):
        output, variance = split_output(dit(x, t, rows), rows, SIZES)
        level = level_at(t, schedule=schedule, rows=rows)
        exact = TARGETS[target].of(level.signal * x, level.spread * x, level.signal, level.spread)
        return exact + 0.1 * jnp.tanh(output), 0.1 * jnp.tanh(variance)

    return denoise


def score(denoise, states, steps, **fixed):
    """Log-probabilities (K', R, S) of all steps."""

    def body(_, step):
        return None, score_step(denoise, states, step, **fixed)

    return jax.lax.scan(body, None, steps)[1]


@pytest.fixture(scope="module", params=sorted(CHAINS))
def drawn(request, model, batch):
    """(sampler, trajectory) of a chain."""
    sampler = make_sampler(request.param, 6, 1.0)

    @jax.jit
    def run(params):
        return roll_out(
            denoiser(model, params, batch.rows, sampler.name),
            jax.random.key(3),
            batch.rows,
            schedule=CHAINS[sampler.name][0],
            sampler=sampler,
            latent_dim=LATENT,
            target=CHAINS[sampler.name][1],
        )

    return sampler, run(model[1])


def test_its_end_is_what_sampling_gives(drawn, model, batch):
    sampler, trajectory = drawn
    end = jax.jit(
        lambda params: sample_chain(
            denoiser(model, params, batch.rows, sampler.name),
            jax.random.key(3),
            batch.rows,
            schedule=CHAINS[sampler.name][0],
            sampler=sampler,
            latent_dim=LATENT,
            target=CHAINS[sampler.name][1],
        )
    )(model[1])
    assert trajectory.states.shape == (7, *end.shape)
    np.testing.assert_allclose(
        batch.atoms(trajectory.states[-1]), batch.atoms(end), rtol=1e-6, atol=1e-6
    )
    assert not batch.where.take_slots(trajectory.failed).any()


def test_the_score_is_that_of_the_noise_that_was_drawn(drawn, model, batch):
    """log p of a drawn step: -mean(noise^2)/2 - log(std) - log(2 pi)/2, to 1e-5."""
    sampler, trajectory = drawn
    denoise = denoiser(model, model[1], batch.rows, sampler.name)
    schedule, target = CHAINS[sampler.name]
    predict = predictor(denoise, target=target, rows=batch.rows)
    steps = drawn_steps(schedule, sampler)
    scored = jax.jit(
        lambda p: score(
            denoiser(model, p, batch.rows, sampler.name),
            trajectory.states,
            steps,
            rows=batch.rows,
            sampler=sampler,
            target=target,
        )
    )(model[1])
    constants = step_constants(schedule, sampler)
    assert len(scored) == sampler.steps - 1
    for k, log_prob in enumerate(scored):
        values = jax.tree.map(lambda v, k=k: v[k], constants)
        gaussian = sampler.transition(predict, trajectory.states[k], values)
        noise = atom_normal(jax.random.fold_in(jax.random.key(3), k + 1), batch.rows, LATENT)
        std = jnp.broadcast_to(gaussian.std, noise.shape)
        density = -0.5 * noise**2 - jnp.log(std) - 0.5 * np.log(2 * np.pi)
        expected = [d.mean() for d in batch.where.split_atoms(density)]
        np.testing.assert_allclose(batch.where.take_slots(log_prob), expected, atol=1e-5)


def test_gradients_add_up(drawn, model, batch):
    sampler, trajectory = drawn
    schedule, target = CHAINS[sampler.name]
    steps, states = drawn_steps(schedule, sampler), trajectory.states
    fixed = {"rows": batch.rows, "sampler": sampler, "target": target}

    def objective(params, step):
        log_prob = score_step(
            denoiser(model, params, batch.rows, sampler.name), states, step, **fixed
        )
        value = jnp.sum(log_prob * batch.rows.is_crystal)
        return value, {"value": value}

    gradient, metrics = jax.jit(lambda p: accumulate(objective, p, steps))(model[1])

    def together(params):
        log_probs = score(denoiser(model, params, batch.rows, sampler.name), states, steps, **fixed)
        return jnp.sum(log_probs * batch.rows.is_crystal)

    value, expected = jax.jit(jax.value_and_grad(together))(model[1])
    assert float(metrics["value"].sum()) == pytest.approx(float(value), rel=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * largest),
        gradient,
        expected,
    )


def test_memory_does_not_depend_on_the_number_of_steps(model, batch):
    def temporaries(count):
        sampler = make_sampler("ddim", count, 1.0)
        steps = drawn_steps(CHAINS["ddim"][0], sampler)
        states = jax.ShapeDtypeStruct((count + 1, *batch.rows.position.shape, LATENT), jnp.float32)

        def update(params, states):
            def objective(params, step):
                denoise = denoiser(model, params, batch.rows)
                fixed = {"rows": batch.rows, "sampler": sampler}
                return score_step(denoise, states, step, **fixed).sum(), ()

            return accumulate(objective, params, steps)[0]

        compiled = jax.jit(update).lower(model[1], states).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = temporaries(50), temporaries(200)
    assert many <= 1.1 * few


@pytest.mark.parametrize("sampler", [make_sampler("ddim", 5, 0.0), make_sampler("ddpm", 1)])
def test_chains_without_probability(sampler):
    with pytest.raises(ValueError, match="draws nothing"):
        drawn_steps(CHAINS["ddim"][0], sampler)


def test_steps_that_depend_on_earlier_ones_have_no_probability():
    @dataclass(frozen=True)
    class Remembering(sampler_class("ddim")):
        num_remembered = 1

    with pytest.raises(ValueError, match="steps of ddim depend on earlier ones"):
        drawn_steps(CHAINS["ddim"][0], Remembering(steps=5))
