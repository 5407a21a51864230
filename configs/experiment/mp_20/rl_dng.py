r"""Fine-tune the published model of MP-20 for new, stable and diverse crystals (GRPO).

    python -m chemeleon2_jax.train --config=configs/train_rl.py:mp_20/rl_dng \
        --config.rl_module.reward_fn.energy.hull=<file of entries>

Five prompts per rollout, 64 crystals of each.
"""

from ml_collections import ConfigDict

TASK = "train_rl"


def update(config: ConfigDict) -> None:
    """Change the base config."""
    groups_of_64(config)
    config.logger.wandb.name = "rl_dng_grpo"
    config.logger.wandb.tags = "rl,dng,grpo"


def groups_of_64(config: ConfigDict) -> None:
    """Groups of the published runs."""
    config.data.batch_size = 5
    config.rl_module.rl_configs.num_group_samples = 64
    config.rl_module.rl_configs.group_reward_norm = True
