"""Trains the toy stage on 4 devices, and resumes the run on 2."""

import logging
import sys
from pathlib import Path

import jax
from toy_stage import toy_stage

from chemeleon2_jax.training.config import FitConfig
from chemeleon2_jax.training.loop import fit

logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
run_dir = Path(sys.argv[1])
assert jax.device_count() == 4
four = fit(toy_stage(), FitConfig(max_steps=4, ema_decay=0.9), run_dir=run_dir)
assert four.state.params["out"].sharding.device_set == set(jax.devices())
config = FitConfig(max_steps=6, num_devices=2, ema_decay=0.9)
two = fit(toy_stage(), config, run_dir=run_dir, resume=True)
assert len(two.state.params["out"].sharding.device_set) == 2
