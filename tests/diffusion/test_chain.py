"""Chains that must land where the data are, and crystals that do not see each other."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from chemeleon2_jax.diffusion.chain import initial_noise, sample_chain
from chemeleon2_jax.diffusion.gaussian import at_tokens
from chemeleon2_jax.diffusion.sampler import step_constants
from chemeleon2_jax.diffusion.samplers import SAMPLERS, make_sampler
from chemeleon2_jax.diffusion.schedule import Schedule
from chemeleon2_jax.models.dit import DiT, split_output
from chemeleon2_jax.models.sizes import DiTSizes
from chemeleon2_jax.rows.packing import RowShape, assign
from chemeleon2_jax.rows.rows import atom_normal
from tests.examples import in_layout, packed, place, random_crystals, random_model

SCHEDULE = Schedule.make()
LATENT = 4

first_state = jax.jit(initial_noise, static_argnums=2)


@pytest.fixture(scope="module")
def batch():
    return packed(random_crystals())


def chain(make_denoise, key, rows, sampler, **options):
    """`sample_chain`, jitted; `make_denoise(rows)` gives the denoiser."""

    @jax.jit
    def run(key, rows):
        return sample_chain(
            make_denoise(rows),
            key,
            rows,
            schedule=SCHEDULE,
            sampler=sampler,
            latent_dim=LATENT,
            **options,
        )

    return np.asarray(run(key, rows))


def gaussian_denoiser(rows, mean, std, *, target="eps", variance=None):
    """The best prediction where data are N(mean, std^2): a single point if std is 0."""

    def denoise(x, t):
        bar = at_tokens(SCHEDULE.alphas_cumprod, t, rows)
        spread = bar * std**2 + 1 - bar
        distance = x - jnp.sqrt(bar) * mean
        eps = jnp.sqrt(1 - bar) * distance / spread
        prediction = eps if target == "eps" else mean + jnp.sqrt(bar) * std**2 * distance / spread
        return prediction, None if variance is None else jnp.full_like(x, variance)

    return denoise


@pytest.mark.parametrize(
    ("sampler", "target"),
    [
        (make_sampler("ddim", 33, 0.0), "eps"),
        (make_sampler("ddim", 7, 1.0), "x_0"),
        (make_sampler("ddpm", 20), "eps"),
        (make_sampler("ddpm", 1), "x_0"),
    ],
    ids=str,
)
def test_data_of_one_point_are_found(batch, sampler, target):
    point = np.random.default_rng(0).normal(size=(*batch.rows.position.shape, LATENT))
    point = jnp.asarray(point, jnp.float32)

    def make_denoise(rows):
        return gaussian_denoiser(rows, point, 0.0, target=target)

    latents = chain(make_denoise, jax.random.key(0), batch.rows, sampler, target=target)
    np.testing.assert_allclose(batch.atoms(latents), batch.atoms(point), atol=1e-4)


def expected_std(sampler, std, variance):
    """Standard deviation of the samples where the data are N(mean, std^2): every step is linear."""
    kept = SCHEDULE.respace(sampler.timesteps(SCHEDULE.num_steps))
    total = 1.0
    for t in reversed(range(sampler.steps)):
        bar, previous, beta = kept.alphas_cumprod[t], kept.alphas_cumprod_prev[t], kept.betas[t]
        spread = bar * std**2 + 1 - bar
        posterior = beta * (1 - previous) / (1 - bar)
        to_start = np.sqrt(bar) * std**2 / spread
        if sampler.name == "ddim":
            noise = sampler.eta**2 * posterior
            factor = np.sqrt(previous) * to_start
            factor += np.sqrt(1 - previous - noise) * np.sqrt(1 - bar) / spread
        else:
            share = 1.0 if variance is None else (variance + 1) / 2
            noise = beta**share * posterior ** (1 - share) if t else 0.0
            factor = np.sqrt(previous) * beta / (1 - bar) * to_start
            factor += np.sqrt(1 - beta) * (1 - previous) / (1 - bar)
        total = factor**2 * total + noise
    return np.sqrt(total)


@pytest.mark.parametrize(
    ("sampler", "variance"),
    [
        (make_sampler("ddim", 50, 0.0), None),
        (make_sampler("ddim", 50, 1.0), None),
        (make_sampler("ddpm", 50), None),
        (make_sampler("ddpm", 50), 0.0),
    ],
    ids=str,
)
def test_a_gaussian_is_sampled_as_it_is(sampler, variance):
    """With mean 1 and, but for what few steps cost, standard deviation 0.6."""
    wide = packed(random_crystals((16,) * 60))

    def make_denoise(rows):
        return gaussian_denoiser(rows, 1.0, 0.6, variance=variance)

    samples = wide.atoms(chain(make_denoise, jax.random.key(0), wide.rows, sampler))
    assert samples.mean() == pytest.approx(1.0, abs=0.04)  # 3840 numbers
    assert samples.std() == pytest.approx(expected_std(sampler, 0.6, variance), rel=0.035)
    many = replace(sampler, steps=1000)
    assert expected_std(many, 0.6, variance) == pytest.approx(0.6, rel=0.02)
    start = wide.atoms(first_state(jax.random.key(0), wide.rows, LATENT))
    kept = np.corrcoef(samples.ravel(), start.ravel())[0, 1]
    if sampler.name == "ddim" and sampler.eta == 0.0:
        assert kept > 0.999  # a deterministic map of the noise
    else:
        assert abs(kept) < 0.5


# --- crystals do not see each other ---------------------------------------------------------------


DIT_SIZES = DiTSizes(latent_dim=LATENT, hidden_size=16, depth=1, num_heads=2)
DIT = random_model(lambda: DiT(DIT_SIZES, rngs=nnx.Rngs(0)))


def dit_denoiser(rows):
    dit = nnx.merge(*DIT)

    def denoise(x, t):
        return split_output(dit(x, t, rows), rows, DIT_SIZES)

    return denoise


@pytest.mark.parametrize(
    ("sampler", "layouts"),
    [(make_sampler("ddim", 4), ("alone", "padded")), (make_sampler("ddpm", 4), ("alone",))],
    ids=str,
)
def test_a_crystal_does_not_depend_on_its_batch(sampler, layouts):
    key = jax.random.key(7)

    @jax.jit
    def run(rows):
        denoise = dit_denoiser(rows)
        options = {"schedule": SCHEDULE, "sampler": sampler, "latent_dim": LATENT}
        return sample_chain(denoise, key, rows, **options)

    def by_id(batches):
        latents = {}
        for batch in batches:
            of_batch = batch.where.split_atoms(run(batch.rows))
            latents |= dict(zip(batch.indices.tolist(), of_batch, strict=True))
        return latents

    crystals = random_crystals()
    together = by_id(in_layout(crystals, "packed"))
    shape = RowShape(3, 16, 5)
    halves = [[5, 0, 3], [1, 4, 2]]  # in chunks, and in another order
    chunks = [place(crystals, assign(crystals.num_atoms[h], [shape]), h) for h in halves]
    others = {layout: by_id(in_layout(crystals, layout)) for layout in layouts}
    others["chunks"] = by_id(chunks)
    for name, by_index in others.items():
        for index, latents in together.items():
            np.testing.assert_allclose(
                by_index[index], latents, atol=2e-4, err_msg=f"{name} {index}"
            )
    assert len({float(v[0, 0]) for v in together.values()}) == len(crystals)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_crystal_that_fails_takes_no_other_with_it(batch, name):
    """The denoiser breaks for atom 1 of crystal 2 halfway through the chain."""
    row, token = batch.where.row[2], batch.where.start[2] + 1
    key = jax.random.key(0)

    @jax.jit
    def run(rows, added):
        whole = dit_denoiser(rows)

        def denoise(x, t):
            eps, variance = whole(x, t)
            fails = (t[row, 0] < 600) & (t[row, 0] > 200)
            return eps.at[row, token, 0].add(jnp.where(fails, added, 0.0)), variance

        options = {"schedule": SCHEDULE, "sampler": make_sampler(name, 6), "latent_dim": LATENT}
        return sample_chain(denoise, key, rows, **options)

    good = batch.where.split_atoms(run(batch.rows, 0.0))
    assert np.isfinite(np.concatenate(good)).all()
    for added in (np.nan, np.inf):
        hurt = batch.where.split_atoms(run(batch.rows, added))
        assert np.isnan(hurt.pop(2)).all()
        for latents, expected in zip(hurt, good[:2] + good[3:], strict=True):
            np.testing.assert_array_equal(latents, expected)


def test_every_step_has_a_noise_of_its_own(batch):
    """A denoiser that takes x itself for x_0: two steps of DDPM are then a sum of two noises."""
    key, sampler = jax.random.key(0), make_sampler("ddpm", 2)

    def make_denoise(rows):
        return lambda x, t: (x, None)

    latents = chain(make_denoise, key, batch.rows, sampler, target="x_0")
    draw = jax.jit(lambda key: atom_normal(key, batch.rows, LATENT))
    start, noise = (np.asarray(draw(jax.random.fold_in(key, number))) for number in (0, 1))
    now = jax.tree.map(lambda v: v[0], step_constants(SCHEDULE, sampler))
    expected = (now.coef1 + now.coef2) * start + np.exp(0.5 * now.log_fixed) * noise
    np.testing.assert_allclose(batch.atoms(latents), batch.atoms(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m"])
def test_self_conditioning_hands_on_the_last_estimate(batch, name):
    """A model that learns of x_0 by its own estimates alone: a tenth nearer at each call."""
    steps = 4

    def make_denoise(rows):
        def denoise(x, t, *, estimate):
            return estimate + 0.1 * (1.0 - estimate), None

        return denoise

    sampler = make_sampler(name, steps, 0.0)
    options = {"target": "x_0", "self_conditioning": True}
    z = chain(make_denoise, jax.random.key(0), batch.rows, sampler, **options)
    calls = 2 * steps if name == "heun" else steps
    last = 1 - 0.9**calls
    if name == "heun":
        last = 1 - 0.9 ** (calls - 1)  # the last step goes with its first call
    np.testing.assert_allclose(batch.atoms(z), last, rtol=1e-4)


def test_self_conditioning_of_a_failed_crystal_reaches_no_other(batch):
    def make_denoise(rows):
        crystal = jnp.take_along_axis(rows.crystal_id, rows.slot, axis=1)[..., None]

        def denoise(x, t, *, estimate):
            return jnp.where(crystal == 1, jnp.nan, 0.5 + 0.0 * jnp.sum(estimate) + 0.0 * x), None

        return denoise

    options = {"target": "x_0", "self_conditioning": True}
    sampler = make_sampler("euler", 3, 0.0)
    z = chain(make_denoise, jax.random.key(0), batch.rows, sampler, **options)
    for index, latent in enumerate(batch.where.split_atoms(z)):
        np.testing.assert_array_equal(np.isnan(latent), index == 1)
