"""Trains the toy stage on two processes with two devices each, as on two hosts.

Usage: toy_hosts.py PROCESS PORT RUN_DIR. Trains 2 steps, resumes, and goes on until a SIGTERM.
"""

import dataclasses
import logging
import sys
from pathlib import Path

import jax
from toy_stage import ToyBatches, toy_stage

from chemeleon2_jax.rows.batch import Batch
from chemeleon2_jax.training.config import FitConfig
from chemeleon2_jax.training.loop import fit


@dataclasses.dataclass(frozen=True)
class LocalBatches(ToyBatches):
    """The rows of this process."""

    def batch(self, step: int) -> Batch:
        batch = super().batch(step)
        count, index = jax.process_count(), jax.process_index()

        def own(array):
            rows = len(array) // count if array.ndim else 0
            return array[index * rows : (index + 1) * rows] if array.ndim else array

        return dataclasses.replace(batch, arrays=jax.tree.map(own, batch.arrays))


def main(process: int, port: int, run_dir: Path) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
    assert jax.device_count() == 4
    for steps, seconds in ((2, 0.0), (2000, 0.05)):
        config = FitConfig(max_steps=steps, ema_decay=0.9, check_val_every_n_epoch=0)
        stage = toy_stage(batches=LocalBatches(seconds=seconds))
        result = fit(stage, config, run_dir=run_dir, resume=True)
    print("status", result.status, "step", result.step, flush=True)
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
