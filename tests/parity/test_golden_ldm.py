"""Schedules, the DiT, its loss and the sampling chains give the numbers of the PyTorch original."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from chemeleon2_jax.diffusion.gaussian import predictor, training_loss
from chemeleon2_jax.diffusion.sampler import log_probability, step_constants
from chemeleon2_jax.diffusion.samplers import make_sampler
from chemeleon2_jax.diffusion.schedule import Schedule, make_betas
from chemeleon2_jax.models.dit import split_output
from chemeleon2_jax.rows.rows import weighted_mean
from tests.examples import relative
from tests.parity.golden import golden_rows, real_atoms, to_slots, to_tokens


@pytest.mark.parametrize("name", ["train", "ddim50", "ddpm50", "ddim10"])
def test_schedule(golden, name):
    schedule = Schedule.make()
    if name != "train":
        schedule = schedule.respace(make_sampler(name[:4], int(name[4:])).timesteps(1000))
    times = golden.arrays[f"schedule/{name}/timestep_map"]
    np.testing.assert_array_equal(schedule.timesteps, times)
    for field in (
        "betas",
        "alphas_cumprod",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
    ):
        expected = golden.arrays[f"schedule/{name}/{field}"]
        np.testing.assert_allclose(getattr(schedule, field), expected, rtol=1e-12)


def test_cosine_schedule(golden):
    betas = make_betas("squaredcos_cap_v2", 1000)
    expected = golden.arrays["schedule/squaredcos_cap_v2/betas"]
    np.testing.assert_allclose(betas, expected, rtol=1e-12)


def make_denoise(model, params, rows):
    """A denoise function of a golden DiT; `model` is (graphdef, sizes)."""
    graphdef, sizes = model
    dit = nnx.merge(graphdef, params)

    def denoise(x, t):
        return split_output(dit(x, t, rows), rows, sizes)

    return denoise


def load(golden, name):
    """((graphdef, sizes), params)."""
    dit, sizes = golden.dit(name)
    graphdef, params = nnx.split(dit, nnx.Param)
    return (graphdef, sizes), params


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("name", ["ldm", "ldm_fixed_sigma"])
def test_loss(golden, name, layout):
    arrays = golden.arrays
    model, params = load(golden, name)
    rows, where = golden_rows(arrays, layout)
    t = to_slots(arrays[f"{name}/t"].astype(np.int32), where)
    x_start, noise = (to_tokens(arrays[f"{name}/{k}"], where) for k in ("x_start", "noise"))

    def loss_fn(params):
        denoise = make_denoise(model, params, rows)
        schedule = Schedule.make()
        loss, terms = training_loss(
            denoise, x_start, t=t, noise=noise, schedule=schedule, rows=rows
        )
        return weighted_mean(loss, rows.is_crystal), (loss, terms)

    (_, (loss, terms)), gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params)
    assert relative(where.take_slots(terms["mse"]), arrays[f"{name}/training/mse"]) < 2e-5
    # The interleaved variance exists in padded rows alone.
    assert ("vb" in terms) == (name == "ldm" and layout == "padded")
    if "vb" in terms:
        assert relative(where.take_slots(terms["vb"]), arrays[f"{name}/training/vb"]) < 2e-5
    if "vb" in terms or name == "ldm_fixed_sigma":
        assert relative(where.take_slots(loss), arrays[f"{name}/training/loss"]) < 2e-5
        norm = float(optax.tree.norm(gradient))
        assert norm == pytest.approx(float(arrays[f"{name}/training/grad_norm"]), rel=1e-4)


def make_step(golden, name, rows, sampler):
    """One jitted transition: (x, constants) -> Transition."""
    model, params = load(golden, name)

    @jax.jit
    def step(x, values):
        denoise = make_denoise(model, params, rows)
        return sampler.transition(predictor(denoise, target="eps", rows=rows), x, values)

    return step


def constants_of(sampler):
    """Constants, step by step."""
    stacked = step_constants(Schedule.make(), sampler)
    return [jax.tree.map(lambda v, k=k: v[k], stacked) for k in range(sampler.steps)]


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("eta", [0, 1])
@pytest.mark.parametrize("name", ["ldm", "ldm_fixed_sigma"])
def test_ddim_chain(golden, name, eta, layout):
    arrays = golden.arrays
    rows, where = golden_rows(arrays, layout)
    prefix = f"{name}/sample/ddim10_eta{eta}"
    x = to_tokens(arrays[f"{name}/sample/z_T"], where)
    sampler = make_sampler("ddim", 10, float(eta))
    step = make_step(golden, name, rows, sampler)
    for k, values in enumerate(constants_of(sampler)):
        gaussian = step(x, values)
        noise = to_tokens(arrays[f"{prefix}/noises"][k], where)
        x = gaussian.mean + (k < sampler.num_drawn) * gaussian.std * noise
        if eta == 1 and k < 9:
            scored = where.take_slots(log_probability(gaussian, x, rows))
            assert np.abs(scored - arrays[f"{prefix}/log_probs"][k]).max() < 2e-5
    last = np.concatenate(where.split_atoms(x))
    assert relative(last, real_atoms(arrays[f"{prefix}/zs"][-1], where)) < 2e-5


@pytest.mark.parametrize("name", ["ldm", "ldm_fixed_sigma"])
def test_ddpm_step_by_step(golden, name):
    arrays = golden.arrays
    rows, where = golden_rows(arrays, "padded")
    prefix = f"{name}/sample/ddpm10"
    sampler = make_sampler("ddpm", 10)
    step = make_step(golden, name, rows, sampler)
    for k, values in enumerate(constants_of(sampler)):
        gaussian = step(jnp.asarray(arrays[f"{prefix}/zs"][k]), values)
        # Padding too: it evolves with eps 0, and the interleaved variance reads it.
        assert relative(gaussian.mean, arrays[f"{prefix}/means"][k]) < 2e-5
        if k < 9:
            shape = gaussian.mean.shape
            std = real_atoms(np.broadcast_to(gaussian.std, shape), where)
            theirs = np.broadcast_to(arrays[f"{prefix}/stds"][k], shape)
            assert relative(std, real_atoms(theirs, where)) < 2e-5
