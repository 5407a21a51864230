"""The reinforcement learning stage: steps, validation, resume, errors."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from jax import export

from chemeleon2_jax.common.errors import CheckpointError, ConfigError, RewardError
from chemeleon2_jax.diffusion.samplers import make_sampler
from chemeleon2_jax.inference.api import load_model
from chemeleon2_jax.models.condition_kinds import CompositionCondition
from chemeleon2_jax.models.latents import ChannelMoments
from chemeleon2_jax.pretrained.loading import ldm_of, open_model
from chemeleon2_jax.rl.update import Chunk, Objective
from chemeleon2_jax.runs.config import fit_config
from chemeleon2_jax.stages import build
from chemeleon2_jax.stages.rl.programs import Settings, make_programs
from chemeleon2_jax.training.checkpoint_reader import open_checkpoint
from chemeleon2_jax.training.loop import fit
from chemeleon2_jax.training.parallel import make_mesh, shard_batch
from chemeleon2_jax.training.state import init_state
from chemeleon2_jax.training.step import Updater
from tests.tiny import (
    RL_SPEC,
    TINY_RL,
    by_name,
    conditional,
    fit_quickly,
    ldm_config,
    make_config,
    meta_of,
    numbers,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

USER = "tests.rewards.user_rewards"


def config_of(data_dir, ldm, **changes):
    overrides = {
        **TINY_RL,
        "data.data_dir": str(data_dir),
        "rl_module.ldm_ckpt_path": str(ldm),
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    return make_config(RL_SPEC, overrides)


def custom(name, **options):
    """Overrides for a reward of the user; `require` is off, as a hardly trained model needs it."""
    block = "rl_module.reward_fn"
    return {
        f"{block}.components": "custom",
        f"{block}.require": "",
        f"{block}.custom.function": f"{USER}:{name}",
        f"{block}.custom.floor": "0",
        **{f"{block}.{key.replace('__', '.')}": value for key, value in options.items()},
    }


def run(config, run_dir, *, steps, resume=False):
    config.trainer.max_steps = steps
    stage = build(config, resume_dir=run_dir if resume else None)
    return fit(stage, fit_config(config), run_dir=run_dir, resume=resume)


def one_step(config):
    """(stage, numbers of the parameters before, state after a step, its metrics, its pictures)."""
    stage = build(config)
    updater = Updater.from_config(fit_config(config), total_steps=10)
    mesh = make_mesh(config.trainer.num_devices)
    step = stage.make_step(updater, mesh)
    state = init_state(stage.init_params, updater.tx, seed=0, ema=False, mesh=mesh)
    before = numbers(state.params)
    batch = shard_batch(stage.batches.batch(0).arrays, mesh)
    state, metrics, pictures = step(state, stage.frozen, batch)
    return stage, before, state, {name: float(value) for name, value in metrics.items()}, pictures


@pytest.fixture(scope="module")
def base(tiny_data, tiny_ldm):
    """(config, result of one_step)."""
    config = config_of(tiny_data, tiny_ldm.path, **custom("number_of_sites"))
    return config, one_step(config)


def test_a_step_is_a_rollout_and_its_updates(base):
    _, (stage, before, state, metrics, _) = base
    assert int(state.step) == stage.updates_per_step == 2
    assert np.isfinite(numbers(state.params)).all()
    assert not np.array_equal(numbers(state.params), before)
    sizes = stage.batches.prompts(0).num_atoms
    assert metrics["reward/custom_mean"] == pytest.approx(sizes.mean())
    assert metrics["reward/custom_max"] == sizes.max()
    assert metrics["reward/custom_failures"] == metrics["failed_chains"] == 0
    assert metrics["reward/reward"] == pytest.approx(0.0, abs=1e-6)  # it is standardised
    for name in ("ratio", "clip_share", "kl_rollout", "log_prob", "grad_norm", "loss", "lr"):
        assert np.isfinite(metrics[name]), name
    for name in ("rollout_seconds", "reward_seconds", "update_seconds"):
        assert metrics[name] >= 0


def test_shuffled_rewards_go_to_other_crystals(base, tiny_data, tiny_ldm):
    """The same rollout, the same rewards, another update: the control of an experiment."""
    changes = custom("number_of_sites", shuffle=True)
    _, _, state, metrics, _ = one_step(config_of(tiny_data, tiny_ldm.path, **changes))
    _, (_, before, expected, unshuffled, _) = base
    for name in ("reward/custom_mean", "reward/custom_max", "advantage_std"):
        assert metrics[name] == pytest.approx(unshuffled[name], rel=1e-5)
    moved, wanted = numbers(state.params) - before, numbers(expected.params) - before
    assert np.corrcoef(moved, wanted)[0, 1] < 0.9


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_reward_of_the_size_has_no_advantage_within_groups(tiny_data, tiny_ldm, shuffle):
    """Nor have shuffled ones: they stay in their group."""
    grouped = {"rl_module.rl_configs.group_reward_norm": True}
    changes = custom("number_of_sites", shuffle=shuffle)
    config = config_of(tiny_data, tiny_ldm.path, **changes)
    config.update_from_flattened_dict(grouped)
    _, _, _, metrics, _ = one_step(config)
    assert metrics["advantage_std"] == 0
    assert metrics["surrogate"] == 0


def test_chunks_change_nothing(base, tiny_data, tiny_ldm):
    """Noise and mini-batches depend on the crystals, not on the chunks."""
    changes = custom("number_of_sites") | {"rl_module.sampling_configs.chunk_size": 5}
    stage, _, state, metrics, _ = one_step(config_of(tiny_data, tiny_ldm.path, **changes))
    _, (_, before, expected, unchunked, _) = base
    assert len(stage.batches.chunks) == 6
    for name in ("loss", "log_prob", "reward/custom_mean", "advantage_std", "surrogate"):
        assert metrics[name] == pytest.approx(unchunked[name], rel=1e-3, abs=1e-5), name
    moved, wanted = numbers(state.params) - before, numbers(expected.params) - before
    assert np.corrcoef(moved, wanted)[0, 1] > 0.99


def test_first_mini_batch_alone_has_a_ratio_of_1(tiny_data, tiny_ldm):
    changes = custom("number_of_sites") | {"rl_module.rl_configs.num_inner_batch": 1}
    _, _, state, metrics, _ = one_step(config_of(tiny_data, tiny_ldm.path, **changes))
    assert metrics["ratio"] == 1.0
    assert metrics["kl_rollout"] == metrics["clip_share"] == 0.0
    assert int(state.step) == 1


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_plain_policy_gradient(tiny_data, tiny_ldm, sampler):
    changes = custom("number_of_sites") | {
        "rl_module.rl_configs.num_group_samples": 1,
        "rl_module.sampling_configs.sampler": sampler,
        "data.batch_size": 24,
    }
    _, before, state, metrics, _ = one_step(config_of(tiny_data, tiny_ldm.path, **changes))
    assert metrics["advantage_std"] == pytest.approx(1.0, rel=0.05)
    assert not np.array_equal(numbers(state.params), before)


def test_without_data_sizes_come_from_the_model(tiny_ldm):
    config = config_of("", tiny_ldm.path, **custom("number_of_sites"))
    config.data.name = ""
    stage, _, _, metrics, _ = one_step(config)
    assert set(stage.batches.prompts(0).num_atoms) <= {2, 5, 8}
    assert metrics["reward/custom_failures"] == 0


def test_the_result_is_a_diffusion_model(tiny_data, tiny_ldm, tmp_path):
    config = config_of(tiny_data, tiny_ldm.path, **custom("number_of_sites"))
    run(config, tmp_path / "run", steps=1)
    meta = open_model(tmp_path / "run").meta
    assert meta.stage == "train_rl"
    assert meta.ldm.sample_weights == "raw"
    model, start = load_model(tmp_path / "run" / "checkpoints" / "last"), load_model(tiny_ldm.path)
    assert len(model.sample(4, seed=0, steps=5)) + len(model.last_report.failures) == 4
    assert model.parts.latent_std == start.parts.latent_std
    np.testing.assert_array_equal(numbers(model.parts.vae.params), numbers(start.parts.vae.params))
    # It starts from the weights that the LDM samples with.
    ldm = ldm_of(open_model(tiny_ldm.path))
    np.testing.assert_array_equal(numbers(build(config).init_params), numbers(ldm.params))
    # And can be fine-tuned further.
    again = config_of(tiny_data, tmp_path / "run", **custom("number_of_sites"))
    assert meta_of(build(again)).ldm.dit == meta.ldm.dit


def test_stopped_and_resumed_is_the_same(tiny_data, tiny_ldm, tmp_path):
    """Four rollouts are two and two; the folder of the frozen reference is gone."""
    copy = shutil.copytree(tiny_ldm.path, tmp_path / "ldm", symlinks=True)
    changes = custom("number_of_sites") | {
        "rl_module.rl_configs.kl_reference": "initial",
        "rl_module.ema.decay": 0.9,
        "trainer.check_val_every_n_steps": 0,
    }
    whole = config_of(tiny_data, copy, **changes)
    expected = run(whole, tmp_path / "whole", steps=4).state
    halves = config_of(tiny_data, copy, **changes)
    run(halves, tmp_path / "halves", steps=2)
    shutil.rmtree(copy)
    state = run(halves, tmp_path / "halves", steps=4, resume=True).state
    for name, values in by_name(expected.params).items():
        np.testing.assert_array_equal(by_name(state.params)[name], values, err_msg=name)
    np.testing.assert_array_equal(numbers(state.ema_params), numbers(expected.ema_params))
    np.testing.assert_array_equal(numbers(state.opt_state), numbers(expected.opt_state))
    assert int(state.step) == 8
    assert open_model(tmp_path / "halves").meta.ldm.sample_weights == "ema"


def test_best_is_chosen_on_raw_reward(tiny_data, tiny_ldm, tmp_path):
    """Also where the first one is the best: here rewards go to the wrong crystals."""
    changes = {
        "rl_module.reward_fn.components": "volume",
        "rl_module.reward_fn.volume.target": 15.0,
        "rl_module.reward_fn.volume.normalize_fn": "norm",
        "rl_module.reward_fn.require": "",
        "rl_module.reward_fn.shuffle": True,
        "rl_module.optimizer.lr": 1e-3,
        "trainer.check_val_every_n_steps": 1,
    }
    config = config_of(tiny_data, tiny_ldm.path, **changes)
    config.trainer.max_steps = 3
    stage, validations = build(config), []

    def validate(params, state):
        validations.append(stage.validate(params, state))
        return validations[-1]

    result = fit(replace(stage, validate=validate), fit_config(config), run_dir=tmp_path / "run")
    raw = [validation.values["val/reward"] for validation in validations]
    assert len(raw) == 4
    assert len(set(raw)) > 1
    assert result.best_step == np.argmax(raw)
    assert set(result.values) == set(stage.value_names)
    # Crystals without a value get the same floor at every validation, and after a resume.
    floors = validations[0].state["floors"]
    assert set(floors) == {"volume"}
    for validation in validations:
        assert validation.values["val/reward"] == pytest.approx(validation.values["val/volume"])
        assert validation.state == {"floors": floors}
    saved = open_checkpoint(tmp_path / "run").progress.validation_state
    assert saved == {"floors": floors}
    # Runs of format version 0 have the floors in the meta.
    for folder in (tmp_path / "run" / "checkpoints").glob("step_*"):
        meta = json.loads((folder / "meta" / "metadata").read_text())
        (folder / "meta" / "metadata").write_text(json.dumps(meta | {"validation_floors": floors}))
    resumed = build(config, resume_dir=tmp_path / "run")
    assert resumed.validation_state == {"floors": floors}
    assert "validation_floors" not in resumed.meta


def test_failures_are_counted_and_warned_of(tiny_data, tiny_ldm, caplog):
    changes = custom("fails_for_five")
    with caplog.at_level(logging.WARNING):
        _, _, state, metrics, _ = one_step(config_of(tiny_data, tiny_ldm.path, **changes))
    count = metrics["reward/custom_failures"]
    assert 0 < count < 24
    assert metrics["reward/custom_failures/RuntimeError"] == count
    assert metrics["reward/raw_reward"] == pytest.approx(1 - count / 24)
    assert metrics["reward/custom_mean"] == 1.0
    text = f"custom failed for {count:.0f} of 24 crystals: RuntimeError: no perovskites, please"
    assert f"{text} ({count:.0f})" in caplog.text
    assert np.isfinite(numbers(state.params)).all()


def test_failing_for_all_ends_the_run(tiny_data, tiny_ldm, caplog):
    """At the first validation; in rollouts, which may have bad luck, at the third in a row."""
    stage = build(config_of(tiny_data, tiny_ldm.path, **custom("always_fails")))
    with pytest.raises(RewardError, match=r"'custom' failed for all 12 .*nothing is good enough"):
        stage.validate(stage.init_params, stage.validation_state)
    config = config_of(tiny_data, tiny_ldm.path)
    updater, mesh = Updater.from_config(fit_config(config), total_steps=10), make_mesh()
    step = stage.make_step(updater, mesh)
    state = init_state(stage.init_params, updater.tx, seed=0, ema=False, mesh=mesh)
    for number in range(2):
        batch = shard_batch(stage.batches.batch(number).arrays, mesh)
        state, metrics, _ = step(state, stage.frozen, batch)
        assert metrics["advantage_std"] == 0
    assert caplog.text.count("nothing to learn from") == 2
    batch = shard_batch(stage.batches.batch(2).arrays, mesh)
    with pytest.raises(RewardError, match=r"3 rollouts in a row .* nothing is good enough"):
        step(state, stage.frozen, batch)


def test_pictures_of_the_best_and_worst(tiny_data, tiny_ldm):
    config = config_of(tiny_data, tiny_ldm.path, **custom("number_of_sites"))
    config.rl_module.validation.draw_every_n_steps = 1
    *_, pictures = one_step(config)
    assert set(pictures) == {"rollout/best", "rollout/worst"}
    for pixels in pictures.values():
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.std() > 1
    config.rl_module.validation.draw_every_n_steps = 2
    *_, pictures = one_step(config)
    assert pictures == {}


def programs_of(ldm, config):
    settings = Settings(
        sampler=make_sampler("ddim", 4, 1.0),
        cfg_scale=2.0,
        objective=Objective(),
        group_size=2,
        norm_in_groups=True,
        seed=0,
    )
    updater = Updater.from_config(fit_config(config), total_steps=4)
    return make_programs(ldm, settings, updater=updater, mesh=make_mesh(), with_reference=False)


def test_a_rollout_is_decoded_in_the_units_of_the_vae(tiny_data, tiny_ldm):
    channels = ChannelMoments(tuple(np.linspace(-1, 1, 8)), tuple(np.linspace(0.5, 2, 8)))
    ldm = replace(ldm_of(open_model(tiny_ldm.path)), latent_channels=channels)
    config = config_of(tiny_data, tiny_ldm.path, **custom("number_of_sites"))
    rows = build(config).batches.batch(0).arrays[0]
    programs = programs_of(ldm, config)
    trajectory, crystals = programs.roll_out(ldm.params, ldm.vae.params, jax.random.key(0), rows)
    latents = np.asarray(trajectory.states[-1]) * np.linspace(0.5, 2, 8) + np.linspace(-1, 1, 8)
    vae = ldm.vae.module(ldm.vae.params)
    expected = vae.decode(latents.astype(np.float32), rows)
    np.testing.assert_allclose(
        crystals.frac_coords[rows.is_atom], expected.frac_coords[rows.is_atom], atol=1e-4
    )


def test_conditions_reach_the_programs(tiny_data, tiny_ldm):
    """A conditional model: a guided rollout, and gradients of the conditions."""
    ldm = conditional(ldm_of(open_model(tiny_ldm.path)), CompositionCondition("formula"))
    stage = build(config_of(tiny_data, tiny_ldm.path, **custom("number_of_sites")))
    rows = stage.batches.batch(0).arrays[0]
    slots = rows.is_crystal.shape
    conditions = np.zeros((*slots, 100), np.float32)
    conditions[..., 8] = 1.0
    rows = replace(rows, conditions={"formula": conditions})
    programs = programs_of(ldm, config_of(tiny_data, tiny_ldm.path))
    trajectory, _ = programs.roll_out(ldm.params, ldm.vae.params, jax.random.key(0), rows)
    chunk = Chunk(
        rows=rows,
        states=trajectory.states,
        old_log_probs=np.zeros((3, *slots), np.float32),
        advantages=np.ones(slots, np.float32),
        weights=rows.is_crystal.astype(np.float32),
        share=np.float32(1.0),
        is_drawn_with=np.bool_(True),
    )
    gradient = by_name(programs.run_pass(ldm.params, {}, chunk).gradient)
    moved = [name for name, values in gradient.items() if np.abs(values).max() > 0]
    assert any(name.startswith("conditions/") for name in moved)


def test_atom_types_are_those_of_the_prompts(tiny_data, csp_run, tmp_path):
    """A VAE that does not predict atom types: a group has those of its training crystal."""
    types = {"condition_module.condition_type": "composition:composition"}
    ldm = fit_quickly(ldm_config(tiny_data, csp_run, ldm_module=types), tmp_path / "ldm", steps=1)
    changes = custom("heaviest_element")
    stage, _, state, metrics, _ = one_step(config_of(tiny_data, ldm, **changes))
    assert np.isfinite(numbers(state.params)).all()
    prompts = stage.batches.prompts(0)
    assert set(prompts.conditions) == {"composition"}
    # Hardly trained, it may build no crystal.
    if metrics["reward/refused"] + metrics["reward/custom_failures"] < 24:
        heaviest = {float(types.max()) for types in prompts.atom_types}
        assert {metrics["reward/custom_min"], metrics["reward/custom_max"]} <= heaviest


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_programs_lower_for_accelerators(base, platform):
    config, (stage, *_) = base
    ldm = ldm_of(open_model(config.rl_module.ldm_ckpt_path))
    updater = Updater.from_config(fit_config(config), total_steps=4)
    step = stage.make_step(updater, make_mesh(1))
    rows = stage.batches.batch(0).arrays[0]
    programs, slots = step.programs, rows.is_crystal.shape
    export.export(programs.roll_out, platforms=[platform])(
        ldm.params, ldm.vae.params, jax.random.key(0), rows
    )
    count = config.rl_module.sampling_configs.sampling_steps
    chunk = Chunk(
        rows,
        np.zeros((count + 1, *rows.position.shape, ldm.sizes.latent_dim), np.float32),
        np.zeros((count - 1, *slots), np.float32),
        np.zeros(slots, np.float32),
        np.ones(slots, np.float32),
        np.float32(1.0),
        np.bool_(True),
    )
    export.export(programs.run_pass, platforms=[platform])(ldm.params, {}, chunk)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rl_module.ldm_ckpt_path": ""}, ConfigError, "ldm_ckpt_path is empty"),
        ({"rl_module.ldm_ckpt_path": "no/such/run"}, CheckpointError, "no/such/run"),
        ({"trainer.precision": "bf16"}, ConfigError, "precision must be f32"),
        ({"rl_module.reward_fn.components": ""}, ConfigError, "components is empty"),
        ({"rl_module.reward_fn.components": "custom,custom"}, ConfigError, "names one twice"),
        ({"rl_module.reward_fn.components": "densty"}, RewardError, "Did you mean"),
        ({"rl_module.reward_fn.custom.function": ""}, RewardError, "function is empty"),
        ({"rl_module.reward_fn.custom.kwargs": "a=1"}, RewardError, "JSON"),
        ({"rl_module.reward_fn.custom.floor": "low"}, ConfigError, "floor is 'low'"),
        ({"rl_module.reward_fn.custom.normalize_fn": "max"}, ConfigError, "'max'"),
        ({"rl_module.rl_configs.num_inner_batch": 5}, ConfigError, "equal size"),
        ({"rl_module.sampling_configs.eta": 0.0}, ConfigError, "draws nothing"),
        ({"rl_module.sampling_configs.sampling_steps": 1001}, ConfigError, "1001"),
        ({"rl_module.conditions": "band_gap=3"}, ConfigError, "takes no conditions"),
        (
            {
                "rl_module.rl_configs.group_reward_norm": True,
                "rl_module.rl_configs.num_group_samples": 1,
            },
            ConfigError,
            "group_reward_norm needs groups",
        ),
        ({"rl_module.reward_fn.components": "predictor"}, RewardError, "ckpt_path is empty"),
    ],
)
def test_what_cannot_be_used_is_an_error_before_training(
    tiny_data, tiny_ldm, changes, error, message
):
    overrides = custom("number_of_sites") | changes
    with pytest.raises(error, match=message):
        build(config_of(tiny_data, tiny_ldm.path, **overrides))


def test_rewards_with_references_need_data(tiny_ldm):
    config = config_of("", tiny_ldm.path)
    config.data.name = ""
    config.rl_module.reward_fn.components = "creativity"
    with pytest.raises(ConfigError, match="compares with known crystals"):
        build(config)


def test_four_devices_are_one(four_devices):
    one, four = (np.load(four_devices / f"rl_{n}.npz") for n in (1, 4))
    moved = one["params"] - one["start"]
    assert np.abs(moved).max() > 1e-5
    np.testing.assert_allclose(four["params"], one["params"], atol=0.05 * np.abs(moved).max())
    np.testing.assert_allclose(four["validation"], one["validation"], rtol=1e-4, atol=1e-4)
    # Ratios depend on the last digits of log p: the last step's standard deviation is small.
    np.testing.assert_allclose(four["metrics"], one["metrics"], rtol=1e-2, atol=1e-3)
