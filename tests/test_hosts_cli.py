"""Two processes with two devices each, as on two hosts, against one process with one device."""

from __future__ import annotations

import csv
import gzip
import json
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from chemeleon2_jax.training.checkpoint_reader import complete_steps, open_checkpoint
from tests.tiny import (
    ROOT,
    TINY_VAE,
    VAE_SPEC,
    as_flags,
    by_name,
    environment,
    make_crystals,
    only_run,
    run_script,
)

SCRIPT = ROOT / "tests" / "two_hosts.py"
TWO_DEVICES = "--xla_force_host_platform_device_count=2"


def start_hosts(arguments, *, flags_of=lambda process: ()):
    """Start two processes of one run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = environment(XLA_FLAGS=TWO_DEVICES, JAX_DISABLE_MOST_OPTIMIZATIONS="1")
    joining = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    return [
        subprocess.Popen(
            [sys.executable, *arguments, *joining, f"--process_id={i}", *flags_of(i)],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]


def end_of(hosts):
    """Exit codes and outputs."""
    try:
        outputs = [host.communicate(timeout=200)[0] for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    return [host.returncode for host in hosts], outputs


def train_command(log_dir, data, **values):
    flags = {**TINY_VAE, "data.data_dir": data, "paths.log_dir": log_dir, **values}
    return ["-m", "chemeleon2_jax.train", f"--config={VAE_SPEC}", *as_flags(flags)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The tiny crystals with their density."""
    folder = tmp_path_factory.mktemp("densities")
    for split, crystals in (("train", make_crystals()), ("val", make_crystals()[2::6])):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["material_id", "cif", "density"])
            for i, crystal in enumerate(crystals):
                writer.writerow([f"{split}-{i}", crystal.to(fmt="cif"), float(crystal.density)])
    return folder


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory, data, tiny_vae, tiny_ldm):
    """Folders with the runs and samples of one process, and of two."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    sources = [str(path) for path in (data, tiny_vae.path, tiny_ldm.path)]
    hosts = start_hosts([str(SCRIPT), str(two), *sources])
    alone = run_script(SCRIPT, str(one), *sources, JAX_DISABLE_MOST_OPTIMIZATIONS="1")
    codes, outputs = end_of(hosts)
    assert alone.code == 0, alone.output
    assert codes == [0, 0], "\n".join(outputs)
    return one, two


@pytest.mark.parametrize("stage", ["vae", "ldm", "predictor", "rl"])
def test_two_hosts_train_as_one(one_and_two, stage):
    runs = [only_run_of(folder, stage) for folder in one_and_two]
    one, two = (open_checkpoint(run / "checkpoints" / "last") for run in runs)
    assert one.step == two.step == 2
    for name, value in one.progress.values.items():
        assert two.progress.values[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    for item in one.items:
        arrays, expected = (by_name(checkpoint.restore(item)) for checkpoint in (two, one))
        for name, array in expected.items():
            np.testing.assert_allclose(arrays[name], array, rtol=1e-5, atol=1e-5, err_msg=name)


def only_run_of(folder, stage):
    (run,) = (folder / "logs" / f"train_{stage}" / "runs").iterdir()
    return run


def test_two_hosts_sample_the_same_crystals(one_and_two):
    one, two = (
        json.loads(
            gzip.decompress((folder / "samples" / "generated_structures.json.gz").read_bytes())
        )
        for folder in one_and_two
    )
    reports = [json.loads((folder / "samples" / "run.json").read_text()) for folder in one_and_two]
    for key in ("indices", "num_atoms", "num_built", "num_samples"):
        assert reports[0][key] == reports[1][key]
    assert len(one) == len(two) > 0
    for first, second in zip(one, two, strict=True):
        cells = [np.array(s["lattice"]["matrix"]) for s in (first, second)]
        np.testing.assert_allclose(cells[1], cells[0], rtol=1e-5, atol=1e-5)
        assert [site["species"] for site in first["sites"]] == [
            site["species"] for site in second["sites"]
        ]


def test_another_value_of_a_flag_is_named(tmp_path, data):
    hosts = start_hosts(
        train_command(tmp_path / "logs", data), flags_of=lambda i: [f"--config.seed={i}"]
    )
    codes, outputs = end_of(hosts)
    assert codes == [1, 1], outputs
    for output in outputs:
        assert "the hosts do not have the same value of seed: it is 0 in process 0 on" in output
        assert "and 1 in process 1 on" in output
        assert "Traceback" not in output
    assert not list(tmp_path.glob("logs/*/runs/*"))


def test_a_missing_process_is_one_error_in_time(tmp_path, data):
    start = time.monotonic()
    hosts = start_hosts(
        train_command(tmp_path / "logs", data), flags_of=lambda i: ["--join_timeout=3"]
    )
    hosts[1].kill()
    codes, outputs = end_of(hosts)
    assert codes[0] == 1
    assert "error: process 0 waited 3 s for the 2 processes to meet at 127.0.0.1:" in outputs[0]
    assert "Check failure" not in outputs[0]
    assert time.monotonic() - start < 60


def test_a_killed_host_ends_the_other_and_one_process_goes_on(tmp_path, data):
    values = {"trainer.max_steps": 100000, "trainer.save_every_n_steps": 5}
    hosts = start_hosts(train_command(tmp_path / "logs", data, **values))
    deadline = time.monotonic() + 150
    while not any(map(complete_steps, tmp_path.glob("logs/*/runs/*/checkpoints"))):
        assert hosts[0].poll() is None, hosts[0].communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    hosts[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    codes, outputs = end_of(hosts)
    assert time.monotonic() - killed < 60
    assert codes[0] not in (0, None)
    assert re.search(r"process 1 on \S+ gave no sign of life", outputs[0]), outputs[0]
    run = only_run(tmp_path / "logs")
    names = {path.name for path in run.iterdir() if "tfevents" not in path.name}
    assert names == {"config.json", "train.log", "train.1.log", "checkpoints"}
    assert len(list(run.glob("*tfevents*"))) == 1
    assert "4 x cpu" in (run / "train.log").read_text()
    assert "on 2 hosts" in (run / "train.1.log").read_text()
    last = max(complete_steps(run / "checkpoints"))
    command = ["-m", "chemeleon2_jax.train", f"--config={VAE_SPEC}"]
    flags = as_flags({"resume_from": run, "trainer.max_steps": last + 1})
    env = environment(JAX_DISABLE_MOST_OPTIMIZATIONS="1")
    alone = subprocess.run(
        [sys.executable, *command, *flags], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert alone.returncode == 0, alone.stderr
    assert f"resumed at step {last} from" in alone.stderr
