"""Chains that must land where the data are, and crystals that do not see each other."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from chemeleon2_jax.diffusion.gaussian import at_tokens
from chemeleon2_jax.diffusion.sampler import (
    Gaussian,
    SamplerConfig,
    initial_noise,
    log_probability,
    sample_chain,
    step_constants,
    transition,
)
from chemeleon2_jax.diffusion.schedule import Schedule, sampling_timesteps
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


def chain(make_denoise, key, rows, config, **options):
    """`sample_chain`, jitted; `make_denoise(rows)` gives the denoiser."""

    @jax.jit
    def run(key, rows):
        return sample_chain(
            make_denoise(rows),
            key,
            rows,
            schedule=SCHEDULE,
            config=config,
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
    ("config", "target"),
    [
        (SamplerConfig("ddim", 33, 0.0), "eps"),
        (SamplerConfig("ddim", 7, 1.0), "x_0"),
        (SamplerConfig("ddpm", 20), "eps"),
        (SamplerConfig("ddpm", 1), "x_0"),
    ],
    ids=str,
)
def test_data_of_one_point_are_found(batch, config, target):
    point = np.random.default_rng(0).normal(size=(*batch.rows.position.shape, LATENT))
    point = jnp.asarray(point, jnp.float32)

    def make_denoise(rows):
        return gaussian_denoiser(rows, point, 0.0, target=target)

    found = chain(make_denoise, jax.random.key(0), batch.rows, config, target=target)
    np.testing.assert_allclose(batch.atoms(found), batch.atoms(point), atol=1e-4)


def expected_std(config, std, variance):
    """Standard deviation of the samples where the data are N(mean, std^2): every step is linear."""
    kept = SCHEDULE.respace(sampling_timesteps(config.sampler, config.steps))
    total = 1.0
    for t in reversed(range(config.steps)):
        bar, previous, beta = kept.alphas_cumprod[t], kept.alphas_cumprod_prev[t], kept.betas[t]
        spread = bar * std**2 + 1 - bar
        posterior = beta * (1 - previous) / (1 - bar)
        to_start = np.sqrt(bar) * std**2 / spread
        if config.sampler == "ddim":
            noise = config.eta**2 * posterior
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
    ("config", "variance"),
    [
        (SamplerConfig("ddim", 50, 0.0), None),
        (SamplerConfig("ddim", 50, 1.0), None),
        (SamplerConfig("ddpm", 50), None),
        (SamplerConfig("ddpm", 50), 0.0),
    ],
    ids=str,
)
def test_a_gaussian_is_sampled_as_it_is(config, variance):
    """With mean 1 and, but for what few steps cost, standard deviation 0.6."""
    wide = packed(random_crystals((16,) * 60))

    def make_denoise(rows):
        return gaussian_denoiser(rows, 1.0, 0.6, variance=variance)

    found = wide.atoms(chain(make_denoise, jax.random.key(0), wide.rows, config))
    assert found.mean() == pytest.approx(1.0, abs=0.04)  # 3840 numbers
    assert found.std() == pytest.approx(expected_std(config, 0.6, variance), rel=0.035)
    many = replace(config, steps=1000)
    assert expected_std(many, 0.6, variance) == pytest.approx(0.6, rel=0.02)
    start = wide.atoms(first_state(jax.random.key(0), wide.rows, LATENT))
    kept = np.corrcoef(found.ravel(), start.ravel())[0, 1]
    if config.sampler == "ddim" and config.eta == 0.0:
        assert kept > 0.999  # a deterministic map of the noise
    else:
        assert abs(kept) < 0.5


def test_eta_is_the_share_of_the_noise():
    schedule = SCHEDULE.respace(np.arange(0, 1000, 20))
    full, half, none = (
        step_constants(SCHEDULE, SamplerConfig("ddim", 50, e)) for e in (1.0, 0.5, 0.0)
    )
    # eta = 1 has the variance of the posterior.
    np.testing.assert_allclose(
        full.ddim_std[:-1], np.sqrt(schedule.posterior_variance[:0:-1]), rtol=1e-3
    )
    np.testing.assert_allclose(half.ddim_std, full.ddim_std / 2, rtol=1e-6)
    assert (none.ddim_std == 0).all()
    assert full.ddim_std[-1] == 0  # at the last step


def test_constants_are_in_sampling_order():
    constants = step_constants(SCHEDULE, SamplerConfig("ddpm", 10))
    kept = SCHEDULE.respace(np.array([round(i * 111) for i in range(10)]))
    np.testing.assert_array_equal(constants.t, kept.timesteps[::-1])
    assert constants.t[0] == 999
    np.testing.assert_allclose(constants.alphas_cumprod, kept.alphas_cumprod[::-1], rtol=1e-6)
    np.testing.assert_allclose(constants.alphas_cumprod[1:], constants.alphas_cumprod_prev[:-1])
    assert constants.alphas_cumprod_prev[-1] == 1
    np.testing.assert_allclose(constants.coef1, kept.posterior_mean_coef1[::-1], rtol=1e-6)
    np.testing.assert_allclose(constants.coef2, kept.posterior_mean_coef2[::-1], atol=1e-7)
    np.testing.assert_allclose(constants.log_beta, np.log(kept.betas[::-1]), rtol=1e-6)
    assert constants.has_noise.tolist() == [1] * 9 + [0]


@pytest.mark.parametrize(
    ("config", "variance"),
    [
        (SamplerConfig("ddim", 50, 1.0), None),
        (SamplerConfig("ddim", 50, 0.3), None),
        (SamplerConfig("ddpm", 50), None),
        (SamplerConfig("ddpm", 50), 0.7),
    ],
    ids=str,
)
def test_transition_and_its_score_by_hand(batch, config, variance):
    """The Gaussian of a step by the papers' formulas, and the density of a state drawn from it."""
    rng = np.random.default_rng(0)
    x, eps, noise = rng.normal(size=(3, *batch.rows.position.shape, LATENT)).astype(np.float32)
    step = 20
    constants = step_constants(SCHEDULE, config)
    times = np.sort(constants.t)
    t = 49 - step
    bar, previous = SCHEDULE.alphas_cumprod[times[t]], SCHEDULE.alphas_cumprod[times[t - 1]]
    beta = 1 - bar / previous
    start = (x - np.sqrt(1 - bar) * eps) / np.sqrt(bar)
    posterior = beta * (1 - previous) / (1 - bar)
    if config.sampler == "ddim":
        std = config.eta * np.sqrt(posterior)
        mean = np.sqrt(previous) * start + np.sqrt(1 - previous - std**2) * eps
    else:
        mean = np.sqrt(previous) * beta * start + np.sqrt(1 - beta) * (1 - previous) * x
        mean = mean / (1 - bar)
        share = 1.0 if variance is None else (variance + 1) / 2
        std = np.exp(0.5 * (share * np.log(beta) + (1 - share) * np.log(posterior)))

    def denoise(x, t):
        assert t.shape == batch.rows.is_crystal.shape
        return jnp.asarray(eps), None if variance is None else jnp.full_like(x, variance)

    now = jax.tree.map(lambda v: v[step], constants)
    found = transition(denoise, jnp.asarray(x), now, rows=batch.rows, sampler=config.sampler)
    np.testing.assert_allclose(found.mean, mean, atol=1e-4)
    np.testing.assert_allclose(np.broadcast_to(found.std, x.shape), std, rtol=1e-3)

    state = found.mean + found.std * noise
    scored = batch.where.take_slots(log_probability(found, state, batch.rows))
    density = -0.5 * noise.astype(float) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)
    expected = [part.mean() for part in batch.where.split_atoms(density)]
    np.testing.assert_allclose(scored, expected, atol=2e-3)


def test_the_score_of_a_given_state_is_the_gaussian_density(batch):
    rng = np.random.default_rng(1)
    mean, state, log_std = rng.normal(size=(3, *batch.rows.position.shape, LATENT))
    gaussian = Gaussian(jnp.asarray(mean, jnp.float32), jnp.exp(jnp.asarray(log_std, jnp.float32)))
    found = log_probability(gaussian, jnp.asarray(state, jnp.float32), batch.rows)
    std = np.exp(log_std)
    density = np.log(np.exp(-0.5 * ((state - mean) / std) ** 2) / std / np.sqrt(2 * np.pi))
    expected = [part.mean() for part in batch.where.split_atoms(density)]
    np.testing.assert_allclose(batch.where.take_slots(found), expected, rtol=1e-5)
    assert (np.asarray(found)[~np.asarray(batch.rows.is_crystal)] == 0).all()


# --- crystals do not see each other ---------------------------------------------------------------


DIT_SIZES = DiTSizes(latent_dim=LATENT, hidden_size=16, depth=1, num_heads=2)
DIT = random_model(lambda: DiT(DIT_SIZES, rngs=nnx.Rngs(0)))


def dit_denoiser(rows):
    dit = nnx.merge(*DIT)

    def denoise(x, t):
        return split_output(dit(x, t, rows), rows, DIT_SIZES)

    return denoise


@pytest.mark.parametrize(
    ("config", "layouts"),
    [(SamplerConfig("ddim", 4), ("alone", "padded")), (SamplerConfig("ddpm", 4), ("alone",))],
    ids=str,
)
def test_a_crystal_does_not_depend_on_its_batch(config, layouts):
    key = jax.random.key(7)

    @jax.jit
    def run(rows):
        denoise = dit_denoiser(rows)
        options = {"schedule": SCHEDULE, "config": config, "latent_dim": LATENT}
        return sample_chain(denoise, key, rows, **options)

    def by_id(batches):
        found = {}
        for batch in batches:
            parts = batch.where.split_atoms(run(batch.rows))
            found |= dict(zip(batch.indices.tolist(), parts, strict=True))
        return found

    crystals = random_crystals()
    together = by_id(in_layout(crystals, "packed"))
    shape = RowShape(3, 16, 5)
    halves = [[5, 0, 3], [1, 4, 2]]  # in chunks, and in another order
    chunks = [place(crystals, assign(crystals.num_atoms[h], [shape]), h) for h in halves]
    others = {layout: by_id(in_layout(crystals, layout)) for layout in layouts}
    others["chunks"] = by_id(chunks)
    for name, found in others.items():
        for index, latents in together.items():
            np.testing.assert_allclose(found[index], latents, atol=2e-4, err_msg=f"{name} {index}")
    assert len({float(v[0, 0]) for v in together.values()}) == len(crystals)


def test_a_crystal_that_fails_takes_no_other_with_it(batch):
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

        options = {"schedule": SCHEDULE, "config": SamplerConfig("ddim", 6), "latent_dim": LATENT}
        return sample_chain(denoise, key, rows, **options)

    good = batch.where.split_atoms(run(batch.rows, 0.0))
    assert np.isfinite(np.concatenate(good)).all()
    for added in (np.nan, np.inf):
        found = batch.where.split_atoms(run(batch.rows, added))
        assert np.isnan(found.pop(2)).all()
        for ours, theirs in zip(found, good[:2] + good[3:], strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_every_step_has_a_noise_of_its_own(batch):
    """A denoiser that takes x itself for x_0: two steps of DDPM are then a sum of two noises."""
    key, config = jax.random.key(0), SamplerConfig("ddpm", 2)

    def make_denoise(rows):
        return lambda x, t: (x, None)

    found = chain(make_denoise, key, batch.rows, config, target="x_0")
    draw = jax.jit(lambda key: atom_normal(key, batch.rows, LATENT))
    start, noise = (np.asarray(draw(jax.random.fold_in(key, number))) for number in (0, 1))
    now = jax.tree.map(lambda v: v[0], step_constants(SCHEDULE, config))
    expected = (now.coef1 + now.coef2) * start + np.exp(0.5 * now.log_fixed) * noise
    np.testing.assert_allclose(batch.atoms(found), batch.atoms(expected), rtol=1e-4, atol=1e-5)


def test_config_errors():
    with pytest.raises(ValueError, match="sampler 'euler' is unknown; choose one of ddim, ddpm"):
        SamplerConfig("euler")
    with pytest.raises(ValueError, match="steps 0 must be at least 1"):
        SamplerConfig("ddim", 0)
    with pytest.raises(ValueError, match=r"eta -0\.5 at least 0"):
        SamplerConfig("ddim", 10, -0.5)
    with pytest.raises(ValueError, match="1 to 1000 steps, not 2000"):
        step_constants(SCHEDULE, replace(SamplerConfig(), steps=2000))
