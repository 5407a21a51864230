"""Training of conditional diffusion models and of adapters."""

from __future__ import annotations

import csv

import jax
import numpy as np
import pytest

from chemeleon2_jax.common.errors import CheckpointError, ConfigError
from chemeleon2_jax.diffusion.schedule import Schedule
from chemeleon2_jax.inference.api import load_model
from chemeleon2_jax.runs.config import fit_config
from chemeleon2_jax.stages import build
from chemeleon2_jax.stages.conditions import drop_some
from chemeleon2_jax.training.loop import fit
from tests.tiny import by_name, first_step, ldm_config, make_crystals, meta_of, noisy

pytestmark = pytest.mark.usefixtures("quick_compilation")

KINDS = "composition:composition,system:chemical_system"


def condition_config(data_dir, vae, **changes):
    module = {"condition_module.condition_type": KINDS, **changes}
    return ldm_config(data_dir, vae, ldm_module=module)


@pytest.fixture(scope="module")
def stage(tiny_data, tiny_vae):
    return build(condition_config(tiny_data, tiny_vae.path))


def test_step_reaches_the_conditions(stage):
    loss, _, gradients = first_step(stage, noisy(stage.init_params))
    assert np.isfinite(loss)
    names = {name for name in gradients if name.startswith("conditions/")}
    assert "conditions/encoders/composition/null_embed" in names
    for name in names:
        assert np.isfinite(gradients[name]).all(), name
        assert np.abs(gradients[name]).max() > 0, name


def test_some_crystals_lose_all_conditions(stage):
    rows = stage.batches.batch(0).arrays
    share = 0.4
    lost = []
    for seed in range(40):
        dropped = drop_some(jax.random.key(seed), rows, share)
        null = {name: np.isnan(values).all(-1) for name, values in dropped.items()}
        first, *others = null.values()
        assert all((other == first).all() for other in others)
        lost.append(first[np.asarray(rows.is_crystal)])
    lost = np.concatenate(lost)
    assert abs(lost.mean() - share) < 4 * np.sqrt(share * (1 - share) / lost.size)
    kept = drop_some(jax.random.key(0), rows, 0.0)
    for name, values in rows.conditions.items():
        np.testing.assert_array_equal(kept[name], values)


def test_conditions_are_lost_apart_where_asked(stage):
    rows = stage.batches.batch(0).arrays
    share, lost = 0.3, {name: [] for name in rows.conditions}
    for seed in range(60):
        dropped = drop_some(jax.random.key(seed), rows, share, mode="each")
        together = drop_some(jax.random.key(seed), rows, share)
        for name, values in dropped.items():
            null = np.isnan(values).all(-1)
            assert null[np.isnan(together[name]).all(-1)].all()  # all are lost as often as before
            lost[name].append(null[np.asarray(rows.is_crystal)])
    first, second = (np.concatenate(values) for values in lost.values())
    one, both = share + (1 - share) * share, share + (1 - share) * share**2
    for values, expected in ((first, one), (second, one), (first & second, both)):
        spread = np.sqrt(expected * (1 - expected) / values.size)
        assert abs(values.mean() - expected) < 4 * spread


def test_a_trained_model_follows_its_conditions(tiny_data, tiny_vae, tmp_path):
    """The loss with the right composition is lower than without, and sampling takes one."""
    config = condition_config(tiny_data, tiny_vae.path, **{"ema.decay": 0.0})
    config.trainer.max_steps = 600
    config.trainer.check_val_every_n_epoch = 0
    fit(build(config), fit_config(config), run_dir=tmp_path / "run")
    model = load_model(tmp_path / "run")
    assert [c.name for c in model.conditions] == ["composition", "system"]
    crystals = make_crystals()
    latents = [z / model.parts.latent_std for z in model.vae.encode(crystals)[0]]
    rng = np.random.default_rng(0)
    noise = [rng.normal(size=z.shape) for z in latents]
    t = np.full(len(latents), 400)
    bar = Schedule.of(model.parts.diffusion).alphas_cumprod[400]
    noised = [np.sqrt(bar) * z + np.sqrt(1 - bar) * e for z, e in zip(latents, noise, strict=True)]
    right = {"composition": [s.composition for s in crystals]}
    right["system"] = [s.chemical_system for s in crystals]

    def error(conditions):
        found = model.denoise(noised, t, conditions=conditions)
        return np.mean([np.mean((a - b) ** 2) for a, b in zip(found, noise, strict=True)])

    wrong = {name: values[::-1] for name, values in right.items()}
    assert error(right) < 0.9 * min(error(None), error(wrong))
    built = model.sample(4, conditions={"composition": "Na2Cl2", "system": None}, steps=4)
    assert len(built) + len(model.last_report.failures) == 4
    assert model.last_report.num_atoms == (4, 4, 4, 4)


# --- adapters -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapted(tiny_data, tiny_ldm):
    config = condition_config(
        tiny_data, "", ldm_ckpt_path=str(tiny_ldm.path), **{"lora_configs.r": 2, "ema.decay": 0.0}
    )
    return config, build(config)


def test_adapters_start_where_the_model_is(adapted, tiny_ldm):
    _, stage = adapted
    params, start = by_name(stage.init_params), by_name(load_model(tiny_ldm.path).parts.params)
    for name, array in start.items():
        np.testing.assert_array_equal(params[name], array)
    new = set(params) - set(start)
    assert {name.split("/")[-1] for name in new} >= {"lora_a", "lora_b", "null_embed"}
    assert all((params[name] == 0).all() for name in new if name.endswith("lora_b"))


def test_only_adapters_and_conditions_are_trained(adapted, tmp_path):
    config, stage = adapted
    config.trainer.max_steps = 3
    config.trainer.check_val_every_n_epoch = 0
    before = by_name(stage.init_params)
    fit(stage, fit_config(config), run_dir=tmp_path / "run")
    after = by_name(load_model(tmp_path / "run").parts.params)
    for name, array in before.items():
        trained = "lora_" in name or name.startswith("conditions/")
        assert np.array_equal(after[name], array) != trained, name


def test_a_start_from_a_model_with_other_conditions(tiny_data, tiny_vae, tmp_path):
    config = condition_config(tiny_data, tiny_vae.path)
    config.trainer.max_steps = 1
    config.trainer.check_val_every_n_epoch = 0
    fit(build(config), fit_config(config), run_dir=tmp_path / "run")
    other = {"condition_module.condition_type": "composition:composition"}
    with pytest.raises(CheckpointError, match="has the conditions"):
        build(condition_config(tiny_data, "", ldm_ckpt_path=str(tmp_path / "run"), **other))
    again = build(condition_config(tiny_data, "", ldm_ckpt_path=str(tmp_path / "run")))
    start = by_name(load_model(tmp_path / "run").parts.params)
    for name, array in by_name(again.init_params).items():
        np.testing.assert_array_equal(array, start[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"condition_module.condition_type": "composition"}, "name:kind"),
        ({"condition_module.condition_type": "a:smell"}, "smell"),
        ({"condition_module.stats": "gap:1:2"}, "no condition is a float"),
        ({"condition_module.condition_type": "gap:float,gap:composition"}, "twice"),
        ({"condition_module.condition_type": "keys:composition"}, "cannot be the name"),
        ({"lora_configs.r": 2}, "no model to adapt"),
    ],
)
def test_wrong_conditions_in_a_config(tiny_data, tiny_vae, changes, message):
    with pytest.raises(ConfigError, match=message):
        build(condition_config(tiny_data, tiny_vae.path, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_configs.target_modules": ""}, "target_modules is empty"),
        ({"lora_configs.target_modules": "nose"}, "nose"),
        ({"optimizer.weight_decay": 0.1}, "weight_decay"),
    ],
)
def test_wrong_adapters_in_a_config(tiny_data, tiny_ldm, changes, message):
    start = {"ldm_ckpt_path": str(tiny_ldm.path), "lora_configs.r": 2}
    with pytest.raises(ConfigError, match=message):
        build(condition_config(tiny_data, "", **start, **changes))


def test_classes_of_both_sets_are_checked(tiny_vae, tmp_path):
    """A wrong class of the validation set is an error before training."""
    crystals = make_crystals()
    for split, part, last in (("train", crystals, 2), ("val", crystals[2::6], 7)):
        rows = [[f"{split}-{i}", s.to(fmt="cif"), i % 3] for i, s in enumerate(part)]
        rows[-1][2] = last
        with (tmp_path / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["material_id", "cif", "group"], *rows])
    changes = {"condition_module.condition_type": "group:categorical"}
    config = condition_config(tmp_path, tiny_vae.path, **changes)
    config.ldm_module.condition_module.num_classes = 3
    with pytest.raises(ConfigError, match=r"num_classes is 3.*\(7\)"):
        build(config)
    config.ldm_module.condition_module.num_classes = 8
    assert build(config).batches.batch(0).arrays.conditions["group"].shape[-1] == 8


def test_statistics_are_those_of_the_model_to_start_from(tiny_vae, tmp_path):
    crystals = make_crystals()
    for split, part in (("train", crystals), ("val", crystals[2::6])):
        rows = [[f"{split}-{i}", s.to(fmt="cif"), float(s.density)] for i, s in enumerate(part)]
        with (tmp_path / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["material_id", "cif", "density"], *rows])
    kinds = {"condition_module.condition_type": "density:float", "ema.decay": 0.0}
    config = condition_config(tmp_path, tiny_vae.path, **kinds)
    config.ldm_module.condition_module.stats = "density:1.0:3.0"
    config.trainer.max_steps, config.trainer.check_val_every_n_epoch = 2, 0
    fit(build(config), fit_config(config), run_dir=tmp_path / "run")
    path = {"ldm_ckpt_path": str(tmp_path / "run"), "condition_module.drop_prob": 0.5}
    again = meta_of(build(condition_config(tmp_path, "", **kinds, **path))).ldm.dit.conditions
    assert again.conditions[0].mean == 1.0
    assert again.drop_prob == 0.5


def test_stopped_and_resumed_is_the_same(tiny_data, tiny_ldm, tmp_path):
    """Conditions, adapters and moving averages, bit for bit."""

    def config_for(steps):
        start = {"ldm_ckpt_path": str(tiny_ldm.path), "lora_configs.r": 2}
        config = condition_config(tiny_data, "", **start, **{"scheduler.name": "constant"})
        config.trainer.max_steps, config.trainer.check_val_every_n_epoch = steps, 0
        return config

    whole, half = config_for(4), config_for(2)
    expected = fit(build(whole), fit_config(whole), run_dir=tmp_path / "whole").state
    fit(build(half), fit_config(half), run_dir=tmp_path / "half")
    resumed = build(whole, resume_dir=tmp_path / "half")
    found = fit(resumed, fit_config(whole), run_dir=tmp_path / "half", resume=True).state
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    jax.tree.map(np.testing.assert_array_equal, found.ema_params, expected.ema_params)
