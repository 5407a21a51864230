"""The train command as a process: what it prints, and how it ends."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chemeleon2_jax import train
from chemeleon2_jax.common.errors import ConfigError, DatasetError
from chemeleon2_jax.runs.config import load_config

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


class FakeTraining:
    """Stands in for the stages and the loop: notes what it is given, then does as told."""

    def __init__(self, monkeypatch, outcome):
        self.calls = []
        self.starts = True
        self.outcome = outcome
        monkeypatch.setattr(
            "chemeleon2_jax.stages.build", lambda config, resume_dir: config, raising=False
        )
        monkeypatch.setattr("chemeleon2_jax.training.loop.fit", self.fit)

    def fit(self, stage, fit_config, *, run_dir, resume, config_text, on_start):
        self.calls.append((stage, fit_config, run_dir, resume, config_text))
        if self.starts:
            on_start()
        return self.outcome()


class Result:
    exit_code, status, step, best_step = 0, "finished", 7, 5


@pytest.fixture
def tiny(tmp_path):
    config = load_config(f"{Path(__file__).parents[1]}/configs/train_vae.py:tiny/vae_dng")
    config.paths.log_dir = str(tmp_path / "logs")
    return config


def test_run_folder_and_its_resume(monkeypatch, caplog, tiny):
    caplog.set_level("INFO")
    fake = FakeTraining(monkeypatch, Result)
    assert train.train(train.make_plan(tiny, {})) == 0
    stage, fit_config, run_dir, resume, text = fake.calls[0]
    assert stage.experiment == "tiny/vae_dng"
    assert fit_config.max_steps == tiny.trainer.max_steps
    assert json.loads(text) == json.loads((run_dir / "config.json").read_text())
    assert not resume
    assert run_dir.parent == Path(tiny.paths.log_dir) / "train_vae" / "runs"
    log_text = (run_dir / "train.log").read_text()
    assert f"Run folder: {run_dir}" in log_text
    assert "Done at step 7; the best is of step 5" in log_text
    assert f"--config.ldm_module.vae_ckpt_path={run_dir}" in log_text

    overrides = {"resume_from": str(run_dir), "trainer.max_steps": 5}
    tiny.update_from_flattened_dict(overrides)
    assert train.train(train.make_plan(tiny, overrides)) == 0
    _, fit_config, resumed_dir, resume, _ = fake.calls[1]
    assert (fit_config.max_steps, resumed_dir, resume) == (5, run_dir, True)
    assert "trainer.max_steps = 5 (was " in (run_dir / "train.log").read_text()
    saved = json.loads((run_dir / "config.json").read_text())
    assert (saved["trainer"]["max_steps"], saved["resume_from"]) == (5, "")


@pytest.mark.parametrize(
    ("error", "traceback"), [(DatasetError("row 3 is broken"), False), (ZeroDivisionError(), True)]
)
def test_error_is_in_the_log_file(monkeypatch, tiny, error, traceback):
    def fail():
        raise error

    fake = FakeTraining(monkeypatch, fail)
    with pytest.raises(type(error)):
        train.train(train.make_plan(tiny, {}))
    text = (fake.calls[0][2] / "train.log").read_text()
    assert f"{type(error).__name__}: {error}" in text
    assert ("Traceback" in text) == traceback


def test_run_that_never_started_leaves_no_folder(monkeypatch, tiny):
    def fail():
        raise DatasetError("no such data")

    FakeTraining(monkeypatch, fail).starts = False
    with pytest.raises(DatasetError):
        train.train(train.make_plan(tiny, {}))
    assert list(Path(tiny.paths.log_dir).glob("*/runs/*")) == []


def test_resume_that_fails_leaves_the_config_as_it_was(monkeypatch, tiny):
    def fail():
        raise DatasetError("does not fit")

    fake = FakeTraining(monkeypatch, Result)
    train.train(train.make_plan(tiny, {}))
    run_dir = fake.calls[0][2]
    before = (run_dir / "config.json").read_bytes()
    fake.starts, fake.outcome = False, fail
    overrides = {"resume_from": str(run_dir), "trainer.precision": "bf16"}
    tiny.update_from_flattened_dict(overrides)
    with pytest.raises(DatasetError):
        train.train(train.make_plan(tiny, overrides))
    assert (run_dir / "config.json").read_bytes() == before


def test_more_devices_than_there_are(monkeypatch, tiny):
    fake = FakeTraining(monkeypatch, Result)
    tiny.trainer.num_devices = 1000
    with pytest.raises(ConfigError, match=r"trainer\.num_devices"):
        train.train(train.make_plan(tiny, {}))
    assert not fake.calls
