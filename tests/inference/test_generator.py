"""From latents' model to crystals: sizes, chains, chunks, and what could not be built."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from chemeleon2_jax.common.randomness import named_key
from chemeleon2_jax.crystals.structures import structure_from_arrays
from chemeleon2_jax.diffusion.chain import sample_chain
from chemeleon2_jax.diffusion.samplers import make_sampler
from chemeleon2_jax.diffusion.schedule import Schedule
from chemeleon2_jax.inference import generator as generation
from chemeleon2_jax.inference.api import VAEModel
from chemeleon2_jax.inference.denoiser import denoiser
from chemeleon2_jax.inference.generator import Generator, draw_num_atoms, padding
from chemeleon2_jax.models.condition_kinds import CompositionCondition, FloatCondition
from chemeleon2_jax.models.dit import DiT, split_output
from chemeleon2_jax.models.vae import split_crystals
from chemeleon2_jax.pretrained.loading import ldm_of, open_model, vae_of
from chemeleon2_jax.rows.filling import build_rows, empty_crystals
from chemeleon2_jax.rows.packing import assign_padded
from tests.examples import relative
from tests.tiny import conditional, noisy

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIZES = [2, 5, 8, 3, 2, 11, 1, 20, 8, 5, 2]
FAST = make_sampler(steps=6)


@pytest.fixture(scope="module")
def parts(tiny_ldm):
    return ldm_of(open_model(tiny_ldm.path))


@pytest.fixture(scope="module")
def generator(parts):
    return Generator(parts, FAST)


@pytest.fixture(scope="module")
def generated(generator):
    return generator.generate(SIZES, seed=3)


def assert_same(first, second):
    """Crystals and latents are the same up to float error."""
    for one, other in zip(first.crystals, second.crystals, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_allclose(one[1], other[1], atol=1e-4)
        np.testing.assert_allclose(one[2], other[2], atol=1e-3)
    for one, other in zip(first.latents, second.latents, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)


def part_of(generated, start, stop):
    return generation.Generated(generated.crystals[start:stop], generated.latents[start:stop])


def test_a_crystal_of_each_size(generated):
    assert [len(types) for types, _, _ in generated.crystals] == SIZES
    assert [latent.shape for latent in generated.latents] == [(n, 8) for n in SIZES]
    for types, frac, lattice in generated.crystals:
        assert ((types >= 1) & (types <= 99)).all()
        assert (frac.shape, lattice.shape) == ((len(types), 3), (3, 3))
        assert np.isfinite(frac).all()
        assert np.isfinite(lattice).all()


@pytest.mark.parametrize("chunk_size", [1, 4, 100])
def test_chunks_change_nothing(generator, generated, chunk_size):
    done = []
    again = generator.generate(SIZES, seed=3, chunk_size=chunk_size, on_done=done.append)
    assert_same(again, generated)
    assert sum(done) == len(SIZES)
    assert max(done) == min(chunk_size, len(SIZES))


def test_a_crystal_depends_on_seed_index_and_its_own_size(generator, generated):
    assert_same(generator.generate(SIZES[4:], seed=3, first_index=4), part_of(generated, 4, None))
    others = [7, *SIZES[1:3], 14]
    assert_same(part_of(generator.generate(others, seed=3), 1, 3), part_of(generated, 1, 3))


def test_seeds_and_indices_differ(generator, generated):
    other = generator.generate(SIZES, seed=4)
    for latent, other_latent in zip(generated.latents, other.latents, strict=True):
        assert np.abs(latent - other_latent).max() > 0.1
    assert np.abs(generated.latents[0] - generated.latents[4]).max() > 0.1  # both have two atoms
    assert np.abs(generated.latents[0][0] - generated.latents[0][1]).max() > 0.1  # two atoms of one


def test_four_devices_are_one(four_devices):
    one, four = (np.load(four_devices / f"generate_{n}.npz") for n in (1, 4))
    np.testing.assert_array_equal(one["types"], four["types"])
    for name in ("frac", "lattices", "latents"):
        np.testing.assert_allclose(four[name], one[name], atol=1e-3)


def test_parameters_can_be_given(generator, parts, generated):
    other = generator.generate(SIZES[:3], seed=3, params=noisy(parts.params))
    assert np.abs(other.latents[0] - generated.latents[0]).max() > 0.1


def test_latents_are_scaled_and_decoded(monkeypatch, parts):
    def chain(denoise, key, rows, *, latent_dim, **options):
        ids = jnp.take_along_axis(rows.crystal_id, rows.slot, axis=1)
        x = 0.1 * (ids + rows.position)[..., None] + jnp.linspace(-1.0, 1.0, latent_dim)
        return jnp.where(rows.is_atom[..., None], x, 7.0)

    monkeypatch.setattr(generation, "sample_chain", chain)
    generated = Generator(parts, FAST).generate(SIZES, seed=0, first_index=2)
    for index, (size, latent) in enumerate(zip(SIZES, generated.latents, strict=True)):
        x = 0.1 * (index + 2 + np.arange(size))[:, None] + np.linspace(-1.0, 1.0, 8)
        np.testing.assert_allclose(latent, x * parts.latent_std, rtol=1e-5)
    decoded = VAEModel(parts.vae, {}).decode(generated.latents)
    for crystal, expected in zip(generated.crystals, decoded, strict=True):
        structure = structure_from_arrays(*crystal)
        assert structure.species == expected.species
        np.testing.assert_allclose(structure.frac_coords, expected.frac_coords, atol=1e-5)
        np.testing.assert_allclose(structure.lattice.matrix, expected.lattice.matrix, atol=1e-4)


def test_without_noise_only_the_start_is_random(parts, generator):
    quiet = Generator(parts, replace(FAST, eta=0.0))
    first = quiet.generate([5, 2], seed=0)
    assert_same(quiet.generate([5, 2], seed=0), first)
    assert np.abs(generator.generate([5], seed=0).latents[0] - first.latents[0]).max() > 0.01


def test_ddpm(parts):
    ddpm = Generator(parts, make_sampler("ddpm", 6))
    first = ddpm.generate(SIZES, seed=3)
    assert padding(parts, ddpm.sampler, np.array(SIZES)) == 0
    assert_same(ddpm.generate(SIZES, seed=3, chunk_size=4), first)
    assert np.isfinite(np.concatenate(first.latents)).all()


@pytest.fixture(scope="module")
def interleaved(parts):
    """The same model with random weights that are read in the interleaved layout."""
    sizes = replace(parts.sizes, variance_layout="interleaved")
    graphdef, params = nnx.split(DiT(sizes, rngs=nnx.Rngs(0)), nnx.Param)
    return replace(parts, sizes=sizes, graphdef=graphdef, params=noisy(params))


@pytest.mark.parametrize(("sampler", "padded"), [("ddpm", True), ("ddim", False)])
def test_interleaved_variance(interleaved, sampler, padded):
    generator = Generator(interleaved, make_sampler(sampler, 6))
    sizes = [2, 5, 8, 3, 1]
    tokens = len(interleaved.size_table) - 1 if padded else 0
    assert padding(interleaved, generator.sampler, np.array(sizes)) == tokens
    first = generator.generate(sizes, seed=3)
    assert [len(types) for types, _, _ in first.crystals] == sizes
    assert np.isfinite(np.concatenate(first.latents)).all()
    assert_same(generator.generate(sizes, seed=3, chunk_size=2), first)
    # The padding is that of training, whatever is asked for.
    assert_same(generator.generate(sizes[:2], seed=3), part_of(first, 0, 2))


def test_interleaved_eps_needs_no_padding(interleaved):
    """DDIM over packed rows gives what it gives over rows padded as in training."""
    generator, sizes = Generator(interleaved, FAST), np.array([2, 5, 8, 3])
    tokens = len(interleaved.size_table) - 1
    arguments, where = generator.program_arguments(sizes, seed=3, padded_tokens=tokens)
    assert where.padded
    latents, built = jax.device_get(generator.program(*arguments))
    padded = generation.Generated(split_crystals(built, where), where.split_atoms(latents))
    assert_same(padded, generator.generate(sizes, seed=3))


def test_interleaved_variance_ends_at_the_largest_crystal_of_training(interleaved):
    largest = len(interleaved.size_table) - 1
    ddpm = Generator(interleaved, make_sampler("ddpm", 6))
    assert len(ddpm.generate([largest], seed=3).crystals) == 1
    with pytest.raises(ValueError, match=f"crystal 1 has {largest + 1} atoms, .* up to {largest},"):
        ddpm.generate([2, largest + 1], seed=3)
    ddim = Generator(interleaved, FAST).generate([2, largest + 1], seed=3)
    assert np.isfinite(np.concatenate(ddim.latents)).all()


# --- conditions -----------------------------------------------------------------------------------

GAP, FORMULA = FloatCondition("gap"), CompositionCondition("formula")
GAPS = [None, 0.5, 1.0, 2.0, None, 0.0, 1.5, 3.0, 0.5, 1.0, 2.0]


def asked(gaps=GAPS):
    formulas = [None if gap is None else ("NaCl", "MgO")[i % 2] for i, gap in enumerate(gaps)]
    return {"gap": GAP.encode(gaps), "formula": FORMULA.encode(formulas)}


@pytest.fixture(scope="module")
def conditional_parts(parts):
    return conditional(parts, GAP, FORMULA)


@pytest.fixture(scope="module")
def guided(conditional_parts):
    return Generator(conditional_parts, FAST)


@pytest.fixture(scope="module")
def guided_crystals(guided):
    return guided.generate(SIZES, seed=3, conditions=asked())


def test_guidance_is_its_formula(conditional_parts, guided, guided_crystals):
    """The chain with prediction null + 2 (conditional - null), one crystal in a row."""
    parts = conditional_parts
    where = assign_padded(SIZES, max(SIZES))
    rows = build_rows(empty_crystals(SIZES), where, conditions=asked())

    @jax.jit
    def chain(params, key):
        dit = parts.module(params)

        def denoise(x, t):
            conditional = dit(x, t, rows, condition=dit.conditions(rows.conditions))
            null = dit(x, t, rows)
            return split_output(null + 2.0 * (conditional - null), rows, parts.sizes)

        options = {"schedule": Schedule.of(parts.diffusion), "sampler": FAST, "latent_dim": 8}
        return sample_chain(denoise, key, rows, **options) * parts.latent_std

    expected = where.split_atoms(chain(parts.params, named_key(3, "chain")))
    for latents, expected_latents in zip(guided_crystals.latents, expected, strict=True):
        assert relative(latents, expected_latents) < 1e-4


@pytest.mark.parametrize("chunk_size", [3, 4])
def test_chunks_keep_the_conditions_of_their_crystals(guided, guided_crystals, chunk_size):
    again = guided.generate(SIZES, seed=3, conditions=asked(), chunk_size=chunk_size)
    assert_same(again, guided_crystals)


def test_conditions_act_and_null_is_none(guided, guided_crystals):
    plain = guided.generate(SIZES, seed=3)
    nothing = guided.generate(SIZES, seed=3, conditions=asked([None] * len(SIZES)))
    assert_same(nothing, plain)
    for index, (latents, plain_latents) in enumerate(
        zip(guided_crystals.latents, plain.latents, strict=True)
    ):
        assert (np.abs(latents - plain_latents).max() < 1e-3) == (GAPS[index] is None)


def test_scale_of_the_guidance(conditional_parts, guided_crystals):
    def latents(scale):
        generator = Generator(conditional_parts, FAST, cfg_scale=scale)
        return generator.generate(SIZES, seed=3, conditions=asked()).latents

    unconditional = Generator(conditional_parts, FAST).generate(SIZES, seed=3).latents
    off, conditional_only = latents(0.0), latents(1.0)
    for index, gap in enumerate(GAPS):
        assert np.abs(off[index] - unconditional[index]).max() < 1e-3
        if gap is not None:
            assert np.abs(conditional_only[index] - off[index]).max() > 1e-3
            assert np.abs(conditional_only[index] - guided_crystals.latents[index]).max() > 1e-3


def test_guided_interleaved_variance(conditional_parts):
    sizes = replace(conditional_parts.sizes, variance_layout="interleaved")
    ddpm = Generator(replace(conditional_parts, sizes=sizes), make_sampler("ddpm", 4))
    sizes, conditions = np.array([2, 5, 8]), asked(GAPS[:3])
    first = ddpm.generate(sizes, seed=3, conditions=conditions)
    assert padding(ddpm.ldm, ddpm.sampler, sizes) > 0
    assert np.isfinite(np.concatenate(first.latents)).all()
    assert_same(ddpm.generate(sizes, seed=3, conditions=conditions, chunk_size=2), first)


def test_conditions_of_a_model_without(generator):
    with pytest.raises(ValueError, match="takes no conditions"):
        generator.generate([2], seed=0, conditions={"gap": np.zeros((1, 1))})


@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_scales_that_are_none(parts, scale):
    with pytest.raises(ValueError, match="it must be finite"):
        Generator(parts, FAST, cfg_scale=scale)


def test_given_atom_types_are_built(parts, csp_run):
    csp = replace(parts, vae=vae_of(open_model(csp_run)))
    types = [np.array([11, 17]), np.array([99, 1, 26]), np.array([6])]
    generated = Generator(csp, FAST).generate([2, 3, 1], seed=0, atom_types=types, chunk_size=2)
    for (built, _, _), wanted in zip(generated.crystals, types, strict=True):
        np.testing.assert_array_equal(built, wanted)


# --- what fails -----------------------------------------------------------------------------------


def test_those_that_diverge_do_not_reach_the_others(monkeypatch, parts, generated):
    chain = generation.sample_chain
    values = {1: np.nan, 2: np.inf, 5: -3e38, 7: 1e30}

    def diverging(denoise, key, rows, **options):
        x = chain(denoise, key, rows, **options)
        ids = jnp.take_along_axis(rows.crystal_id, rows.slot, axis=1)
        for index, value in values.items():
            x = jnp.where(((ids == index) & (rows.position == 1))[..., None], value, x)
        return x

    monkeypatch.setattr(generation, "sample_chain", diverging)
    hurt = Generator(parts, FAST).generate(SIZES, seed=3)
    for index, size in enumerate(SIZES):
        if index in values:
            assert len(hurt.crystals[index][0]) == size
            assert np.isnan(hurt.crystals[index][1]).all()
        else:
            assert_same(part_of(hurt, index, index + 1), part_of(generated, index, index + 1))


def test_a_chain_that_diverges_stays_alone(monkeypatch, parts, generated):
    def diverging(dit, sizes, rows, **options):
        denoise = denoiser(dit, sizes, rows, **options)
        ids = jnp.take_along_axis(rows.crystal_id, rows.slot, axis=1)

        def broken(x, t):
            eps, variance = denoise(x, t)
            return jnp.where((ids == 3)[..., None], jnp.inf, eps), variance

        return broken

    monkeypatch.setattr(generation, "denoiser", diverging)
    hurt = Generator(parts, FAST).generate(SIZES, seed=3)
    assert np.isnan(hurt.latents[3]).all()
    for start, stop in ((0, 3), (4, None)):
        assert_same(part_of(hurt, start, stop), part_of(generated, start, stop))


def test_sizes_that_are_none(generator):
    assert generator.generate([], seed=0).crystals == []
    with pytest.raises(ValueError, match="num_atoms must be at least 1; crystal 1 has 0"):
        generator.generate([3, 0], seed=0)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_more_steps_than_the_chain_has(parts, sampler):
    with pytest.raises(ValueError, match="takes 1 to 1000 steps, not 1001"):
        Generator(parts, make_sampler(sampler, 1001))


@pytest.mark.parametrize("options", [{"steps": 0}, {"eta": -0.1}, {"eta": np.nan}, {"eta": np.inf}])
def test_samplers_that_are_none(options):
    with pytest.raises(ValueError, match="must be at least 1 and eta"):
        make_sampler(**options)


# --- numbers of atoms -----------------------------------------------------------------------------

TABLE = np.array([0, 0, 20, 0, 7, 12, 0, 1])


def test_sizes_follow_the_table():
    draws = draw_num_atoms(TABLE, 20_000, 0)
    counts = np.bincount(draws, minlength=len(TABLE))
    assert counts.sum() == 20_000
    assert not counts[TABLE == 0].any()
    expected = 20_000 * TABLE[TABLE > 0] / TABLE.sum()
    chi_square = ((counts[TABLE > 0] - expected) ** 2 / expected).sum()
    assert chi_square < 16.3  # 3 degrees of freedom, p = 0.001


def test_the_first_sizes_of_a_longer_draw_are_the_same():
    long = draw_num_atoms(TABLE, 1000, 5)
    np.testing.assert_array_equal(draw_num_atoms(TABLE, 7, 5), long[:7])
    assert (draw_num_atoms(TABLE, 1000, 6) != long).mean() > 0.3


def test_only_one_size():
    assert draw_num_atoms(np.array([0, 0, 0, 4]), 5, 0).tolist() == [3] * 5


def test_sizes_are_not_the_noise_of_the_chain(generator, parts):
    """Crystals of equal size are as different as others, whatever was drawn for their size."""
    keys = [named_key(3, use) for use in ("sizes", "chain")]
    assert not (jax.random.key_data(keys[0]) == jax.random.key_data(keys[1])).all()
