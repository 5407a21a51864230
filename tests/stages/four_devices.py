"""Trains, validates and generates on 1 and on 4 devices in one process, and writes the numbers.

Usage: four_devices.py OUTPUT DATA_DIR VAE_RUN LDM_RUN. Writes OUTPUT/<what>_<devices>.npz.
"""

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from chemeleon2_jax.diffusion.samplers import make_sampler
from chemeleon2_jax.inference.generator import Generator
from chemeleon2_jax.pretrained.loading import ldm_of, open_model
from chemeleon2_jax.runs.config import fit_config
from chemeleon2_jax.stages import build
from chemeleon2_jax.training.parallel import make_mesh, replicate, shard_batch
from chemeleon2_jax.training.state import init_state
from chemeleon2_jax.training.step import Updater, make_train_step
from tests.tiny import RL_SPEC, TINY_RL, ldm_config, make_config, numbers, vae_config

STEPS = 3
SIZES = [2, 5, 8, 3, 20, 11, 1] * 4  # 200 atoms: rows for all devices


def train(config: ConfigDict, num_devices: int) -> dict[str, Any]:
    """Train a few steps; return losses, parameters and a validation."""
    config.trainer.num_devices = num_devices
    settings, stage, mesh = fit_config(config), build(config), make_mesh(num_devices)
    updater = Updater.from_config(settings, total_steps=STEPS)
    init = stage.init_params
    state = init_state(init, updater.tx, seed=0, ema=settings.ema_decay > 0, mesh=mesh)
    if stage.make_step is None:
        step = make_train_step(stage.loss_fn, updater, mesh=mesh)
    else:
        step = stage.make_step(updater, mesh)
    frozen, metrics = replicate(stage.frozen, mesh), []
    for index in range(STEPS):
        arrays = shard_batch(stage.batches.batch(index).arrays, mesh)
        for array in jax.tree.leaves(arrays):
            assert len(array.sharding.device_set) == num_devices
        state, values, *_ = step(state, frozen, arrays)
        names = [name for name in sorted(values) if not name.endswith("seconds")]
        metrics.append([float(values[name]) for name in names])
    params = state.params if state.ema_params is None else state.ema_params
    assert stage.validate is not None
    validation = stage.validate(params, stage.validation_state).values
    return {
        "metrics": metrics,
        "params": numbers(state.params),
        "start": numbers(init),
        "validation": [validation[name] for name in sorted(validation)],
    }


def rl_config(data: Path, ldm: Path) -> ConfigDict:
    """Fine-tuning with rewards, in two chunks a mini-batch."""
    overrides = {
        **TINY_RL,
        "data.data_dir": str(data),
        "data.batch_size": 8,
        "rl_module.ldm_ckpt_path": str(ldm),
        "rl_module.reward_fn.components": "custom",
        "rl_module.reward_fn.require": "",
        "rl_module.reward_fn.custom.function": "tests.rewards.user_rewards:number_of_sites",
        "rl_module.reward_fn.custom.floor": "0",
        "rl_module.sampling_configs.chunk_size": 16,
        "rl_module.optimizer.eps": 1e-3,
    }
    return make_config(RL_SPEC, overrides)


def generate(run: Path, num_devices: int) -> dict[str, Any]:
    """Generate crystals; return them and their latents in flat arrays."""
    generator = Generator(
        ldm_of(open_model(run)), make_sampler(steps=5), mesh=make_mesh(num_devices)
    )
    generated = generator.generate(SIZES, seed=3)
    types, frac, lattices = zip(*generated.crystals, strict=True)
    return {
        "types": np.concatenate(types),
        "frac": np.concatenate(frac),
        "lattices": np.stack(lattices),
        "latents": np.concatenate(generated.latents),
    }


def main(output: Path, data: Path, vae: Path, ldm: Path) -> None:
    """Do everything on 1 and on 4 devices."""
    assert jax.device_count() == 4
    # With a small epsilon Adam divides float error by itself where a gradient is zero.
    smooth, cspnet = {"optimizer.eps": 1e-3}, {"encoder.name": "cspnet"}
    encoded = {"cache_posteriors": False}  # at every step
    composition = {"condition_module.condition_type": "composition:composition"}
    batch = {"batch_size": 40}  # 170 atoms
    work = {
        "vae": lambda n: train(vae_config(data, data=batch, vae_module=smooth), n),
        "cspnet": lambda n: train(vae_config(data, data=batch, vae_module=smooth | cspnet), n),
        "ldm": lambda n: train(ldm_config(data, vae, data=batch, ldm_module=smooth), n),
        "conditional": lambda n: train(
            ldm_config(data, vae, data=batch, ldm_module=smooth | composition | encoded), n
        ),
        "rl": lambda n: train(rl_config(data, ldm), n),
        "generate": lambda n: generate(ldm, n),
    }
    for name, do in work.items():
        for num_devices in (1, 4):
            np.savez(output / f"{name}_{num_devices}.npz", **do(num_devices))


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
