"""Rollouts, advantages and updates together: rewards grow, and not by themselves."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from chemeleon2_jax.diffusion.chain import roll_out
from chemeleon2_jax.diffusion.samplers import make_sampler
from chemeleon2_jax.diffusion.schedule import Schedule
from chemeleon2_jax.models.dit import DiT, split_output
from chemeleon2_jax.models.sizes import DiTSizes
from chemeleon2_jax.rl.grpo import advantages
from chemeleon2_jax.rl.update import Chunk, Objective, make_pass
from tests.examples import packed, random_crystals, random_model

LATENT = 4
SIZES = DiTSizes(latent_dim=LATENT, hidden_size=16, depth=1, num_heads=2)
GROUP, NUM_GROUPS, ROLLOUTS = 16, 3, 25


def reward(states, where):
    """Mean of the first latent dimension over the atoms of each crystal, within bounds."""
    ends = where.split_atoms(states[-1])
    return np.array([np.clip(latent[:, 0], -3, 3).mean() for latent in ends])


def fine_tune(sampler, *, schedule="linear", target="eps", seed, shuffled):
    """Rewards of each rollout, (ROLLOUTS, G)."""
    sizes = np.repeat([2, 3, 5], GROUP)
    batch = packed(random_crystals(sizes))
    graphdef, params = random_model(lambda: DiT(SIZES, rngs=nnx.Rngs(0)))
    params = jax.tree.map(lambda leaf: 0.3 * leaf, params)

    def policy(params, rows):
        dit = nnx.merge(graphdef, params)
        return lambda x, t: split_output(dit(x, t, rows), rows, SIZES)

    chain = {"schedule": Schedule.make(schedule), "sampler": sampler, "target": target}

    @jax.jit
    def rollout(params, key):
        return roll_out(policy(params, batch.rows), key, batch.rows, latent_dim=LATENT, **chain)

    update = make_pass(policy, objective=Objective(), **chain)
    run_pass, tx = jax.jit(update), optax.adam(3e-3)
    opt_state, history = tx.init(params), []
    rng = np.random.default_rng(seed)
    for number in range(ROLLOUTS):
        trajectory = rollout(params, jax.random.fold_in(jax.random.key(seed), number))
        rewards = reward(trajectory.states, batch.where)
        history.append(rewards)
        judged = rng.permutation(rewards) if shuffled else rewards
        values = np.asarray(advantages(jnp.asarray(judged), group_size=GROUP))
        chunk = Chunk(
            rows=batch.rows,
            states=trajectory.states,
            old_log_probs=jnp.zeros((sampler.num_drawn, *batch.rows.is_crystal.shape)),
            advantages=batch.to_slots(values),
            weights=batch.rows.is_crystal.astype(jnp.float32),
            share=jnp.float32(1.0),
            is_drawn_with=jnp.bool_(True),
        )
        result = run_pass(params, {}, chunk)
        changes, opt_state = tx.update(result.gradient, opt_state)
        params = optax.apply_updates(params, changes)
    return np.array(history)


@pytest.mark.parametrize(
    ("sampler", "chain"),
    [
        (make_sampler("ddim", 8, 1.0), {}),
        (make_sampler("ddpm", 8), {}),
        (make_sampler("euler", 8, 1.0), {"schedule": "straight_line", "target": "flow"}),
    ],
    ids=["ddim", "ddpm", "euler"],
)
def test_rewards_grow_and_shuffled_ones_do_not(sampler, chain):
    rewards = fine_tune(sampler, seed=0, shuffled=False, **chain)
    control = fine_tune(sampler, seed=0, shuffled=True, **chain)
    error = rewards[0].std(ddof=1) / np.sqrt(len(rewards[0]))
    gain = rewards[-3:].mean() - rewards[:3].mean()
    assert gain > 4 * error
    assert abs(control[-3:].mean() - control[:3].mean()) < 0.5 * gain
    # In each of the groups.
    by_group = rewards.reshape(ROLLOUTS, NUM_GROUPS, GROUP).mean(-1)
    assert (by_group[-3:].mean(0) > by_group[:3].mean(0)).all()
