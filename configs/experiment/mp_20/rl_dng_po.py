r"""As `rl_dng`, by plain policy gradient: 320 prompts per rollout, one crystal of each.

    python -m chemeleon2_jax.train --config=configs/train_rl.py:mp_20/rl_dng_po \
        --config.rl_module.reward_fn.energy.hull=<file of entries>
"""

from ml_collections import ConfigDict

TASK = "train_rl"


def update(config: ConfigDict) -> None:
    """Change the base config."""
    config.data.batch_size = 320
    config.rl_module.rl_configs.num_group_samples = 1
    config.rl_module.rl_configs.group_reward_norm = False
    config.logger.wandb.name = "rl_dng_po"
    config.logger.wandb.tags = "rl,dng,policy_gradient"
