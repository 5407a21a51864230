"""Trains the toy stage in a process of its own; the tests kill it, signal it or starve it.

Usage: toy_run.py RUN_DIR JSON, where JSON has settings of `FitConfig` and, under `batches`, of
`StarvingBatches`.
"""

import dataclasses
import json
import logging
import resource
import sys
from pathlib import Path
from typing import Any

from toy_stage import ToyBatches, toy_stage

from chemeleon2_jax.rows.batch import Batch
from chemeleon2_jax.training.config import FitConfig
from chemeleon2_jax.training.loop import fit

SETTINGS: dict[str, Any] = {"ema_decay": 0.9, "gradient_clip_val": 1.0}


@dataclasses.dataclass(frozen=True)
class StarvingBatches(ToyBatches):
    """From the step `file_size_limit_at` on, no file can be written, as on a full disk."""

    file_size_limit_at: int = -1

    def batch(self, step: int) -> Batch:
        if step == self.file_size_limit_at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (16, resource.RLIM_INFINITY))
        return super().batch(step)


def main(run_dir: str, settings: dict[str, Any]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    logging.getLogger("jax").setLevel(logging.WARNING)
    batches = StarvingBatches(**settings.pop("batches", {}))
    config = FitConfig(**SETTINGS, **settings)
    result = fit(toy_stage(batches=batches), config, run_dir=Path(run_dir))
    print("status", result.status, "step", result.step, flush=True)
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], json.loads(sys.argv[2])))
