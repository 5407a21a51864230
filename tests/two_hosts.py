"""Trains every stage and samples, on one process or as one of several, as the commands do.

Usage: two_hosts.py OUTPUT DATA_DIR VAE_RUN LDM_RUN [flags of `runs.joining`]
"""

import sys
from pathlib import Path
from typing import Any

from absl import flags

from chemeleon2_jax import sample, train
from chemeleon2_jax.runs.joining import joined
from tests.stages.four_devices import rl_config
from tests.tiny import ROOT, ldm_config, make_config, vae_config

STEPS = 2
# With a small epsilon Adam divides float error by itself where a gradient is zero.
SMOOTH = {"optimizer.eps": 1e-3}
BATCH = {"batch_size": 40}  # 170 atoms: rows for all devices


def configs(data: Path, vae: Path, ldm: Path) -> list[Any]:
    """A short run of each stage."""
    matched = {**SMOOTH, "match_rate.num_samples": 2}
    drawn = {**SMOOTH, "sampling.num_samples": 3, "sampling.steps": 2}
    predictor = {
        "data.data_dir": str(data),
        "data.batch_size": 40,
        "data.num_workers": 1,
        "data.target_condition": "density",
        "predictor_module.vae_ckpt_path": str(vae),
        "predictor_module.optimizer.eps": 1e-3,
    }
    return [
        vae_config(data, data=BATCH, vae_module=matched),
        ldm_config(data, vae, data=BATCH, ldm_module=drawn),
        make_config(f"{ROOT}/configs/train_predictor.py:tiny/predictor_density", predictor),
        rl_config(data, ldm),
    ]


def main(output: Path, *sources: Path) -> None:
    """Train and sample."""
    with joined():
        for config in configs(*sources):
            config.paths.log_dir = str(output / "logs")
            config.trainer.max_steps = STEPS
            named = {"data.data_dir": config.data.data_dir}
            assert train.train(train.make_plan(config, named)) == 0
        assert sample._run(output / "samples", [], {}) == 0


if __name__ == "__main__":
    paths = [Path(argument) for argument in sys.argv[1:5]]
    flags.FLAGS([sys.argv[0], *sys.argv[5:], f"--model={paths[3]}", "--num_samples=9", "--steps=4"])
    main(*paths)
