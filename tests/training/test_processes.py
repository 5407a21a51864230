"""What only a process of its own can show: kill -9, a full disk, several devices, imports."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_stage import same_trees, step_folders, toy_stage

from chemeleon2_jax.training.checkpoint_reader import complete_steps, open_checkpoint
from chemeleon2_jax.training.config import FitConfig
from chemeleon2_jax.training.loop import fit

HERE = Path(__file__).parent
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])]),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}


def start(run_dir: Path, **settings: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(HERE / "toy_run.py"), str(run_dir), json.dumps(settings)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=100)
    return output


def test_killed_at_random_and_resumed_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    settings = {"max_steps": 24, "save_every_n_steps": 1, "batches": {"seconds": 0.02}}
    whole = start(tmp_path / "whole", **settings)
    for attempt in range(3):
        process = start(tmp_path / "killed", **settings, resume=attempt > 0)
        seen = max(complete_steps(tmp_path / "killed" / "checkpoints"), default=0)
        while process.poll() is None:
            steps = complete_steps(tmp_path / "killed" / "checkpoints")
            if attempt < 2 and max(steps, default=0) >= seen + 3:
                time.sleep(random.random() * 0.2)
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.01)
        output = finish(process)
    assert process.returncode == 0, output
    assert "resumed at step" in output
    assert "status finished step 24" in output
    assert finish(whole).endswith("status finished step 24\n")
    for name in ("last", "best"):
        first, second = (
            open_checkpoint(tmp_path / run / "checkpoints" / name) for run in ("whole", "killed")
        )
        assert first.step == second.step
        for item in ("params", "ema", "train"):
            assert same_trees(first.restore(item), second.restore(item)), (name, item)


def test_full_disk_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    settings = {"max_steps": 12, "save_every_n_steps": 2, "check_val_every_n_epoch": 0}
    process = start(tmp_path, **settings, batches={"file_size_limit_at": 8, "seconds": 0.1})
    output = finish(process)
    assert process.returncode != 0
    last = max(complete_steps(tmp_path / "checkpoints"))
    assert f"the last good checkpoint is {tmp_path}/checkpoints/step_{last}" in output
    assert f"--config.resume_from={tmp_path}" in output
    assert step_folders(tmp_path) == [f"step_{last}"]
    process = start(tmp_path, **settings, resume=True)
    assert "status finished step 12" in finish(process)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_really_full_disk(small_disk: Path) -> None:
    settings = {"max_steps": 6, "save_every_n_steps": 2, "check_val_every_n_epoch": 0}
    assert "step 2" in finish(start(small_disk / "run", **(settings | {"max_steps": 2})))
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(b"x" * 10_000_000)
    output = finish(start(small_disk / "run", **settings, resume=True))
    assert "No space left" in output or "RESOURCE_EXHAUSTED" in output
    assert "step_2" in output.splitlines()[-1]
    assert step_folders(small_disk / "run") == ["step_2"]
    filler.unlink()
    assert "status finished step 6" in finish(start(small_disk / "run", **settings, resume=True))


def test_four_devices_are_one(tmp_path: Path) -> None:
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    process = subprocess.run(
        [sys.executable, str(HERE / "toy_devices.py"), str(tmp_path)],
        env=ENVIRONMENT | flags,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert process.returncode == 0, process.stderr
    four, one = (open_checkpoint(tmp_path / name) for name in ("4", "1"))
    np.testing.assert_allclose(
        four.restore("params")["out"], one.restore("params")["out"], rtol=1e-4, atol=1e-6
    )


def test_two_hosts_are_one_and_preempted_together(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    hosts = [
        subprocess.Popen(
            [sys.executable, str(HERE / "toy_hosts.py"), str(index), port, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=ENVIRONMENT | flags,
        )
        for index in range(2)
    ]
    try:
        assert hosts[1].stdout is not None
        output = ""
        for line in hosts[1].stdout:
            output += line
            if "step 3 is done" in line:
                hosts[1].send_signal(signal.SIGTERM)
                break
        for host in hosts:
            output += finish(host)
            assert host.returncode == 143, output
    finally:
        for host in hosts:
            host.kill()
    last = open_checkpoint(tmp_path / "checkpoints" / "last")
    assert f"stopped and saved at step {last.step}" in output
    config = FitConfig(max_steps=last.step, ema_decay=0.9, check_val_every_n_epoch=0)
    one = fit(toy_stage(), config, run_dir=tmp_path / "one")
    for name, params in (("params", one.state.params), ("ema", one.state.ema_params)):
        saved = last.restore(name)["out"]
        np.testing.assert_allclose(saved, params["out"], rtol=1e-4, atol=1e-6)


def test_training_imports_nothing_that_it_does_not_need() -> None:
    code = (
        "import sys, chemeleon2_jax.training.loop; "
        "print([m for m in ('wandb', 'tensorboardX', 'tensorboard', 'pymatgen', 'matplotlib', "
        "'torch', 'pandas') if m in sys.modules])"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == "[]"
