"""Trains the toy stage on 4 devices, and on 1; then goes on with the 4-device run on 1 and 2."""

import sys
from pathlib import Path

import jax
import numpy as np
from toy_stage import toy_stage

from chemeleon2_jax.training.config import FitConfig
from chemeleon2_jax.training.loop import fit

run_dir = Path(sys.argv[1])
assert jax.device_count() == 4
four = fit(toy_stage(), FitConfig(max_steps=4, ema_decay=0.9), run_dir=run_dir / "4")
assert four.state.params["out"].sharding.device_set == set(jax.devices())
one = fit(toy_stage(), FitConfig(max_steps=4, num_devices=1, ema_decay=0.9), run_dir=run_dir / "1")
assert len(one.state.params["out"].sharding.device_set) == 1
for devices, steps in ((1, 6), (2, 8)):
    config = FitConfig(max_steps=steps, num_devices=devices, ema_decay=0.9)
    rest = fit(toy_stage(), config, run_dir=run_dir / "4", resume=True)
    again = fit(toy_stage(), config, run_dir=run_dir / "1", resume=True)
    for a, b in zip(
        jax.tree.leaves(rest.state.params), jax.tree.leaves(again.state.params), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
