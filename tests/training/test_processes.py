"""What only a process of its own can show: kill -9, a full disk, several devices, imports."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from toy_run import SETTINGS as TOY_RUN_SETTINGS
from toy_stage import arrays_of, same_trees, step_folders, toy_stage

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.training.checkpoint_reader import complete_steps, open_checkpoint
from chemeleon2_jax.training.config import FitConfig
from chemeleon2_jax.training.loop import fit
from chemeleon2_jax.training.result import FitResult

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


def run_here(run_dir: Path, **settings: Any) -> FitResult:
    """Start or resume in this process what `toy_run` starts in its own."""
    config = FitConfig(**TOY_RUN_SETTINGS, **settings)
    return fit(toy_stage(), config, run_dir=run_dir, resume=True)


def test_killed_at_random_and_resumed_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    settings = {"max_steps": 12, "save_every_n_steps": 1}
    process = start(tmp_path / "killed", **settings, batches={"seconds": 0.05})
    while process.poll() is None:
        if max(complete_steps(tmp_path / "killed" / "checkpoints"), default=0) >= 2:
            time.sleep(random.random() * 0.4)
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    output = finish(process)
    assert process.returncode == -signal.SIGKILL, output
    whole, resumed = (run_here(tmp_path / name, **settings) for name in ("whole", "killed"))
    assert (resumed.status, resumed.step) == ("finished", 12)
    assert same_trees(arrays_of(whole.state), arrays_of(resumed.state))
    for name in ("last", "best"):
        first, second = (
            open_checkpoint(tmp_path / run / "checkpoints" / name) for run in ("whole", "killed")
        )
        assert first.progress == second.progress
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
    assert run_here(tmp_path, **settings).step == 12


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    yield mount
    # Lazily: the log records that pytest keeps hold the file of the events open.
    subprocess.run(["umount", "--lazy", str(mount)], check=True)


def test_really_full_disk(small_disk: Path) -> None:
    settings = {"save_every_n_steps": 2, "check_val_every_n_epoch": 0}
    run_here(small_disk / "run", **settings, max_steps=2)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(b"x" * 10_000_000)
    with pytest.raises(CheckpointError, match="no space is left on the disk") as caught:
        run_here(small_disk / "run", **settings, max_steps=6)
    assert "step_2" in str(caught.value)
    assert step_folders(small_disk / "run") == ["step_2"]
    filler.unlink()
    assert run_here(small_disk / "run", **settings, max_steps=6).step == 6


def test_four_devices_are_one_and_resume_on_two(tmp_path: Path) -> None:
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    process = subprocess.run(
        [sys.executable, str(HERE / "toy_devices.py"), str(tmp_path / "run")],
        env=ENVIRONMENT | flags,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert process.returncode == 0, process.stderr
    assert "4 x cpu" in process.stdout
    assert "8 crystals a step (2 a device)" in process.stdout
    one = fit(toy_stage(), FitConfig(max_steps=6, ema_decay=0.9), run_dir=tmp_path / "one")
    checkpoint = open_checkpoint(tmp_path / "run" / "checkpoints" / "last")
    assert checkpoint.step == 6
    for name, params in (("params", one.state.params), ("ema", one.state.ema_params)):
        saved = checkpoint.restore(name, params)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), saved, params)


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
            assert host.returncode == 0, output
    finally:
        for host in hosts:
            host.kill()
    assert re.search(r"^4 x cpu \(\d+ cores\) on 2 hosts, f32, 8 crystals a step", output, re.M)
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
