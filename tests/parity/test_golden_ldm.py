"""Schedules, the DiT, its loss and the sampling chains give the numbers of the PyTorch original."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

sys.path.insert(0, str(Path(__file__).parent))
from golden import golden_rows, load_dit, read_state_dict, relative

from chemeleon2_jax.diffusion.gaussian import mean_loss, training_loss
from chemeleon2_jax.diffusion.sampler import SamplerConfig, log_probability, step_constants, transition
from chemeleon2_jax.diffusion.schedule import Schedule, make_betas, sampling_timesteps
from chemeleon2_jax.models.dit import split_output


@pytest.fixture(scope="module")
def golden(shared_dir):
    folder = shared_dir / "golden"
    arrays = np.load(folder / "golden.npz")
    return folder, arrays, json.loads((folder / "crystals.json").read_text())["size"]


@pytest.mark.parametrize("name", ["train", "ddim50", "ddpm50", "ddim10"])
def test_schedule(golden, name):
    _, arrays, _ = golden
    schedule = Schedule.make()
    if name != "train":
        schedule = schedule.respace(sampling_timesteps(name[:4], int(name[4:])))
    np.testing.assert_array_equal(schedule.timesteps, arrays[f"schedule/{name}/timestep_map"])
    for field in ("betas", "alphas_cumprod", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"):
        np.testing.assert_allclose(getattr(schedule, field), arrays[f"schedule/{name}/{field}"], rtol=1e-12)


def test_cosine_schedule(golden):
    _, arrays, _ = golden
    betas = make_betas("squaredcos_cap_v2", 1000)
    np.testing.assert_allclose(betas, arrays["schedule/squaredcos_cap_v2/betas"], rtol=1e-11)


def _denoiser(folder, name, size):
    dit, sizes = load_dit(read_state_dict(folder / f"{name}.ckpt"), size)
    graphdef, params = nnx.split(dit, nnx.Param)
    return graphdef, params, sizes


def _to_rows(values, where, rows):
    """(8, 20, L) padded values to rows."""
    flat = np.concatenate([v[:n] for v, n in zip(values, where.sizes, strict=True)])
    out = np.zeros((rows.position.size, values.shape[-1]), np.float32)
    out[where.token_index] = flat
    return jnp.asarray(out.reshape(*rows.position.shape, -1))


def _slots(values, where, rows):
    out = np.zeros(rows.is_crystal.size, values.dtype)
    out[where.slot_index] = values
    return jnp.asarray(out.reshape(rows.is_crystal.shape))


def _real(values, sizes):
    return np.concatenate([v[:n] for v, n in zip(np.asarray(values), sizes, strict=True)])


@pytest.mark.parametrize(
    ("name", "layout"),
    [("ldm", "padded"), ("ldm", "packed"), ("ldm_fixed_sigma", "padded"), ("ldm_fixed_sigma", "packed")],
)
def test_loss(golden, name, layout):
    folder, arrays, size = golden
    graphdef, params, sizes = _denoiser(folder, name, size)
    rows, where = golden_rows(arrays, layout)
    t = _slots(arrays[f"{name}/t"].astype(np.int32), where, rows)
    x_start, noise = (_to_rows(arrays[f"{name}/{k}"], where, rows) for k in ("x_start", "noise"))

    @jax.jit
    def loss_fn(params):
        dit = nnx.merge(graphdef, params)
        denoise = lambda x, t: split_output(dit(x, t, rows), rows, sizes)  # noqa: E731
        loss, terms = training_loss(denoise, x_start, t=t, noise=noise, schedule=Schedule.make(), rows=rows)
        return mean_loss(loss, terms, rows)[0], (loss, terms)

    (_, (loss, terms)), gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params)
    assert relative(where.take_slots(terms["mse"]), arrays[f"{name}/training/mse"]) < 2e-5
    if "vb" in terms:
        assert relative(where.take_slots(terms["vb"]), arrays[f"{name}/training/vb"]) < 2e-5
    if "vb" in terms or name == "ldm_fixed_sigma":
        assert relative(where.take_slots(loss), arrays[f"{name}/training/loss"]) < 2e-5
        norm = float(optax.tree.norm(gradient))
        assert norm == pytest.approx(float(arrays[f"{name}/training/grad_norm"]), rel=1e-4)


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("eta", [0, 1])
@pytest.mark.parametrize("name", ["ldm", "ldm_fixed_sigma"])
def test_ddim_chain(golden, name, eta, layout):
    folder, arrays, size = golden
    graphdef, params, sizes = _denoiser(folder, name, size)
    rows, where = golden_rows(arrays, layout)
    prefix = f"{name}/sample/ddim10_eta{eta}"
    constants = step_constants(Schedule.make(), SamplerConfig("ddim", 10, float(eta)))
    x = _to_rows(arrays[f"{name}/sample/z_T"], where, rows)

    @jax.jit
    def step(x, values):
        dit = nnx.merge(graphdef, params)
        denoise = lambda x, t: split_output(dit(x, t, rows), rows, sizes)  # noqa: E731
        return transition(denoise, x, values, rows=rows, sampler="ddim")

    for k in range(10):
        values = jax.tree.map(lambda v: v[k], constants)  # noqa: B023
        gaussian = step(x, values)
        noise = _to_rows(arrays[f"{prefix}/noises"][k], where, rows)
        x = gaussian.mean + values.has_noise * gaussian.std * noise
        if eta == 1 and k < 9:
            scored = where.take_slots(log_probability(gaussian, x, rows))
            assert np.abs(scored - arrays[f"{prefix}/log_probs"][k]).max() < 2e-5
    last = np.concatenate(where.split_atoms(x))
    assert relative(last, _real(arrays[f"{prefix}/zs"][-1], where.sizes)) < 2e-5


@pytest.mark.parametrize("name", ["ldm", "ldm_fixed_sigma"])
def test_ddpm_step_by_step(golden, name):
    folder, arrays, size = golden
    graphdef, params, sizes = _denoiser(folder, name, size)
    rows, where = golden_rows(arrays, "padded")
    prefix = f"{name}/sample/ddpm10"
    constants = step_constants(Schedule.make(), SamplerConfig("ddpm", 10))

    @jax.jit
    def step(x, values):
        dit = nnx.merge(graphdef, params)
        denoise = lambda x, t: split_output(dit(x, t, rows), rows, sizes)  # noqa: E731
        return transition(denoise, x, values, rows=rows, sampler="ddpm")

    for k in range(10):
        gaussian = step(jnp.asarray(arrays[f"{prefix}/zs"][k]), jax.tree.map(lambda v: v[k], constants))  # noqa: B023
        std = np.broadcast_to(gaussian.std, gaussian.mean.shape)
        assert relative(_real(gaussian.mean, where.sizes), _real(arrays[f"{prefix}/means"][k], where.sizes)) < 2e-5
        theirs = _real(np.broadcast_to(arrays[f"{prefix}/stds"][k], std.shape), where.sizes)
        if k < 9:
            assert relative(_real(std, where.sizes), theirs) < 2e-5
