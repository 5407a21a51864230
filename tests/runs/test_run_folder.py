"""Run folders, and the configs of resumed runs."""

import json
import threading
from datetime import datetime
from pathlib import Path

import pytest

from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.runs.config import load_config, to_json
from chemeleon2_jax.runs.run_folder import (
    CONFIG_FILE,
    make_run_dir,
    newest_run,
    remove_unused,
    resumed_config,
    save_config,
)

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
VAE, LDM = f"{CONFIGS}/train_vae.py", f"{CONFIGS}/train_ldm.py"


def test_taken_folders_get_a_number(tmp_path):
    now = datetime(2026, 1, 2, 3, 4, 5)
    made = [make_run_dir(str(tmp_path), "train_vae", now=now) for _ in range(3)]
    names = ["2026-01-02_03-04-05", "2026-01-02_03-04-05_1", "2026-01-02_03-04-05_2"]
    assert made == [tmp_path / "train_vae" / "runs" / name for name in names]


def test_newest_run_of_a_name(tmp_path):
    assert newest_run(str(tmp_path), "train_vae", "a") is None
    made = {}
    for name, day in [("a", 1), ("a", 3), ("a", 2), ("a", 3), ("a_b", 4), ("", 5), ("a", 6)]:
        path = make_run_dir(str(tmp_path), "train_vae", name=name, now=datetime(2026, 1, day))
        made[path.name] = path
        if day < 6:  # the last was killed before its config was written
            (path / CONFIG_FILE).write_text("{}")
    assert newest_run(str(tmp_path), "train_vae", "a") == made["a_2026-01-03_00-00-00_1"]
    assert newest_run(str(tmp_path), "train_vae", "a_b") == made["a_b_2026-01-04_00-00-00"]
    assert newest_run(str(tmp_path), "train_ldm", "a") is None


@pytest.mark.parametrize("name", ["../a", "a/b", ".a", "a b", "a\n", "é"])
def test_names_of_runs_are_file_names(tmp_path, name):
    with pytest.raises(ConfigError, match="run_name is"):
        make_run_dir(str(tmp_path), "train_vae", name=name)
    assert not list(tmp_path.iterdir())


def test_runs_that_start_together_get_folders_of_their_own(tmp_path):
    now, made = datetime(2026, 1, 2), []
    threads = [
        threading.Thread(target=lambda: made.append(make_run_dir(str(tmp_path), "t", now=now)))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 16


def test_log_dir_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"paths\.log_dir"):
        make_run_dir(str(tmp_path / "file"), "train_vae")


@pytest.fixture
def run_dir(tmp_path):
    """A run of tiny/vae_dng with another batch size."""
    config = load_config(f"{VAE}:tiny/vae_dng")
    config.data.batch_size = 32
    config.data.data_dir = str(tmp_path / "crystals")
    save_config(config, tmp_path)
    return tmp_path


def test_saved_config_is_the_resolved_one(run_dir):
    content = (run_dir / CONFIG_FILE).read_text()
    assert json.loads(content)["data"]["batch_size"] == 32
    assert [p.name for p in run_dir.iterdir()] == [CONFIG_FILE]


@pytest.mark.parametrize("spec", [VAE, f"{VAE}:tiny/vae_dng"])
def test_saved_config_is_the_base_and_flags_win(run_dir, spec):
    overrides = {
        "resume_from": str(run_dir),
        "trainer.max_steps": 12345,
        "data.batch_size": 32,
        "data.data_dir": f"{run_dir}/x/../crystals",
    }
    current = load_config(spec)
    current.update_from_flattened_dict(overrides)
    config, changes = resumed_config(current, overrides, run_dir)
    saved = load_config(f"{VAE}:tiny/vae_dng")
    assert changes == [f"trainer.max_steps = 12345 (was {saved.trainer.max_steps})"]
    assert config.trainer.max_steps == 12345
    assert config.data.batch_size == 32
    assert config.vae_module.encoder.d_model == 128
    assert config.experiment == "tiny/vae_dng"
    assert config.resume_from == ""
    assert config.is_locked


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1),
        ("data.name", "mp-20"),
        ("data.data_dir", "elsewhere"),
        ("vae_module.latent_dim", 4),
        ("vae_module.encoder.num_layers", 4),
        ("vae_module.loss_weights.fa", 0.5),
    ],
)
def test_another_model_data_set_or_seed_is_an_error(run_dir, key, value):
    current = load_config(VAE)
    current.update_from_flattened_dict({key: value})
    with pytest.raises(ConfigError, match=f"has {key} = "):
        resumed_config(current, {key: value}, run_dir)


def test_a_run_of_an_earlier_version_continues_as_it_began(tmp_path):
    """Its config lacks keys whose defaults of today would change its numbers."""
    config = load_config(LDM)
    save_config(config, tmp_path)
    saved = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert resumed_config(load_config(LDM), {}, tmp_path)[0].ldm_module.cache_posteriors
    del saved["ldm_module"]["cache_posteriors"]
    (tmp_path / CONFIG_FILE).write_text(json.dumps(saved))
    assert not resumed_config(load_config(LDM), {}, tmp_path)[0].ldm_module.cache_posteriors
    on = {"ldm_module.cache_posteriors": True}
    assert resumed_config(load_config(LDM), on, tmp_path)[0].ldm_module.cache_posteriors


@pytest.mark.parametrize(("saved", "changed"), [(0.9, 0.0), (0.0, 0.9)])
def test_ema_is_not_switched_in_a_run(tmp_path, saved, changed):
    config, key = load_config(LDM), "ldm_module.ema.decay"
    config.ldm_module.ema.decay = saved
    save_config(config, tmp_path)
    with pytest.raises(ConfigError, match=f"has {key} = {saved}"):
        resumed_config(load_config(LDM), {key: changed}, tmp_path)
    if saved:
        _, changes = resumed_config(load_config(LDM), {key: 0.99}, tmp_path)
        assert changes == [f"{key} = 0.99 (was {saved})"]


@pytest.mark.parametrize(
    ("key", "value", "kept"),
    [
        ("rl_module.reward_fn.components", "symmetry", True),
        ("rl_module.reward_fn.energy.weight", 0.5, True),
        ("rl_module.validation.num_samples", 3, True),
        ("rl_module.reward_fn.timeout_s", 3.0, False),
        ("rl_module.optimizer.lr", 1e-6, False),
    ],
)
def test_a_run_keeps_its_rewards(tmp_path, key, value, kept):
    config = load_config(f"{CONFIGS}/train_rl.py")
    save_config(config, tmp_path)
    if kept:
        with pytest.raises(ConfigError, match="keeps its model, data, rewards and seed"):
            resumed_config(config, {key: value}, tmp_path)
    else:
        assert resumed_config(config, {key: value}, tmp_path)[1]


def test_only_a_folder_without_results_is_removed(tmp_path):
    for name, extra in (("unused", "train.log"), ("used", "events.out")):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / CONFIG_FILE).touch()
        (tmp_path / name / extra).touch()
        remove_unused(tmp_path / name, "train.log")
    assert [path.name for path in tmp_path.iterdir()] == ["used"]
    assert (tmp_path / "used" / CONFIG_FILE).exists()


def test_another_experiment_or_stage_is_an_error(run_dir):
    with pytest.raises(ConfigError, match="run of the experiment 'tiny/vae_dng'"):
        resumed_config(load_config(f"{VAE}:mp_20/vae_dng"), {}, run_dir)
    with pytest.raises(ConfigError, match="run of train_vae, not of train_ldm"):
        resumed_config(load_config(LDM), {}, run_dir)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not the folder of a run"),
        ("{", "cannot be read"),
        ("[]", "does not hold a config"),
        ('{"task_name": "train_vae", "old_key": 1}', "'old_key', which this version"),
        ('{"task_name": "train_vae", "data": {"batch_size": "x"}}', "holds a wrong value"),
    ],
)
def test_broken_run_folder_is_explained(tmp_path, content, message):
    if content is not None:
        (tmp_path / CONFIG_FILE).write_text(content)
    with pytest.raises(ConfigError, match=message):
        resumed_config(load_config(VAE), {}, tmp_path)


def test_keys_that_came_after_the_run_take_their_defaults(run_dir):
    saved = json.loads((run_dir / CONFIG_FILE).read_text())
    del saved["packing"]
    (run_dir / CONFIG_FILE).write_text(json.dumps(saved))
    config, changes = resumed_config(load_config(VAE), {"packing.layout": "packed"}, run_dir)
    assert config.packing.layout == "packed"
    assert not changes
    assert json.loads(to_json(config))["data"]["batch_size"] == 32
