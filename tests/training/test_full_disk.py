"""A disk that is full, or read-only: a mount of a few kilobytes, since nothing else fails alike."""

import os
import shutil
import subprocess
import sys

import pytest

MOUNT = 'mount -t tmpfs -o size={size} tmpfs {folder} && cd {folder} && "$@"'
WRITE = """
import sys
import numpy as np
from pathlib import Path
from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.training.checkpoint_writer import CheckpointWriter, write_checkpoint
from chemeleon2_jax.training.progress import Progress
small = {f"a{i}": np.zeros(9, np.float32) for i in range(9)}
large = {f"a{i}": np.random.default_rng(i).random(2000) for i in range(99)}
try:
    write_checkpoint(Path("one"), items={"params": large}, meta={})
except CheckpointError as error:
    print(f"error: {error}", file=sys.stderr)
with CheckpointWriter(Path("run"), monitor="loss", mode="min") as writer:
    writer.save(Progress(step=1), items={"params": small}, meta={"a": 1})
    try:
        writer.save(Progress(step=2), items={"params": large}, meta={})
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
    assert writer.last_step == 1 and "params" in writer.last().items
"""


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs the command unshare")
def test_one_line_and_what_was_whole_stays_whole(tmp_path, repository_dir):
    command = ["unshare", "-rm", "sh", "-c", MOUNT.format(size="600k", folder=tmp_path), "sh"]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(repository_dir)}
    done = subprocess.run(
        [*command, sys.executable, "-c", WRITE],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    outside, in_run = done.stderr.splitlines()
    assert outside == (
        f"error: the checkpoint could not be written to {tmp_path}/one: no space is left on the "
        "disk"
    )
    assert "could not be saved at step 2" in in_run
    assert "no space is left on the disk; the last good checkpoint is" in in_run
