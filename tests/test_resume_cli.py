"""Runs that are killed, stopped or finished, and resumed."""

from __future__ import annotations

import random
import re
import shutil
import signal
import time

import pytest

from chemeleon2_jax import train
from chemeleon2_jax.training.checkpoint_reader import complete_steps, open_checkpoint
from tests.tiny import (
    LDM_SPEC,
    TINY_LDM,
    TINY_VAE,
    VAE_SPEC,
    as_flags,
    by_name,
    make_config,
    only_run,
    run_module,
    start_module,
)


def wait_for(condition, process):
    """Wait until the condition holds, while the process runs."""
    deadline = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def interrupt_run(log_dir, spec, values, *, by):
    """Start a run that saves often and end it by a signal at a random moment.

    Returns:
        its folder, exit code and output.
    """
    flags = as_flags({**values, "trainer.save_every_n_steps": 10, "paths.log_dir": log_dir})
    process = start_module("train", f"--config={spec}", *flags)
    try:
        wait_for(lambda: list(log_dir.glob("*/runs/*/checkpoints")), process)
        run_dir = only_run(log_dir)
        after = random.randrange(10, 100, 10)
        wait_for(lambda: max(complete_steps(run_dir / "checkpoints"), default=0) >= after, process)
        time.sleep(random.random() * 0.1)
        process.send_signal(by)
        output, _ = process.communicate(timeout=200)
    finally:
        process.kill()
    return run_dir, process.returncode, output


def resume(spec, run_dir, caplog, **values):
    """Resume in this process; return the log."""
    overrides = {"resume_from": str(run_dir), **values}
    caplog.set_level("INFO")
    assert train.train(train.make_plan(make_config(spec, overrides), overrides)) == 0
    return caplog.text


def assert_same_run(run_dir, unbroken):
    """The last checkpoints are equal, bit for bit, and the best is of the same step."""
    resumed, whole = (open_checkpoint(run / "checkpoints" / "last") for run in (run_dir, unbroken))
    assert resumed.step == whole.step == 150
    assert resumed.items == whole.items
    for item in resumed.items:
        arrays, expected = (by_name(run.restore(item)) for run in (resumed, whole))
        assert arrays.keys() == expected.keys()
        for name, array in expected.items():
            assert arrays[name].dtype == array.dtype
            assert arrays[name].tobytes() == array.tobytes(), (item, name)
    assert open_checkpoint(run_dir).step == open_checkpoint(unbroken).step
    assert resumed.progress.values["val/total_loss"] == whole.progress.values["val/total_loss"]


def test_killed_vae_ends_as_an_unbroken_one(tmp_path, caplog, tiny_data, tiny_vae):
    values = {**TINY_VAE, "data.data_dir": tiny_data}
    run_dir, code, output = interrupt_run(tmp_path, VAE_SPEC, values, by=signal.SIGKILL)
    assert code == -signal.SIGKILL, output
    output = resume(VAE_SPEC, run_dir, caplog, **{"trainer.save_every_n_steps": 1000})
    assert re.search(r"resumed at step \d+0 from", output)
    assert "trainer.save_every_n_steps = 1000 (was 10)" in output
    assert_same_run(run_dir, tiny_vae.path)


def test_stopped_ldm_says_how_to_go_on_and_ends_as_an_unbroken_one(
    tmp_path, caplog, tiny_data, tiny_vae, tiny_ldm
):
    vae = shutil.copytree(tiny_vae.path, tmp_path / "vae", symlinks=True)
    paths = {"data.data_dir": tiny_data, "ldm_module.vae_ckpt_path": vae}
    run_dir, code, output = interrupt_run(
        tmp_path / "logs", LDM_SPEC, {**TINY_LDM, **paths}, by=signal.SIGTERM
    )
    assert code == 143, output
    stopped = re.search(r"SIGTERM: stopped and saved at step (\d+); resume with (\S+)", output)
    assert stopped, output
    assert stopped[2] == f"--config.resume_from={run_dir}"
    assert "Traceback" not in output
    assert open_checkpoint(run_dir / "checkpoints" / "last").step == int(stopped[1]) < 150
    shutil.rmtree(vae)  # the run has its own copy
    assert f"resumed at step {stopped[1]} from" in resume(LDM_SPEC, run_dir, caplog)
    assert_same_run(run_dir, tiny_ldm.path)


def test_finished_run_has_nothing_left_to_do(tmp_path, caplog, tiny_vae):
    run_dir = shutil.copytree(tiny_vae.path, tmp_path / "run", symlinks=True)
    before = {path: path.stat().st_mtime_ns for path in (run_dir / "checkpoints").glob("step_*/*")}
    output = resume(VAE_SPEC, run_dir, caplog)
    assert "the run is finished at step 150: nothing is left to train" in output
    after = {path: path.stat().st_mtime_ns for path in (run_dir / "checkpoints").glob("step_*/*")}
    assert after == before


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("vae", "data.data_dir", "elsewhere"),
        ("ldm", "ldm_module.vae_ckpt_path", "another"),
    ],
)
def test_another_seed_model_or_data_set_is_an_error(tiny_vae, tiny_ldm, kind, key, value):
    spec, run = {"vae": (VAE_SPEC, tiny_vae), "ldm": (LDM_SPEC, tiny_ldm)}[kind]
    flags = as_flags({"resume_from": run.path, key: value})
    done = run_module("train", f"--config={spec}", *flags)
    assert done.code == 1
    assert done.output.startswith(f"error: {run.path} has {key} = "), done.output
    assert "a run keeps its model, data, rewards and seed" in done.output
    assert done.output.count("\n") == 1
