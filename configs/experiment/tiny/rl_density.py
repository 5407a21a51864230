r"""Fine-tune a small diffusion model towards a density, minutes on a CPU.

    python -m chemeleon2_jax.train --config=configs/train_rl.py:tiny/rl_density \
        --config.rl_module.ldm_ckpt_path=logs/train_ldm/runs/<run of tiny/ldm_null>

The reward is minus the distance from 0.03 atoms per cubic angstrom, a low density. With a target of
0 it is the density itself. Collapsed cells have the highest densities; with these flags, crystals
with atoms closer than bonds get 0:

    python -m chemeleon2_jax.train --config=configs/train_rl.py:tiny/rl_density \
        --config.rl_module.ldm_ckpt_path=logs/train_ldm/runs/<run> \
        --config.data.data_dir=<folder with train.csv, val.csv and test.csv> \
        --config.rl_module.reward_fn.atomic_density.target=0 \
        --config.rl_module.reward_fn.atomic_density.floor=0 \
        --config.rl_module.reward_fn.require=covalent
"""

from ml_collections import ConfigDict

TASK = "train_rl"


def update(config: ConfigDict) -> None:
    """Change the base config."""
    small_rollouts(config)
    config.rl_module.reward_fn.components = "atomic_density"
    config.rl_module.reward_fn.atomic_density.target = 0.03
    config.rl_module.reward_fn.atomic_density.floor = "-0.1"
    config.logger.wandb.name = "tiny_rl_density"
    config.logger.wandb.tags = "rl,density,tiny"


def small_rollouts(config: ConfigDict) -> None:
    """Rollouts of a small model, seconds each on a CPU; shared by the tiny experiments."""
    config.data.name = "prototypes"
    config.data.batch_size = 16
    config.packing.max_shapes = 3
    config.trainer.max_steps = 30
    config.trainer.check_val_every_n_steps = 10

    config.rl_module.ldm_ckpt_path = ""
    config.rl_module.rl_configs.num_group_samples = 16
    config.rl_module.rl_configs.group_reward_norm = True
    config.rl_module.sampling_configs.sampling_steps = 20
    # A small model, trained at 2e-3, takes larger steps than the published one. Without a warm-up
    # Adam's first updates, all of the same size, leave the clipping range.
    config.rl_module.optimizer.lr = 5e-4
    config.rl_module.scheduler.name = "warmup_linear"
    config.rl_module.scheduler.warmup_steps = 10
