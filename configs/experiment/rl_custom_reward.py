r"""Fine-tune a published model towards a reward of your own.

    python -m chemeleon2_jax.train --config=configs/train_rl.py:rl_custom_reward \
        --config.rl_module.reward_fn.custom.function=my_module:reward

The function takes a list of pymatgen Structures and returns a float for each; the one in this file
is an example.
"""

from ml_collections import ConfigDict

from configs.experiment.mp_20 import rl_dng

TASK = "train_rl"


def update(config: ConfigDict) -> None:
    """Change the base config."""
    rl_dng.groups_of_64(config)
    config.rl_module.ldm_ckpt_path = "alex_mp_20_ldm_rl"
    config.rl_module.reward_fn.components = "custom"
    config.rl_module.reward_fn.require = "covalent"
    config.rl_module.reward_fn.custom.function = "chemeleon2_jax.rewards.geometry:atomic_density"
    config.logger.wandb.name = "rl_custom_reward"
    config.logger.wandb.tags = "rl,custom"
