"""Conditional models, guidance and adapters give the numbers of the PyTorch original."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from chemeleon2_jax.diffusion.gaussian import predictor, training_loss
from chemeleon2_jax.diffusion.guidance import guided
from chemeleon2_jax.diffusion.sampler import log_probability, step_constants
from chemeleon2_jax.diffusion.samplers import make_sampler
from chemeleon2_jax.diffusion.schedule import Schedule
from chemeleon2_jax.models.condition_kinds import (
    CategoricalCondition,
    ChemicalSystemCondition,
    CompositionCondition,
    FloatCondition,
)
from chemeleon2_jax.models.dit import DiT, split_output
from chemeleon2_jax.models.lora import merge
from chemeleon2_jax.models.sizes import LoRASizes
from chemeleon2_jax.rows.rows import weighted_mean
from tests.examples import relative
from tests.parity.golden import golden_rows, real_atoms, to_slots, to_tokens

CONDITIONAL = ("ldm_cond", "ldm_cond_symmetry")
NAMES = (*CONDITIONAL, "ldm_lora")
SCALE = 2.0
CONDITIONS = {
    "ldm_cond": (
        CompositionCondition("composition"),
        FloatCondition("dft_band_gap", 0.797, 1.408),
    ),
    "ldm_cond_symmetry": (
        ChemicalSystemCondition("chemical_system"),
        CategoricalCondition("space_group", num_classes=231),
    ),
}
LORA = LoRASizes(4, 8.0, ("attention.out", "mlp.fc1", "mlp.fc2"))


class Model:
    """A golden DiT, the eight crystals in one layout, and what is asked of them."""

    def __init__(self, golden, name, layout):
        dit, self.sizes = golden.dit(name)
        found = self.sizes.conditions
        self.conditions = found.conditions if found else ()
        assert self.conditions == CONDITIONS.get(name, ())
        assert self.sizes.lora == (LORA if name == "ldm_lora" else None)
        self.graphdef, self.params = nnx.split(dit, nnx.Param)
        encoded = {c.name: c.encode(golden.facts[c.name]) for c in self.conditions}
        self.rows, self.where = golden_rows(golden.arrays, layout, conditions=encoded)

    def denoise(self, params, *, scale):
        """A denoise function; scale 1 is not guided."""
        dit: DiT = nnx.merge(self.graphdef, params)

        def call(x, t, condition=None):
            return split_output(dit(x, t, self.rows, condition=condition), self.rows, self.sizes)

        if not self.conditions:
            return call
        embedding, null = dit.embed(self.rows), dit.conditions.null()
        return guided(call, embedding, null=null, scale=scale)


@pytest.mark.parametrize("name", CONDITIONAL)
def test_embedding(golden, name):
    model = Model(golden, name, "packed")
    dit = nnx.merge(model.graphdef, model.params)
    expected = golden.arrays[f"{name}/cond_embed_pairs"]
    assert relative(model.where.take_slots(dit.embed(model.rows)), expected[:8]) < 2e-5
    nulls = np.broadcast_to(dit.conditions.null(), (8, golden.facts["size"]["hid"]))
    assert relative(nulls, expected[8:]) < 2e-5


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("name", NAMES)
def test_denoiser(golden, name, layout):
    arrays, model = golden.arrays, Model(golden, name, layout)
    where = model.where
    t = to_slots(arrays[f"{name}/t"].astype(np.int32), where)
    x = to_tokens(arrays[f"{name}/x_start"], where)
    found, variance = jax.jit(lambda p: model.denoise(p, scale=1.0)(x, t))(model.params)
    theirs = arrays[f"{name}/denoiser_out"]
    ours = np.concatenate(where.split_atoms(found))
    assert relative(ours, real_atoms(theirs[:, :20], where)) < 2e-5
    if layout == "padded":
        ours = np.concatenate(where.split_atoms(variance))
        assert relative(ours, real_atoms(theirs[:, 20:], where)) < 2e-5


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("name", NAMES)
def test_loss(golden, name, layout):
    arrays, model = golden.arrays, Model(golden, name, layout)
    where = model.where
    t = to_slots(arrays[f"{name}/t"].astype(np.int32), where)
    x_start, noise = (to_tokens(arrays[f"{name}/{k}"], where) for k in ("x_start", "noise"))

    def loss_fn(params):
        loss, terms = training_loss(
            model.denoise(params, scale=1.0),
            x_start,
            t=t,
            noise=noise,
            schedule=Schedule.make(),
            rows=model.rows,
        )
        return weighted_mean(loss, model.rows.is_crystal), (loss, terms)

    step = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (_, (loss, terms)), gradient = step(model.params)
    found = {**terms, "loss": loss}
    # The interleaved variance exists in padded rows alone.
    for term in ("mse",) if layout == "packed" else ("mse", "vb", "loss"):
        ours = where.take_slots(found[term])
        assert relative(ours, arrays[f"{name}/training/{term}"]) < 2e-5, term
    if layout == "padded":
        norm = float(optax.tree.norm(of_original(gradient)))
        assert norm == pytest.approx(float(arrays[f"{name}/training/grad_norm"]), rel=1e-4)


def of_original(gradient):
    """What the original counts: the denoiser without its conditions, and no adapter on the output
    of the attention, which there does not act.
    """
    return [
        leaf
        for path, leaf in nnx.to_flat_state(gradient)
        if path[0] != "conditions"
        and not (path[-3:-1] == ("attention", "out") and path[-1].startswith("lora"))
    ]


def make_step(model, sampler):
    """One jitted transition: (x, constants) -> Transition."""

    @jax.jit
    def step(params, x, values):
        denoise = model.denoise(params, scale=SCALE)
        return sampler.transition(predictor(denoise, target="eps", rows=model.rows), x, values)

    return lambda x, values: step(model.params, x, values)


def constants_of(sampler):
    """Constants, step by step."""
    stacked = step_constants(Schedule.make(), sampler)
    return [jax.tree.map(lambda v, k=k: v[k], stacked) for k in range(sampler.steps)]


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("eta", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_ddim_chain(golden, name, eta, layout):
    arrays, model = golden.arrays, Model(golden, name, layout)
    where, prefix = model.where, f"{name}/sample/ddim10_eta{eta}"
    x = to_tokens(arrays[f"{name}/sample/z_T"], where)
    sampler = make_sampler("ddim", 10, float(eta))
    step = make_step(model, sampler)
    for k, values in enumerate(constants_of(sampler)):
        gaussian = step(x, values)
        noise = to_tokens(arrays[f"{prefix}/noises"][k], where)
        x = gaussian.mean + (k < sampler.num_drawn) * gaussian.std * noise
        if eta == 1 and k < 9:
            scored = where.take_slots(log_probability(gaussian, x, model.rows))
            assert np.abs(scored - arrays[f"{prefix}/log_probs"][k]).max() < 2e-5
    last = np.concatenate(where.split_atoms(x))
    assert relative(last, real_atoms(arrays[f"{prefix}/zs"][-1], where)) < 2e-5


@pytest.mark.parametrize("name", NAMES)
def test_ddpm_step_by_step(golden, name):
    arrays, model = golden.arrays, Model(golden, name, "padded")
    where, prefix = model.where, f"{name}/sample/ddpm10"
    sampler = make_sampler("ddpm", 10)
    step = make_step(model, sampler)
    for k, values in enumerate(constants_of(sampler)):
        gaussian = step(jnp.asarray(arrays[f"{prefix}/zs"][k]), values)
        # Padding too: it evolves with eps 0, and the interleaved variance reads it.
        assert relative(gaussian.mean, arrays[f"{prefix}/means"][k]) < 2e-5
        if k < 9:
            std = real_atoms(gaussian.std, where)
            assert relative(std, real_atoms(arrays[f"{prefix}/stds"][k], where)) < 2e-5


def test_merged_adapters_are_the_adapters(golden):
    arrays, model = golden.arrays, Model(golden, "ldm_lora", "packed")
    t = to_slots(arrays["ldm_lora/t"].astype(np.int32), model.where)
    x = to_tokens(arrays["ldm_lora/x_start"], model.where)
    graphdef, _ = nnx.split(DiT(replace(model.sizes, lora=None), rngs=nnx.Rngs(0)), nnx.Param)
    dit = nnx.merge(graphdef, merge(model.params, LORA))
    eps, _ = split_output(dit(x, t, model.rows), model.rows, model.sizes)
    theirs = real_atoms(arrays["ldm_lora/denoiser_out"][:, :20], model.where)
    assert relative(np.concatenate(model.where.split_atoms(eps)), theirs) < 2e-5
