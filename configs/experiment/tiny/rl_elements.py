r"""Fine-tune a small diffusion model towards crystals of allowed elements, minutes on a CPU.

    python -m chemeleon2_jax.train --config=configs/train_rl.py:tiny/rl_elements \
        --config.rl_module.ldm_ckpt_path=logs/train_ldm/runs/<run of tiny/ldm_null> \
        --config.rl_module.reward_fn.allowed_elements.required=O

The reward is 1 for crystals with all required and only allowed elements, else 0.
"""

from ml_collections import ConfigDict

from configs.experiment.tiny import rl_density

TASK = "train_rl"


def update(config: ConfigDict) -> None:
    """Change the base config."""
    rl_density.small_rollouts(config)
    config.rl_module.reward_fn.components = "allowed_elements"
    config.rl_module.reward_fn.allowed_elements.required = "O"
    config.rl_module.reward_fn.require = "covalent"
    config.logger.wandb.name = "tiny_rl_elements"
    config.logger.wandb.tags = "rl,elements,tiny"
