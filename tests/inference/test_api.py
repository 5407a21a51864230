"""Models as Python objects, against the modules that they are made of."""

from __future__ import annotations

import warnings
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx
from pymatgen.core import Lattice, Structure

import chemeleon2_jax as c2
from chemeleon2_jax.crystals.arrays import Crystals
from chemeleon2_jax.crystals.structures import structures_to_crystals
from chemeleon2_jax.data.parse import parse_crystal
from chemeleon2_jax.diffusion.samplers import make_sampler
from chemeleon2_jax.diffusion.schedule import Schedule
from chemeleon2_jax.inference.api import LDMModel, PredictorModel, VAEModel
from chemeleon2_jax.inference.generator import draw_num_atoms
from chemeleon2_jax.models.condition_kinds import CompositionCondition, FloatCondition
from chemeleon2_jax.models.dit import split_output
from chemeleon2_jax.models.predictor import Predictor
from chemeleon2_jax.models.sizes import PredictorSizes, Target
from chemeleon2_jax.models.vae import reconstruct
from chemeleon2_jax.pretrained.loading import PredictorParts
from chemeleon2_jax.rows.filling import build_rows
from chemeleon2_jax.rows.packing import assign_padded
from tests.examples import random_model
from tests.tiny import conditional, make_crystals, noisy, perovskite, rocksalt, zincblende

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def vae(tiny_vae):
    return c2.load_model(tiny_vae.path)


@pytest.fixture(scope="module")
def csp(csp_run):
    return c2.load_model(csp_run)


@pytest.fixture(scope="module")
def ldm(tiny_ldm):
    return c2.load_model(tiny_ldm.path)


def mixed() -> list[Structure]:
    """Sizes in no order, and one that is not reduced."""
    return [
        zincblende("Ga", "As", 5.65),
        rocksalt("Na", "Cl", 5.64),
        perovskite("Ba", "Ti", 4.0) * (2, 2, 1),
        rocksalt("Li", "F", 4.03),
        perovskite("Sr", "Ti", 3.9),
    ]


def padded_rows(crystals: Crystals, **features):
    """One crystal a row."""
    sizes = crystals.num_atoms
    pairs = int((sizes.astype(int) ** 2).sum())
    where = assign_padded(sizes, int(sizes.max()), edges=pairs)
    return build_rows(crystals, where, atom_features=features), where


def as_crystals(latents) -> Crystals:
    """Crystals of those sizes with nothing in them."""
    return Crystals.from_list((np.ones(len(z)), np.zeros((len(z), 3)), np.eye(3)) for z in latents)


# --- VAE ------------------------------------------------------------------------------------------


def test_encode_refuses_what_would_reach_its_neighbours(tiny_vae):
    vae = c2.load_model(tiny_vae.path)
    good = make_crystals()[:2]
    bad = Structure(good[0].lattice, ["Na", "Cl"], [[np.nan, 0, 0], [0.5] * 3])
    with pytest.raises(ValueError, match="structure 1: a coordinate or the cell is not finite"):
        vae.encode([good[0], bad, good[1]])


@pytest.mark.parametrize("name", ["vae", "csp"])
def test_encode_is_the_encoder(request, name):
    model, structures = request.getfixturevalue(name), mixed()
    means, logvars = model.encode(structures)
    rows, where = padded_rows(structures_to_crystals(structures))
    posterior = jax.jit(lambda p: model.parts.module(p).encode(rows))(model.parts.params)
    for encoded, expected in ((means, posterior.mean), (logvars, posterior.logvar)):
        for structure, latent, expected_latent in zip(
            structures, encoded, where.split_atoms(expected), strict=True
        ):
            assert latent.shape == (len(structure), 8)
            np.testing.assert_allclose(latent, expected_latent, rtol=1e-4, atol=1e-4)


def test_cells_are_taken_as_they_are(vae):
    crystal = rocksalt("Na", "Cl", 5.64)
    moved = crystal.copy()
    moved.translate_sites(range(len(moved)), [0.1, 0.2, 0.3])
    means, _ = vae.encode([crystal, moved, crystal * (1, 1, 2)])
    assert np.abs(means[0] - means[1]).max() > 1e-3
    assert [len(mean) for mean in means] == [2, 2, 4]


def test_decode_is_the_decoder(vae):
    latents = vae.encode(mixed())[0]
    structures = vae.decode(latents)
    rows, where = padded_rows(as_crystals(latents), latent=np.concatenate(latents))

    @jax.jit
    def direct(params):
        return reconstruct(vae.parts.module(params).decode(rows.features["latent"], rows), rows)

    built = direct(vae.parts.params)
    for structure, types, frac, lattice in zip(
        structures,
        where.split_atoms(built.atom_types),
        where.split_atoms(built.frac_coords),
        where.take_slots(built.lattices),
        strict=True,
    ):
        assert list(structure.atomic_numbers) == types.tolist()
        np.testing.assert_allclose(structure.lattice.matrix, lattice, atol=1e-4)
        shift = structure.frac_coords - frac
        np.testing.assert_allclose(shift, np.round(shift), atol=1e-4)
        assert structure.frac_coords.min() >= 0.0
        assert structure.frac_coords.max() < 1.0


def test_more_than_a_batch_keeps_the_order(vae):
    structures = make_crystals() * 7  # 287
    means, _ = vae.encode(structures)
    few, _ = vae.encode(structures[:41])
    assert [len(mean) for mean in means] == [len(s) for s in structures]
    for mean, expected in zip(means, few * 7, strict=True):
        np.testing.assert_allclose(mean, expected, atol=1e-4)
    decoded = vae.decode(means)
    assert [len(s) for s in decoded] == [len(s) for s in structures]
    assert [s.formula for s in decoded[-41:]] == [s.formula for s in vae.decode(few)]


def test_nothing_gives_nothing(vae, ldm):
    assert vae.encode([]) == ([], [])
    assert vae.decode([]) == []
    assert ldm.denoise([], []) == []


def test_latents_that_decode_to_no_crystal(vae):
    good = vae.encode(mixed()[:2])[0]
    latents = [
        good[0],
        np.full((3, 8), np.nan),
        good[1],
        np.full((2, 8), 3e38),
        np.full((1, 8), np.inf),
    ]
    with pytest.warns(UserWarning, match="decodes to no crystal") as caught:
        decoded = vae.decode(latents)
    assert [structure is None for structure in decoded] == [False, True, False, True, True]
    assert [str(w.message) for w in caught] == [
        f"latent {i} decodes to no crystal: the latent is not finite" for i in (1, 3, 4)
    ]
    for structure, expected in zip((decoded[0], decoded[2]), vae.decode(good), strict=True):
        assert structure.species == expected.species
        np.testing.assert_allclose(structure.frac_coords, expected.frac_coords, atol=1e-5)


def with_cell(vae: VAEModel, lengths, angles) -> VAEModel:
    """The same VAE with a decoder that gives every crystal one cell: scaled lengths, radians."""
    params = jax.tree.map(np.array, vae.parts.params)
    decoder = params["decoder"]
    # The final LayerNorm gives its bias alone, on which the head is the identity.
    norm, head = decoder["transformer"]["norm"], decoder["lattice_head"]["kernel"]
    width = len(norm["bias"][...])
    norm["scale"][...] = np.zeros(width, np.float32)
    norm["bias"][...] = np.array([*lengths, *angles] + [0.0] * (width - 6), np.float32)
    head[...] = np.eye(width, 6, dtype=np.float32)
    return VAEModel(replace(vae.parts, params=params), vae.meta)


GOOD_ANGLES = [1.5, 1.6, 1.7]


@pytest.mark.parametrize(
    ("lengths", "angles", "reason"),
    [
        ([3.0, 4.0, 5.0], GOOD_ANGLES, None),
        ([-3.0, 4.0, 5.0], GOOD_ANGLES, "a cell length is not positive"),
        ([3.0, 4.0, 0.0], GOOD_ANGLES, "a cell length is not positive"),
        ([3.0, 4.0, 9e4], GOOD_ANGLES, "a cell length is beyond 1000 angstrom"),
        ([3.0, 4.0, np.nan], GOOD_ANGLES, "not finite"),
        ([3.0, 4.0, 5.0], [2.5, 2.5, 2.5], "impossible angles"),
        ([3.0, 4.0, 5.0], [0.5, 0.5, 2.0], "impossible angles"),
        ([3.0, 4.0, 5.0], [1.5, -1.6, 1.7], "impossible angles"),
        ([3.0, 4.0, 5.0], [1.5, 1.6, 4.0], "impossible angles"),
        ([3.0, 4.0, 5.0], [4.0, 1.6, 1.7], "impossible angles"),
    ],
)
def test_cells_that_cannot_be_built(vae, lengths, angles, reason):
    broken = with_cell(vae, lengths, angles)
    latents = vae.encode([rocksalt("Na", "Cl", 5.64)])[0]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (structure,) = broken.decode(latents)
    if reason is None:
        np.testing.assert_allclose(
            structure.lattice.abc, np.array(lengths) * 2 ** (1 / 3), rtol=1e-4
        )
        np.testing.assert_allclose(structure.lattice.angles, np.degrees(angles), rtol=1e-4)
        assert not caught
    else:
        assert structure is None
        assert reason in str(caught[0].message)


def test_given_atom_types(csp):
    latents = [np.zeros((2, 8)), np.ones((3, 8))]
    types = [[11, 17], np.array([99, 1, 26])]
    decoded = csp.decode(latents, atom_types=types)
    for structure, numbers in zip(decoded, types, strict=True):
        assert list(structure.atomic_numbers) == list(numbers)


@pytest.mark.parametrize(
    ("types", "message"),
    [
        (None, "does not predict atom types: give atom_types"),
        ([[11, 17]], "2 latents, but 1 atom_types"),
        ([[11, 17], [1, 2, 3], [4]], "2 latents, but 3 atom_types"),
        ([[11, 17], [1, 2]], "latent 1 has 3 atoms, but its atom_types have the shape"),
        ([[11, 17], [1, 2, 0]], "of latent 1 are not atomic numbers 1 to 99"),
        ([[11, 117], [1, 2, 3]], "of latent 0 are not atomic numbers 1 to 99"),
        ([[11, 17], [1, 2, 300]], "of latent 1 are not atomic numbers 1 to 99"),
        ([["Na", "Cl"], [1, 2, 3]], "of latent 0 are not atomic numbers 1 to 99"),
    ],
)
def test_atom_types_that_do_not_fit(csp, types, message):
    with pytest.raises(ValueError, match=message):
        csp.decode([np.zeros((2, 8)), np.ones((3, 8))], atom_types=types)


def test_atom_types_where_they_are_predicted(vae):
    with pytest.raises(ValueError, match="predicts atom types: do not give them"):
        vae.decode([np.zeros((2, 8))], atom_types=[[11, 17]])


@pytest.mark.parametrize(
    "latent", [np.zeros((2, 7)), np.zeros(8), np.zeros((0, 8)), np.zeros((1, 2, 8))]
)
def test_latents_of_another_shape(vae, ldm, latent):
    good = np.zeros((2, 8))
    with pytest.raises(ValueError, match=r"latent 1 has shape .*, not \(n_atoms, 8\)"):
        vae.decode([good, latent])
    with pytest.raises(ValueError, match=r"latent 1 has shape .*, not \(n_atoms, 8\)"):
        ldm.denoise([good, latent], [3, 4])


def test_standardized_latents_are_those_of_training_data(vae):
    crystal = Structure(
        Lattice([[4, 0, 0], [8, 4, 0], [0, 0, 3]]), ["Na", "F"], [[0] * 3, [0.4] * 3]
    )
    types, frac_coords, lattice = parse_crystal(crystal.to(fmt="cif")).arrays
    (expected,), _ = vae.encode_crystals(Crystals.from_list([(types, frac_coords, lattice)]))
    (means,), _ = vae.encode([crystal], standardize=True)
    np.testing.assert_allclose(means, expected, atol=1e-4)
    (other,), _ = vae.encode([crystal])
    assert np.abs(other - expected).max() > 1e-2


def test_structures_that_cannot_be_encoded(vae):
    disordered = Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0] * 3])
    heavy = Structure(Lattice.cubic(4), ["Fm"], [[0] * 3])
    for structure, reason in ((disordered, "partial occupancy"), (heavy, "element above Z = 99")):
        with pytest.raises(ValueError, match=f"structure 1: {reason}"):
            vae.encode([rocksalt("Na", "Cl", 5.64), structure])


# --- LDM ------------------------------------------------------------------------------------------


def test_samples_and_their_report(ldm):
    done = []
    structures = ldm.sample(10, seed=7, steps=6, chunk_size=4, on_done=done.append)
    report = ldm.last_report
    assert done == [4, 4, 2]
    assert report.seed == 7
    assert report.num_atoms == tuple(draw_num_atoms(ldm.parts.size_table, 10, 7).tolist())
    assert report.sampler == make_sampler("ddim", 6, 1.0)
    failed = [failure.index for failure in report.failures]
    assert sorted([*report.indices, *failed]) == list(range(10))
    assert [len(s) for s in structures] == [report.num_atoms[i] for i in report.indices]
    for structure in structures:
        assert structure.frac_coords.min() >= 0.0
        assert structure.frac_coords.max() < 1.0
    again = ldm.sample(10, seed=7, steps=6)
    assert [s.species for s in again] == [s.species for s in structures]
    other = ldm.sample(10, seed=8, steps=6)
    assert ldm.last_report.seed == 8
    assert [s.lattice.abc for s in other] != [s.lattice.abc for s in structures]


def test_sizes_are_repeated_in_turn(ldm):
    ldm.sample(5, num_atoms=[2, 5], steps=6)
    assert ldm.last_report.num_atoms == (2, 5, 2, 5, 2)
    ldm.sample(num_atoms=np.array([4, 1]), steps=6)
    assert ldm.last_report.num_atoms == (4, 1)


def test_failures_are_reported_and_the_others_kept(monkeypatch, ldm):
    cell = 4.0 * np.eye(3)
    generate = c2.inference.api.Generator.generate

    def hurt(self, *arguments, **options):
        generated = generate(self, *arguments, **options)
        for index, (types, frac, _) in enumerate(generated.crystals):
            lattice = cell * (index + 1)
            if index == 1:
                frac = frac * np.nan
            elif index == 4:
                lattice = lattice * [[0.0], [1.0], [1.0]]
            generated.crystals[index] = (types, frac, lattice)
        return generated

    monkeypatch.setattr(c2.inference.api.Generator, "generate", hurt)
    structures = ldm.sample(6, seed=1, num_atoms=[2, 3], steps=6)
    report = ldm.last_report
    assert report.indices == (0, 2, 3, 5)
    assert [failure.index for failure in report.failures] == [1, 4]
    assert report.failures[0].reason == "fractional coordinates are not finite"
    assert report.failures[1].reason.startswith("a cell length is not positive")
    assert [len(structure) for structure in structures] == [2, 2, 3, 3]
    assert [structure.lattice.a for structure in structures] == [4.0, 12.0, 16.0, 24.0]


def test_a_vae_that_is_given_types_cannot_sample_freely(ldm, csp):
    model = LDMModel(replace(ldm.parts, vae=csp.parts), ldm.meta)
    with pytest.raises(ValueError, match="does not predict atom types"):
        model.sample(2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give num_samples, num_atoms or both"),
        ({"num_samples": 0}, "num_samples must be at least 1, not 0"),
        ({"num_atoms": []}, "num_atoms must be positive integers"),
        ({"num_atoms": [2, 0]}, "num_atoms must be positive integers"),
        ({"num_atoms": [2.5]}, "num_atoms must be positive integers"),
        ({"num_atoms": [[2, 3]]}, "num_atoms must be positive integers"),
        ({"num_samples": 2, "sampler": "rk4"}, "sampler 'rk4' is unknown"),
        ({"num_samples": 2, "steps": 0}, "steps 0 must be at least 1"),
        ({"num_samples": 2, "steps": 1001}, "takes 1 to 1000 steps, not 1001"),
        ({"num_samples": 2, "eta": -1.0}, "eta -1.0 at least 0"),
        ({"num_samples": 2, "seed": -1}, "seed is -1"),
        ({"num_samples": 2, "seed": 2**32}, "seed is 4294967296"),
    ],
)
def test_samples_that_cannot_be_asked_for(ldm, options, message):
    with pytest.raises(ValueError, match=message):
        ldm.sample(**options)


def test_denoise_is_the_denoiser(ldm):
    model = LDMModel(replace(ldm.parts, params=noisy(ldm.parts.params)), ldm.meta)
    rng = np.random.default_rng(0)
    latents = [rng.normal(size=(n, 8)).astype(np.float32) for n in (5, 2, 8, 1)]
    times = [0, 999, 500, 3]
    eps = model.denoise(latents, times)
    rows, where = padded_rows(as_crystals(latents), latent=np.concatenate(latents))

    @jax.jit
    def direct(params):
        t = np.array(times, np.int32)[:, None]
        output = model.parts.module(params)(rows.features["latent"], t, rows)
        return split_output(output, rows, model.parts.sizes)[0]

    expected = where.split_atoms(direct(model.parts.params))
    for of_crystal, expected_eps, latent in zip(eps, expected, latents, strict=True):
        assert of_crystal.shape == latent.shape
        np.testing.assert_allclose(of_crystal, expected_eps, rtol=1e-4, atol=1e-4)
    other = model.denoise(latents, [0, 998, 500, 3])
    changed = [np.abs(a - b).max() > 1e-5 for a, b in zip(eps, other, strict=True)]
    assert changed == [False, True, False, False]


@pytest.mark.parametrize(
    ("latents", "t", "message"),
    [
        (2, [3], "t must be 2 integers"),
        (2, [3, 1000], "diffusion times go from 0 to 999; got 3..1000"),
        (2, [-1, 3], "diffusion times go from 0 to 999; got -1..3"),
        (1, [0.5], "t must be 1 integers"),
        (0, [1], "t must be 0 integers"),
    ],
)
def test_times_that_do_not_fit(ldm, latents, t, message):
    with pytest.raises(ValueError, match=message):
        ldm.denoise([np.zeros((2, 8))] * latents, t)


def test_denoise_wants_finite_latents(ldm):
    latents = [np.zeros((2, 8)), np.full((2, 8), np.nan)]
    with pytest.raises(ValueError, match="latent 1 is not finite"):
        ldm.denoise(latents, [1, 2])


def test_denoise_gives_the_noise_whatever_the_target(ldm):
    """x_t = sqrt(bar) x_0 + sqrt(1 - bar) eps: read off a prediction of x_0."""
    rng = np.random.default_rng(0)
    latents = [rng.normal(size=(n, 8)).astype(np.float32) for n in (4, 1, 7)]
    diffusion = replace(ldm.parts.diffusion, target="x_0")
    model = LDMModel(replace(ldm.parts, diffusion=diffusion), ldm.meta)
    times = np.array([40, 500, 999])
    bars = Schedule.of(diffusion).alphas_cumprod[times]
    outputs, converted = ldm.denoise(latents, times), model.denoise(latents, times)
    for bar, x, output, eps in zip(bars, latents, outputs, converted, strict=True):
        expected = (x - np.sqrt(bar) * output) / np.sqrt(1 - bar)
        np.testing.assert_allclose(eps, expected, rtol=1e-3, atol=1e-4)


# --- conditions -----------------------------------------------------------------------------------

FORMULA, GAP = CompositionCondition("composition"), FloatCondition("gap", 1.0, 2.0)


@pytest.fixture(scope="module")
def asked(ldm):
    """The tiny LDM with a random denoiser that takes conditions."""
    return LDMModel(conditional(ldm.parts, FORMULA, GAP), ldm.meta)


@pytest.fixture(scope="module")
def csp_ldm(asked, csp):
    """The same over a VAE that is given the atom types, all of whose cells can be built."""
    built = with_cell(csp, [3.0, 4.0, 5.0], GOOD_ANGLES)
    return LDMModel(replace(asked.parts, vae=built.parts), asked.meta)


def test_conditions_of_a_model(ldm, asked):
    assert ldm.conditions == ()
    assert asked.conditions == (FORMULA, GAP)


def all_latents(model, monkeypatch, *arguments, **options):
    """Latents of a call of `sample`, of crystals that cannot be built, too."""
    generate, results = c2.inference.api.Generator.generate, []

    def keep(self, *arguments, **rest):
        results.append(generate(self, *arguments, **rest))
        return results[-1]

    with monkeypatch.context() as patch:
        patch.setattr(c2.inference.api.Generator, "generate", keep)
        model.sample(*arguments, steps=6, **options)
    return results[0].latents


def test_samples_follow_their_conditions(asked, monkeypatch):
    gaps = [0.5, None, 3.0]
    conditions = {"gap": gaps, "composition": ["NaCl", None, "MgO"]}
    guided = all_latents(asked, monkeypatch, conditions=conditions, num_atoms=[2, 5, 4], seed=1)
    report = asked.last_report
    assert (report.conditions, report.cfg_scale) == (conditions, 2.0)
    assert report.num_atoms == (2, 5, 4)
    plain = all_latents(asked, monkeypatch, num_atoms=[2, 5, 4], seed=1)
    assert asked.last_report.conditions == {}
    alike = [np.abs(a - b).max() < 1e-3 for a, b in zip(guided, plain, strict=True)]
    assert alike == [False, True, False]
    stronger = all_latents(
        asked, monkeypatch, conditions=conditions, num_atoms=[2, 5, 4], seed=1, cfg_scale=5.0
    )
    alike = [np.abs(a - b).max() < 1e-3 for a, b in zip(guided, stronger, strict=True)]
    assert alike == [False, True, False]


def test_one_value_is_for_all(asked, monkeypatch):
    one = all_latents(asked, monkeypatch, 3, conditions={"gap": 0.5})
    three = all_latents(asked, monkeypatch, conditions={"gap": [0.5] * 3})
    for latent, expected in zip(one, three, strict=True):
        np.testing.assert_allclose(latent, expected, atol=1e-4)


def test_a_composition_says_how_many_atoms(asked):
    asked.sample(2, conditions={"composition": "BaTiO3"}, steps=6)
    assert asked.last_report.num_atoms == (5, 5)


def test_structure_prediction_builds_the_given_atoms(csp_ldm):
    formulas = ["TiBaO3", "NaCl", "Cl2Mg"]
    structures = csp_ldm.sample(conditions={"composition": formulas}, steps=6)
    report = csp_ldm.last_report
    assert report.num_atoms == (5, 2, 3)
    assert report.failures == ()
    species = [[22, 56, 8, 8, 8], [11, 17], [17, 17, 12]]
    assert [list(s.atomic_numbers) for s in structures] == species


def test_a_request_that_was_never_trained_is_known(asked):
    assert asked.untrained_request({}) == ""
    assert asked.untrained_request({"gap": 1.0, "composition": "NaCl"}) == ""
    text = asked.untrained_request({"gap": 1.0, "composition": None})
    assert text.startswith("without composition: the model was trained with all")
    module = {"condition_module": {"drop": "each"}}
    apart = LDMModel(asked.parts, replace(asked.meta, config={"ldm_module": module}))
    assert apart.untrained_request({"gap": 1.0}) == ""


def test_structure_prediction_needs_formulas(csp_ldm):
    with pytest.raises(ValueError, match=r"does not predict atom types \(csp\).* give formulas"):
        csp_ldm.sample(2, conditions={"gap": 1.0})


def test_conditions_that_a_model_does_not_take(ldm, asked):
    with pytest.raises(ValueError, match="takes no conditions, but is given 'composition'"):
        ldm.sample(conditions={"composition": "NaCl"})
    with pytest.raises(ValueError, match=r"no condition 'gab'\. Did you mean 'gap'"):
        asked.sample(2, conditions={"gab": 1.0})
    with pytest.raises(ValueError, match="cfg_scale is nan"):
        asked.sample(2, conditions={"gap": 1.0}, cfg_scale=np.nan)


def test_denoise_under_conditions(asked):
    rng = np.random.default_rng(0)
    latents = [rng.normal(size=(n, 8)).astype(np.float32) for n in (5, 2, 8)]
    times = [10, 999, 500]
    gaps = [1.0, None, 3.0]
    eps = asked.denoise(latents, times, conditions={"gap": gaps})
    null = asked.denoise(latents, times)
    rows, where = padded_rows(as_crystals(latents), latent=np.concatenate(latents))
    encoded = {"composition": np.full((3, 100), np.nan), "gap": GAP.encode(gaps)}

    @jax.jit
    def direct(params, values):
        dit = asked.parts.module(params)
        t = np.array(times, np.int32)[:, None]
        condition = dit.conditions({k: v[:, None] for k, v in values.items()})
        output = dit(rows.features["latent"], t, rows, condition=condition)
        return split_output(output, rows, asked.parts.sizes)[0]

    expected = where.split_atoms(direct(asked.parts.params, encoded))
    nothing = {k: np.full_like(v, np.nan) for k, v in encoded.items()}
    expected_null = where.split_atoms(direct(asked.parts.params, nothing))
    for of_crystal, expected_eps in zip(eps + null, expected + expected_null, strict=True):
        np.testing.assert_allclose(of_crystal, expected_eps, rtol=1e-4, atol=1e-4)
    alike = [np.abs(a - b).max() < 1e-5 for a, b in zip(eps, null, strict=True)]
    assert alike == [False, True, False]


def test_denoise_under_conditions_that_do_not_fit(ldm, asked):
    latents = [np.zeros((2, 8))] * 3
    with pytest.raises(ValueError, match="takes no conditions"):
        ldm.denoise(latents, [1, 2, 3], conditions={"gap": 1.0})
    with pytest.raises(ValueError, match="condition 'gap' has 2 values for 3 crystals"):
        asked.denoise(latents, [1, 2, 3], conditions={"gap": [1.0, 2.0]})


# --- predictor ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vae", "csp"])
def test_predict_is_the_predictor(request, name):
    of_vae = request.getfixturevalue(name).parts
    width = of_vae.sizes.encoder.d_model
    sizes = PredictorSizes(8, width, (Target("gap", 0.8, 1.6), Target("density")))
    graphdef, params = random_model(lambda: Predictor(sizes, rngs=nnx.Rngs(0)))
    model = PredictorModel(PredictorParts(sizes, graphdef, params, of_vae), {})
    structures = mixed()
    predictions = model.predict(structures)
    rows, where = padded_rows(structures_to_crystals(structures))

    @jax.jit
    def direct(vae_params, params):
        return nnx.merge(graphdef, params)(of_vae.module(vae_params).encode(rows), rows)

    out = where.take_slots(direct(of_vae.params, params)).astype(np.float64)
    assert list(predictions) == ["gap", "density"]
    assert {(v.dtype, v.shape) for v in predictions.values()} == {(np.dtype(np.float64), (5,))}
    np.testing.assert_allclose(
        predictions["gap"], out[:, 0] * (1.6 + 1e-5) + 0.8, rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(predictions["density"], out[:, 1], rtol=1e-3, atol=1e-4)
    assert model.predict([])["gap"].shape == (0,)
    assert model.vae.parts is of_vae
    with pytest.raises(ValueError, match="structure 0: element above Z = 99"):
        model.predict([Structure(Lattice.cubic(4), ["Fm"], [[0] * 3])])


def test_vae_of_an_ldm(ldm, vae):
    structures = mixed()[:2]
    for latent, expected in zip(
        ldm.vae.encode(structures)[0], vae.encode(structures)[0], strict=True
    ):
        np.testing.assert_array_equal(latent, expected)
    assert isinstance(ldm.vae, VAEModel)


def test_models_print_in_a_line(vae, ldm):
    assert repr(vae).startswith("VAEModel(0.")
    assert "latents of" in repr(vae)
    assert repr(ldm).startswith("LDMModel(0.")
    assert repr(vae) in repr(ldm)
    assert len(repr(ldm).splitlines()) == 1
