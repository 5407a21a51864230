"""The train command: its output, its run folders and its exit codes."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from chemeleon2_jax import train
from chemeleon2_jax.common.errors import ConfigError, DatasetError
from chemeleon2_jax.runs.config import load_config
from chemeleon2_jax.training.checkpoint_reader import open_checkpoint
from tests.training.toy_stage import ToyBatches, toy_stage

VAE = "--config=configs/train_vae.py"


def run_train(repository_dir, *arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "chemeleon2_jax.train", *arguments],
        cwd=cwd or repository_dir,
        env={**os.environ, "PYTHONPATH": str(repository_dir)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_print_config(repository_dir, tmp_path):
    config_file = repository_dir / "configs" / "train_ldm.py"
    done = run_train(
        repository_dir,
        "--config.trainer.max_epochs=3",  # also before the file
        "--config",
        f"{config_file}:tiny/ldm_null",
        "--config.ldm_module.vae_ckpt_path=${hub:mp_20_vae}",
        "--noconfig.ldm_module.augmentation.rotate",
        "--print_config",
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    config = json.loads(done.stdout)
    assert config["trainer"]["max_epochs"] == 3
    assert config["data"]["name"] == "prototypes"
    assert config["ldm_module"]["vae_ckpt_path"] == "mp_20_vae"
    assert config["ldm_module"]["augmentation"]["rotate"] is False
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "error: give a config"),
        ((VAE, VAE), "error: --config is given 2 times"),
        ((VAE, "--config.data.batchsize=1"), "error: unknown config key 'data.batchsize'"),
        ((VAE, "--config.data.batch_size", "x"), "error: flag --config.data.batch_size=x"),
        ((VAE, "--print_confg"), "error: Unknown command line flag 'print_confg'. Did you mean"),
        ((VAE, "--print_config", "3"), "error: unexpected argument '3'"),
        ((VAE, "--config.resume_from=nowhere"), "error: nowhere is not the folder of a run"),
        ((VAE, "--config.trainer.precision=f64"), "error: trainer.precision is 'f64'"),
    ],
)
def test_mistake_is_one_line_and_exit_code_1(repository_dir, arguments, message):
    done = run_train(repository_dir, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


def test_plan_needs_no_jax(repository_dir):
    code = (
        "import sys; from chemeleon2_jax import train\n"
        "config = train.load_config('configs/train_vae.py:tiny/vae_dng')\n"
        "assert train.make_plan(config, {}).resume_dir is None\n"
        "assert not {'jax', 'pymatgen', 'orbax'} & sys.modules.keys(), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=repository_dir, check=True, timeout=60)


@pytest.fixture
def tiny(tmp_path):
    config = load_config(f"{Path(__file__).parents[1]}/configs/train_vae.py:tiny/vae_dng")
    config.paths.log_dir = str(tmp_path / "logs")
    config.trainer.max_steps = 2
    return config


def build_toys(monkeypatch, **changes):
    """Train the toy stage, in place of those that `stages.build` builds."""
    monkeypatch.setattr("chemeleon2_jax.stages.build", lambda config, **_: toy_stage(**changes))


def build_none(monkeypatch):
    def fail(config, **_):
        raise DatasetError("no such data")

    monkeypatch.setattr("chemeleon2_jax.stages.build", fail)


def only_folder(config):
    (run_dir,) = Path(config.paths.log_dir).glob("*/runs/*")
    return run_dir


def test_run_folder_and_its_resume(monkeypatch, caplog, tiny):
    caplog.set_level("INFO")
    build_toys(monkeypatch)
    assert train.train(train.make_plan(tiny, {})) == 0
    run_dir = only_folder(tiny)
    assert run_dir.parent == Path(tiny.paths.log_dir) / "train_vae" / "runs"
    saved = json.loads((run_dir / "config.json").read_text())
    assert (saved["experiment"], saved["trainer"]["max_steps"]) == ("tiny/vae_dng", 2)
    log_text = (run_dir / "train.log").read_text()
    assert f"Run folder: {run_dir}" in log_text
    assert "Done at step 2; the best is of step 2" in log_text
    assert f"--config.ldm_module.vae_ckpt_path={run_dir}" in log_text

    overrides = {"resume_from": str(run_dir), "trainer.max_steps": 5}
    tiny.update_from_flattened_dict(overrides)
    assert train.train(train.make_plan(tiny, overrides)) == 0
    log_text = (run_dir / "train.log").read_text()
    assert "trainer.max_steps = 5 (was 2)" in log_text
    assert "resumed at step 2" in log_text
    assert open_checkpoint(run_dir / "checkpoints" / "last").step == 5
    saved = json.loads((run_dir / "config.json").read_text())
    assert (saved["trainer"]["max_steps"], saved["resume_from"]) == (5, "")


def test_named_run_is_started_and_resumed_by_the_same_command(monkeypatch, caplog, tiny):
    caplog.set_level("INFO")
    build_toys(monkeypatch)
    overrides = {"resume_from": "auto", "run_name": "first"}
    tiny.update_from_flattened_dict(overrides)
    assert train.train(train.make_plan(tiny.copy_and_resolve_references(), overrides)) == 0
    run_dir = only_folder(tiny)
    assert run_dir.name.startswith("first_2")
    assert json.loads((run_dir / "config.json").read_text())["resume_from"] == ""
    overrides |= {"trainer.max_steps": 3}
    tiny.update_from_flattened_dict(overrides)
    assert train.train(train.make_plan(tiny.copy_and_resolve_references(), overrides)) == 0
    assert only_folder(tiny) == run_dir
    assert open_checkpoint(run_dir / "checkpoints" / "last").step == 3


def test_resuming_the_newest_run_needs_a_name(tiny):
    tiny.resume_from = "auto"
    with pytest.raises(ConfigError, match=r"give --config\.run_name"):
        train.make_plan(tiny, {"resume_from": "auto"})


@dataclass(frozen=True)
class FailingBatches(ToyBatches):
    error: Exception = field(default_factory=Exception)

    def batch(self, step):
        raise self.error


@pytest.mark.parametrize(
    ("error", "traceback"), [(DatasetError("row 3 is broken"), False), (ZeroDivisionError(), True)]
)
def test_error_is_in_the_log_file(monkeypatch, tiny, error, traceback):
    build_toys(monkeypatch, batches=FailingBatches(error=error))
    with pytest.raises(type(error)):
        train.train(train.make_plan(tiny, {}))
    text = (only_folder(tiny) / "train.log").read_text()
    assert f"{type(error).__name__}: {error}" in text
    assert ("Traceback" in text) == traceback


def test_run_that_never_started_leaves_no_folder(monkeypatch, tiny):
    build_none(monkeypatch)
    with pytest.raises(DatasetError):
        train.train(train.make_plan(tiny, {}))
    assert list(Path(tiny.paths.log_dir).glob("*/runs/*")) == []


def test_resume_that_fails_leaves_the_config_unchanged(monkeypatch, tiny):
    build_toys(monkeypatch)
    train.train(train.make_plan(tiny, {}))
    run_dir = only_folder(tiny)
    before = (run_dir / "config.json").read_bytes()
    build_none(monkeypatch)
    overrides = {"resume_from": str(run_dir), "trainer.precision": "bf16"}
    tiny.update_from_flattened_dict(overrides)
    with pytest.raises(DatasetError):
        train.train(train.make_plan(tiny, overrides))
    assert (run_dir / "config.json").read_bytes() == before


def test_more_devices_than_there_are(tiny):
    tiny.trainer.num_devices = 1000
    with pytest.raises(ConfigError, match=r"trainer\.num_devices"):
        train.train(train.make_plan(tiny, {}))
