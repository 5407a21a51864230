"""The latent diffusion stage: step, options, models to start from, validation."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chemeleon2_jax.common.errors import CheckpointError, ConfigError
from chemeleon2_jax.common.randomness import named_key
from chemeleon2_jax.crystals.arrays import Crystals
from chemeleon2_jax.data.datasets import load_split
from chemeleon2_jax.diffusion.samplers import make_sampler
from chemeleon2_jax.inference.api import load_model
from chemeleon2_jax.inference.generator import Generator, draw_num_atoms
from chemeleon2_jax.metrics.structure import covalent_check, validity_check
from chemeleon2_jax.models.vae import sample_posterior
from chemeleon2_jax.pretrained.loading import ldm_of, open_model, vae_of
from chemeleon2_jax.rows.filling import build_rows
from chemeleon2_jax.rows.packing import assign_padded
from chemeleon2_jax.rows.rows import atom_normal
from chemeleon2_jax.runs.config import fit_config
from chemeleon2_jax.stages import build
from chemeleon2_jax.stages import ldm as ldm_stage
from chemeleon2_jax.stages.data import load_data
from chemeleon2_jax.stages.ldm_start import measure_moments
from chemeleon2_jax.stages.posteriors import cache_posteriors, posterior_of
from chemeleon2_jax.torch_format.files import write_torch
from chemeleon2_jax.training.checkpoint_reader import open_checkpoint
from chemeleon2_jax.training.loop import fit
from tests.lowering import lower_train_step
from tests.tiny import (
    RL_SPEC,
    TINY_RL,
    by_name,
    first_step,
    fit_quickly,
    ldm_config,
    make_config,
    meta_of,
    noisy,
    numbers,
    write_two,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


UNCACHED = {"cache_posteriors": False}


@pytest.fixture(scope="module")
def stage(tiny_data, tiny_vae):
    return build(ldm_config(tiny_data, tiny_vae.path))


@pytest.fixture(scope="module")
def base(stage):
    """A step at noisy parameters: at the first ones, zeros hide most gradients."""
    return first_step(stage, noisy(stage.init_params))


def build_with(tiny_data, tiny_vae, **blocks):
    """The stage with other options, and its step at noisy parameters."""
    other = build(ldm_config(tiny_data, tiny_vae.path, **blocks))
    return other, first_step(other, noisy(other.init_params))


def test_untrained_it_predicts_nothing(stage):
    loss, terms, _ = first_step(stage)
    assert set(terms) == {"loss_mse", "loss_vb"}
    assert loss == pytest.approx(terms["loss_mse"] + terms["loss_vb"], rel=1e-6)
    assert terms["loss_mse"] == pytest.approx(1.0, abs=0.15)  # of standard normal numbers


def test_step_reaches_every_parameter(base):
    loss, _, gradients = base
    assert np.isfinite(loss)
    for name, gradient in gradients.items():
        assert np.isfinite(gradient).all(), name
        assert np.abs(gradient).max() > 0, name


def test_padded_rows_change_nothing(tiny_data, tiny_vae, base):
    _, (loss, _, gradients) = build_with(tiny_data, tiny_vae, packing={"layout": "padded"})
    assert loss == pytest.approx(base[0], rel=1e-5)
    np.testing.assert_allclose(numbers(gradients), numbers(base[2]), rtol=1e-3, atol=1e-5)


def test_bfloat16_computes_about_the_same_in_float32_parameters(tiny_data, tiny_vae, base):
    other, (loss, _, gradients) = build_with(
        tiny_data, tiny_vae, trainer={"precision": "bf16"}, ldm_module=UNCACHED
    )
    rows = other.batches.batch(0).arrays
    program = jax.make_jaxpr(other.loss_fn)(
        other.init_params, other.frozen, jax.random.key(0), rows
    )
    # The MLPs of the VAE are 32 wide, those of the denoiser 64.
    for width in (32, 64):
        assert re.search(rf"bf16\[\d+,{width}\]", str(program))
    assert {leaf.dtype for leaf in jax.tree.leaves(other.init_params)} == {jnp.dtype("float32")}
    assert loss != base[0]
    assert loss == pytest.approx(base[0], rel=0.03)
    bf16, f32 = numbers(gradients), numbers(base[2])
    assert bf16 @ f32 / np.linalg.norm(bf16) / np.linalg.norm(f32) > 0.99


def test_fixed_variance(tiny_data, tiny_vae, base):
    other, (loss, terms, gradients) = build_with(
        tiny_data, tiny_vae, ldm_module={"diffusion.learn_sigma": False}
    )
    assert set(terms) == {"loss_mse"}
    assert np.isfinite(loss)
    assert (gradients["final/kernel"].shape, base[2]["final/kernel"].shape) == ((16, 8), (16, 16))
    assert not meta_of(other).ldm.dit.learn_sigma


def test_target_x_0(tiny_data, tiny_vae):
    other = build(ldm_config(tiny_data, tiny_vae.path, ldm_module={"diffusion.target": "x_0"}))
    # Nothing is predicted: the loss is the mean square of the sampled latents over latent_std.
    _, terms, _ = first_step(other)
    rows = other.batches.batch(0).arrays
    vae = vae_of(open_model(tiny_vae.path))
    posterior = jax.jit(lambda params: vae.module(params).encode(rows))(vae.params)
    # The latents that the step draws: of first_step's key, the loss's, the posterior's.
    sample_key = jax.random.split(jax.random.split(jax.random.key(0), 3)[2], 3)[0]
    latents = sample_posterior(posterior, atom_normal(sample_key, rows, 8))
    squares = (latents**2).mean(-1) * rows.is_atom
    crystal = rows.slot + rows.is_crystal.shape[1] * np.arange(len(rows.slot))[:, None]
    sums = np.bincount(crystal.ravel(), np.ravel(squares), rows.is_crystal.size)
    means = sums[rows.is_crystal.ravel()] / rows.num_atoms[rows.is_crystal]
    expected = means.mean() / meta_of(other).ldm.latent_std ** 2
    assert terms["loss_mse"] == pytest.approx(expected, rel=1e-4)
    assert meta_of(other).ldm.diffusion.target == "x_0"
    loss, _, gradients = first_step(other, noisy(other.init_params))
    assert np.isfinite(loss)
    assert np.isfinite(numbers(gradients)).all()


def test_interleaved_variance_is_padded_to_the_largest_crystal(tiny_data, tiny_vae, base):
    options = {"diffusion.variance_layout": "interleaved"}
    other, (loss, terms, gradients) = build_with(tiny_data, tiny_vae, ldm_module=options)
    rows = other.batches.batch(0).arrays
    assert rows.atom_types.shape == (12, 8)
    assert rows.is_crystal.shape == (12, 1)
    assert set(terms) == {"loss_mse", "loss_vb"}
    assert np.isfinite(loss)
    assert np.isfinite(numbers(gradients)).all()
    assert loss != pytest.approx(base[0], rel=1e-3)


def test_augmentation_is_off_by_default(tiny_data, tiny_vae, base):
    options = {"augmentation.rotate": True, "augmentation.translate": True}
    other, (loss, _, _) = build_with(tiny_data, tiny_vae, ldm_module=options)
    assert loss != pytest.approx(base[0], rel=1e-4)
    # latent_std is measured on the cells as they are.
    assert meta_of(other).ldm.latent_std == pytest.approx(
        meta_of(build(ldm_config(tiny_data, tiny_vae.path))).ldm.latent_std, rel=1e-6
    )


def test_learns_the_latents_of_two_crystals(tmp_path, tiny_vae):
    config = ldm_config(
        write_two(tmp_path / "two", copies=10),  # so that many times and noises are validated
        tiny_vae.path,
        trainer={"max_steps": 700, "check_val_every_n_epoch": 0},
    )
    stage = build(config)
    before = stage.validate(stage.init_params, {}).values
    result = fit(stage, fit_config(config), run_dir=tmp_path / "run")
    assert result.values["val/total_loss"] < 0.2 * before["val/total_loss"]
    # Validation takes the moving averages, and the checkpoint names them to sample with.
    assert stage.validate(result.state.ema_params, {}).values == pytest.approx(result.values)
    trained = open_model(tmp_path / "run")
    assert trained.meta.ldm.sample_weights == "ema"
    params = ldm_of(trained).params
    jax.tree.map(np.testing.assert_array_equal, params, result.state.ema_params)
    assert np.abs(numbers(result.state.params) - numbers(result.state.ema_params)).max() > 0


def sampled_latents(vae, crystals: Crystals, seed: int, *, scale: float = 1.0) -> np.ndarray:
    """Latents of all crystals, each in a row of its own, with the noise of the stage."""
    rows = build_rows(crystals, assign_padded(crystals.num_atoms, 8))
    posterior = jax.jit(lambda params: vae.module(params).encode(rows))(vae.params)
    key = named_key(seed, "latent_std")
    z = sample_posterior(posterior, atom_normal(key, rows, 8), scale=scale)
    return np.asarray(z, np.float64)[rows.is_atom]


@pytest.mark.parametrize("seed", [0, 3])
def test_latent_std_is_that_of_all_sampled_latents(tiny_data, tiny_vae, seed):
    config = ldm_config(tiny_data, tiny_vae.path, data={"batch_size": 9})  # the last one partial
    config.seed = seed
    vae = vae_of(open_model(tiny_vae.path))
    crystals = load_split("", "train", data_dir=tiny_data, num_workers=1).crystals
    expected = sampled_latents(vae, crystals, seed).std(ddof=1)
    assert meta_of(build(config)).ldm.latent_std == pytest.approx(expected, rel=1e-5)


CHANNELS = {"diffusion.latent_standardisation": "channel"}


def test_channel_moments_are_those_of_all_sampled_latents(tiny_data, tiny_vae):
    config = ldm_config(tiny_data, tiny_vae.path, ldm_module=CHANNELS, data={"batch_size": 9})
    latents = sampled_latents(
        vae_of(open_model(tiny_vae.path)),
        load_split("", "train", data_dir=tiny_data, num_workers=1).crystals,
        config.seed,
    )
    ldm = meta_of(build(config)).ldm
    np.testing.assert_allclose(ldm.latent_channels.mean, latents.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ldm.latent_channels.std, latents.std(0, ddof=1), rtol=1e-4)
    assert ldm.latent_std == pytest.approx(latents.std(ddof=1), rel=1e-5)


def test_a_channel_that_holds_nothing_is_not_blown_up(tiny_data, tiny_vae, tmp_path):
    run = tmp_path / "vae"
    shutil.copytree(tiny_vae.path, run, symlinks=True)
    vae = vae_of(open_model(run))
    kernel = np.array(vae.params["quant"]["kernel"][...])  # (D, 2L)
    kernel[:, [2, 10]] = 0.0  # mean and logvar of channel 2
    vae.params["quant"]["kernel"][...] = kernel
    data = load_data(ldm_config(tiny_data, run), edges=False)
    moments = measure_moments(data, vae, seed=0, posterior_scale=0.0, by_channel=True)
    assert moments.channels.std[2] == pytest.approx(1e-3 * moments.std)
    assert min(s for i, s in enumerate(moments.channels.std) if i != 2) > 1e-2 * moments.std


def test_standardised_by_channel_the_latents_to_learn_are_about_one(tiny_data, tiny_vae):
    """Nothing is predicted: the loss is the mean square of the latents, crystal by crystal."""
    options = {"diffusion.target": "x_0", "diffusion.learn_sigma": False}
    options |= {**CHANNELS, "diffusion.posterior_scale": 0.0}
    config = ldm_config(tiny_data, tiny_vae.path, ldm_module=options, data={"batch_size": 64})
    stage = build(config)
    loss, _, _ = first_step(stage)
    crystals = load_split("", "train", data_dir=tiny_data, num_workers=1).crystals
    latents = sampled_latents(vae_of(open_model(tiny_vae.path)), crystals, 0, scale=0.0)
    channels = meta_of(stage).ldm.latent_channels
    squares = (channels.standardise(latents) ** 2).mean(-1)
    expected = (np.add.reduceat(squares, crystals.offsets[:-1]) / crystals.num_atoms).mean()
    assert squares.mean() == pytest.approx(1.0, rel=0.01)
    assert loss == pytest.approx(expected, rel=1e-3)


def test_channels_stay_with_the_model(tiny_data, tiny_vae, tmp_path):
    config = ldm_config(tiny_data, tiny_vae.path, ldm_module=CHANNELS)
    run = fit_quickly(config, tmp_path / "run", steps=2)
    model = load_model(run)
    channels = model.parts.latent_channels
    assert channels == model.meta.ldm.latent_channels is not None
    # Sampled, denoised and decoded in the units of the VAE.
    latents = Generator(model.parts, make_sampler(steps=3)).generate([2, 5], seed=0).latents
    plain = replace(model.parts, latent_channels=None, latent_std=1.0)
    standardised = Generator(plain, make_sampler(steps=3)).generate([2, 5], seed=0).latents
    for z, x in zip(latents, standardised, strict=True):
        np.testing.assert_allclose(z, channels.restore(x), rtol=1e-5, atol=1e-5)
    back = model.standardise(latents)
    for z, x in zip(back, standardised, strict=True):
        np.testing.assert_allclose(z, x, rtol=1e-4, atol=1e-4)
    assert [e.shape for e in model.denoise(back, [3, 500])] == [(2, 8), (5, 8)]
    # A run that starts from it keeps them, whatever its option says.
    started = build(ldm_config(tiny_data, "", ldm_module={"ldm_ckpt_path": str(run)}))
    assert meta_of(started).ldm.latent_channels == channels
    resumed = build(config, resume_dir=run)
    assert meta_of(resumed).ldm == model.meta.ldm
    with pytest.raises(CheckpointError, match=r"standardises each channel .* cannot: train with"):
        write_torch(open_model(run), tmp_path / "channels.ckpt", merge_lora=False)


def test_start_weights_over_one_number_cannot_be_standardised_by_channel(tiny_data, tiny_ldm):
    options = {**CHANNELS, "ldm_ckpt_path": str(tiny_ldm.path)}
    with pytest.raises(CheckpointError, match="divides its latents by one number: set it to"):
        build(ldm_config(tiny_data, "", ldm_module=options))


def test_checkpoint_holds_the_vae_as_it_was(tiny_vae, tiny_ldm):
    trained = open_checkpoint(tiny_vae.path).restore("params")
    kept = open_checkpoint(tiny_ldm.path).restore("vae")
    jax.tree.map(np.testing.assert_array_equal, kept, trained)


def test_start_weights_bring_their_vae_and_latent_std(tiny_data, tiny_ldm, stage):
    config = ldm_config(tiny_data, "", ldm_module={"ldm_ckpt_path": str(tiny_ldm.path)})
    config.seed = 1  # another latent_std, were it measured
    started = build(config)
    checkpoint = open_model(tiny_ldm.path)
    assert meta_of(started).ldm.latent_std == checkpoint.meta.ldm.latent_std
    for params, item in ((started.init_params, "ema"), (started.frozen["vae"], "vae")):
        saved = checkpoint.restore(item)
        assert numbers(by_name(params)).tolist() == numbers(by_name(saved)).tolist()
    trained = started.validate(started.init_params, {}).values["val/total_loss"]
    assert trained < 0.5 * stage.validate(stage.init_params, {}).values["val/total_loss"]
    assert meta_of(started).vae_config["task_name"] == "train_vae"


@pytest.mark.parametrize(
    "change",
    [
        {"denoiser.hidden_size": 32},
        {"denoiser.depth": 2},
        {"diffusion.learn_sigma": False},
        {"diffusion.variance_layout": "interleaved"},
    ],
)
def test_start_weights_of_another_size(tiny_data, tiny_ldm, change):
    options = {"ldm_ckpt_path": str(tiny_ldm.path), **change}
    (key,) = (name.partition(".")[2] for name in change)
    with pytest.raises(CheckpointError, match=rf"has {key} = .* \(here .*\): set these in"):
        build(ldm_config(tiny_data, "", ldm_module=options))


def test_start_weights_of_a_vae(tiny_data, tiny_vae):
    options = {"ldm_ckpt_path": str(tiny_vae.path)}
    with pytest.raises(CheckpointError, match="checkpoint of train_vae, which cannot generate"):
        build(ldm_config(tiny_data, "", ldm_module=options))


def test_vae_of_another_ldm(tiny_data, tiny_ldm, stage):
    other = build(ldm_config(tiny_data, tiny_ldm.path))
    assert meta_of(other).ldm.latent_std == meta_of(stage).ldm.latent_std
    assert meta_of(other).vae_config == meta_of(stage).vae_config
    assert meta_of(other).vae_config["task_name"] == "train_vae"
    jax.tree.map(np.testing.assert_array_equal, other.frozen, stage.frozen)


def test_vae_with_cspnet_and_without_atom_types(tiny_data, csp_run):
    steps = []
    for options in (UNCACHED, {}):
        stage = build(ldm_config(tiny_data, csp_run, ldm_module=options))
        # Pairs of atoms are for the encoder alone.
        assert bool(stage.batches.batch(0).arrays.edges) == (options == UNCACHED)
        steps.append(first_step(stage, noisy(stage.init_params)))
        assert np.isfinite(steps[-1][0])
        assert np.isfinite(numbers(steps[-1][2])).all()
        assert not meta_of(stage).vae.atom_type_predict
    assert steps[1][0] == pytest.approx(steps[0][0], rel=1e-4)


def damaged(run, folder):
    shutil.copytree(run, folder, symlinks=True)
    for path in (folder / "checkpoints").glob("step_*/params/_METADATA"):
        path.write_bytes(path.read_bytes()[:20])
    return folder


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("", ConfigError, "vae_ckpt_path is empty: give the run folder of a trained VAE"),
        ("mp_20_vea", CheckpointError, "Did you mean 'mp_20_vae'"),
        ("{folder}", CheckpointError, "neither a run folder with a whole checkpoint"),
        ("{damaged}", CheckpointError, "'params' of the checkpoint .* cannot be read"),
    ],
)
def test_vae_that_cannot_be_opened(tmp_path, tiny_data, tiny_vae, path, error, message):
    if path == "{folder}":
        path = str(tmp_path)
    elif path == "{damaged}":
        path = str(damaged(tiny_vae.path, tmp_path / "damaged"))
    with pytest.raises(error, match=message) as caught:
        build(ldm_config(tiny_data, path))
    assert "\n" not in str(caught.value)


def test_resumed_run_keeps_its_own_vae(tiny_data, tiny_ldm, csp_run):
    saved = open_model(tiny_ldm.path)
    for path in ("gone", str(csp_run)):
        stage = build(ldm_config(tiny_data, path), resume_dir=tiny_ldm.path)
        assert meta_of(stage).ldm.latent_std == saved.meta.ldm.latent_std
        assert meta_of(stage).vae == saved.meta.vae
        assert meta_of(stage).vae_config == saved.meta.vae_config
        jax.tree.map(
            np.testing.assert_array_equal,
            by_name(stage.frozen["vae"]),
            by_name(saved.restore("vae")),
        )


def test_resumed_run_without_a_checkpoint_starts_as_a_new_one(tmp_path, tiny_data, tiny_vae, stage):
    begun = build(ldm_config(tiny_data, tiny_vae.path), resume_dir=tmp_path)
    assert begun.meta == stage.meta


def test_validation_is_repeatable_and_independent_of_the_batches(tiny_data, tiny_vae, stage):
    other = build(ldm_config(tiny_data, tiny_vae.path, data={"batch_size": 3}))
    params = noisy(stage.init_params)
    first = stage.validate(params, {}).values
    assert set(first) == {"val/total_loss", "val/loss_mse", "val/loss_vb"}
    assert set(first) == set(stage.value_names)
    assert stage.validate(params, {}).values == first
    # latent_std differs in its last digits: its sum is over other batches.
    assert other.validate(params, {}).values == pytest.approx(first, rel=1e-4)


def test_validation_generates_crystals(tiny_data, tiny_ldm):
    options = {"sampling.num_samples": 6, "sampling.steps": 5, "ldm_ckpt_path": str(tiny_ldm.path)}
    stage = build(ldm_config(tiny_data, "", ldm_module=options))
    values = stage.validate(stage.init_params, {}).values
    ldm = ldm_of(open_model(tiny_ldm.path))
    sizes = draw_num_atoms(ldm.size_table, 6, 0)
    crystals = Generator(ldm, make_sampler(steps=5)).generate(sizes, seed=0).crystals
    assert set(values) == set(stage.value_names)
    assert values["val/valid_share"] == validity_check(crystals).share
    assert values["val/covalent_share"] == covalent_check(crystals).share
    # With the parameters of the call, not with the first ones.
    broken = jax.tree.map(lambda x: x * np.nan, stage.init_params)
    assert stage.validate(broken, {}).values["val/valid_share"] == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling.num_samples": 2, "sampling.steps": 1001}, "takes 1 to 1000 steps, not 1001"),
        ({"sampling.sampler": "rk4"}, "sampler 'rk4' is unknown"),
        ({"diffusion.target": "score"}, "diffusion target 'score' is unknown"),
        ({"diffusion.schedule": "cosine"}, "diffusion schedule 'cosine' is unknown"),
        ({"diffusion.variance_layout": "halves"}, "variance_layout is 'halves'"),
        ({"denoiser.size": "M"}, "denoiser.size is 'M'; it is S, B, L, XL or custom"),
        ({"denoiser.num_heads": 3}, "width 16 is not a multiple of the 3"),
    ],
)
def test_values_that_no_model_has(tiny_data, tiny_vae, options, message):
    with pytest.raises(ConfigError, match=message):
        build(ldm_config(tiny_data, tiny_vae.path, ldm_module=options))


def test_crystals_without_predicted_types_cannot_be_validated(tiny_data, csp_run):
    with pytest.raises(ConfigError, match="VAE does not predict atom types"):
        build(ldm_config(tiny_data, csp_run, ldm_module={"sampling.num_samples": 2}))


@pytest.mark.parametrize(
    ("size", "expected"), [("S", (6, 384, 6)), ("B", (12, 768, 12)), ("XL", (28, 1152, 16))]
)
def test_named_sizes(size, expected):
    module = ldm_config("unused", "", ldm_module={"denoiser.size": size}).ldm_module
    sizes = ldm_stage.dit_sizes(module, 8)
    assert (sizes.depth, sizes.hidden_size, sizes.num_heads) == expected


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_step_lowers_for_accelerators(tiny_data, tiny_vae, stage, platform):
    config = ldm_config(tiny_data, tiny_vae.path)
    exported = lower_train_step(stage, fit_config(config), platform=platform)
    assert exported.platforms == (platform,)


def test_without_moving_average_the_weights_are_raw(tiny_data, tiny_vae):
    stage = build(ldm_config(tiny_data, tiny_vae.path, ldm_module={"ema.decay": 0.0}))
    assert meta_of(stage).ldm.sample_weights == "raw"
    assert set(stage.items(stage.init_params, None)) == {"params", "vae"}


@pytest.mark.parametrize("name", ["ldm", "conditional"])
def test_four_devices_are_one(four_devices, name):
    one, four = (np.load(four_devices / f"{name}_{n}.npz") for n in (1, 4))
    assert np.abs(one["params"] - one["start"]).max() > 0.005
    for name in ("metrics", "params", "validation"):
        np.testing.assert_allclose(four[name], one[name], rtol=1e-4, atol=1e-5)


def test_a_run_with_muon_resumes_exactly(tiny_data, tiny_vae, tmp_path):
    """Of its optimiser's state, which differs from matrix to bias, everything is restored."""
    options = {"optimizer.name": "muon", "scheduler.decay_steps": 4}
    config = ldm_config(tiny_data, tiny_vae.path, ldm_module=options)

    def train(folder, steps, *, resume=False):
        config.trainer.max_steps = steps
        stage = build(config, resume_dir=folder if resume else None)
        return fit(stage, fit_config(config), run_dir=folder, resume=resume).state

    config.trainer.check_val_every_n_epoch = 0
    whole = train(tmp_path / "whole", 4)
    train(tmp_path / "halves", 2)
    halves = train(tmp_path / "halves", 4, resume=True)
    for one, other in zip(
        jax.tree.leaves((whole.params, whole.opt_state, whole.ema_params)),
        jax.tree.leaves((halves.params, halves.opt_state, halves.ema_params)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


# --- cached posteriors ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "blocks", [{}, {"packing": {"layout": "padded"}}, {"data": {"batch_size": 9}}]
)
def test_cached_posteriors_change_no_loss(tiny_data, tiny_vae, blocks):
    """Of steps and of the validation, on other batches of which the last is partial."""
    steps, validations, stds = [], [], []
    for options in ({}, UNCACHED):
        stage, step = build_with(tiny_data, tiny_vae, ldm_module=options, **blocks)
        rows = stage.batches.batch(1).arrays
        assert bool(rows.features) == (options == {})
        steps.append(step)
        validations.append(stage.validate(noisy(stage.init_params), {}).values)
        stds.append(meta_of(stage).ldm.latent_std)
    (loss, terms, gradients), (expected_loss, expected_terms, expected) = steps
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert terms == pytest.approx(expected_terms, rel=1e-5)
    np.testing.assert_allclose(numbers(gradients), numbers(expected), rtol=1e-3, atol=1e-5)
    assert validations[0] == pytest.approx(validations[1], rel=1e-5)
    assert stds[0] == pytest.approx(stds[1], rel=1e-6)


def test_cached_posteriors_are_those_of_each_crystal(tiny_data, tiny_vae):
    config = ldm_config(tiny_data, tiny_vae.path)
    vae = vae_of(open_model(tiny_vae.path))
    data = load_data(config, edges=False)
    cached = cache_posteriors(data, vae)
    rows, where, _ = next(iter(cached.val_batches()))
    posterior = posterior_of(vae, None, rows)
    encoded = jax.jit(lambda params: vae.module(params).encode(rows))(vae.params)
    for name in ("mean", "logvar"):
        got, wanted = (where.split_atoms(getattr(p, name)) for p in (posterior, encoded))
        np.testing.assert_allclose(np.concatenate(got), np.concatenate(wanted), atol=1e-5)
    assert np.std(np.concatenate(got)) > 0


def test_augmented_crystals_are_encoded_at_every_step(tiny_data, tiny_vae):
    for name in ("rotate", "translate"):
        stage = build(
            ldm_config(tiny_data, tiny_vae.path, ldm_module={f"augmentation.{name}": True})
        )
        assert not stage.batches.batch(0).arrays.features


# --- flow matching --------------------------------------------------------------------------------

FLOW = {
    "diffusion.schedule": "straight_line",
    "diffusion.target": "flow",
    "diffusion.learn_sigma": False,
    "diffusion.times": "logit_normal",
    "diffusion.posterior_scale": 0.5,
}


def test_an_untrained_flow_predicts_no_velocity(tiny_data, tiny_vae):
    """The output starts at 0: the loss is the mean square of eps - x_0, of variance 1 + 1."""
    stage = build(ldm_config(tiny_data, tiny_vae.path, ldm_module=FLOW))
    loss, terms, _ = first_step(stage)
    assert set(terms) == {"loss_mse"}
    assert loss == pytest.approx(2.0, abs=0.4)
    _, _, gradients = first_step(stage, noisy(stage.init_params))
    for name, gradient in gradients.items():
        assert np.isfinite(gradient).all(), name
        assert np.abs(gradient).max() > 0, name


def test_options_of_times_and_latents_change_the_step(tiny_data, tiny_vae, base):
    for option in ({"diffusion.times": "logit_normal"}, {"diffusion.posterior_scale": 0.0}):
        _, (loss, _, _) = build_with(tiny_data, tiny_vae, ldm_module=option)
        assert loss != base[0]


def test_weights_of_the_loss_are_those_of_training_alone(tiny_data, tiny_vae, stage, base):
    weighted = {"diffusion.weighting": "min_snr"}
    other, (loss, terms, _) = build_with(tiny_data, tiny_vae, ldm_module=weighted)
    assert terms == pytest.approx(base[1], rel=1e-6)
    assert loss < base[0]
    params = noisy(stage.init_params)
    assert other.validate(params, {}).values == pytest.approx(stage.validate(params, {}).values)


def test_a_scaled_posterior_has_a_smaller_latent_std(tiny_data, tiny_vae):
    stds = [
        meta_of(build(ldm_config(tiny_data, tiny_vae.path, ldm_module=options))).ldm.latent_std
        for options in ({}, {"diffusion.posterior_scale": 0.0})
    ]
    assert stds[1] < stds[0]


def test_self_conditioning_is_trained_sampled_and_kept(tiny_data, tiny_vae, tmp_path):
    options = FLOW | {"denoiser.self_conditioning": True}
    config = ldm_config(tiny_data, tiny_vae.path, ldm_module=options)
    stage = build(config)
    params, rows = noisy(stage.init_params), stage.batches.batch(0).arrays
    gradient = jax.jit(jax.grad(lambda p, key: stage.loss_fn(p, stage.frozen, key, rows)[0]))
    moved = [
        np.abs(by_name(gradient(params, jax.random.key(seed)))["estimate_embedder/kernel"]).max()
        for seed in range(12)
    ]
    assert min(moved) == 0 < max(moved)  # tails and heads
    run = fit_quickly(config, tmp_path / "run", steps=2)
    model = load_model(run)
    assert model.parts.sizes.self_conditioning
    latents = Generator(model.parts, make_sampler("euler", 4)).generate([2, 5], seed=0).latents
    params = jax.tree.map(jnp.copy, model.parts.params)
    params["estimate_embedder"]["kernel"][...] *= 0.0
    without = Generator(model.parts, make_sampler("euler", 4)).generate(
        [2, 5], seed=0, params=params
    )
    assert np.abs(latents[1] - without.latents[1]).max() > 0
    rl = make_config(RL_SPEC, TINY_RL | {"rl_module.ldm_ckpt_path": str(run)})
    rl.data.data_dir = str(tiny_data)
    with pytest.raises(ConfigError, match="self-conditioning: its steps depend on earlier ones"):
        build(rl)


def test_a_flow_samples_by_default_along_straight_lines(tiny_data, tiny_vae, tmp_path):
    config = ldm_config(tiny_data, tiny_vae.path, ldm_module=FLOW)
    model = load_model(fit_quickly(config, tmp_path / "run", steps=2))
    model.sample(num_samples=3, seed=0, steps=4)
    sampler = model.last_report.sampler
    assert (sampler.name, sampler.steps, sampler.eta) == ("euler", 4, 0.0)
    with pytest.raises(CheckpointError, match=r"target 'flow' .* has no form in the original"):
        write_torch(open_model(tmp_path / "run"), tmp_path / "flow.ckpt", merge_lora=False)
    assert not (tmp_path / "flow.ckpt").exists()
