r"""Fine-tune a small diffusion model towards a predicted property, minutes on a CPU.

    python -m chemeleon2_jax.train --config=configs/train_rl.py:tiny/rl_predictor \
        --config.rl_module.ldm_ckpt_path=logs/train_ldm/runs/<run of tiny/ldm_null> \
        --config.rl_module.reward_fn.predictor.ckpt_path=logs/train_predictor/runs/<run> \
        --config.rl_module.reward_fn.predictor.target_value=6.0

The reward is minus the squared distance from the target, in the unit of the property; without a
target it is the property itself.
"""

from ml_collections import ConfigDict

from configs.experiment.tiny import rl_density

TASK = "train_rl"


def update(config: ConfigDict) -> None:
    """Change the base config."""
    rl_density.small_rollouts(config)
    config.rl_module.reward_fn.components = "predictor"
    config.rl_module.reward_fn.require = "covalent"
    config.logger.wandb.name = "tiny_rl_predictor"
    config.logger.wandb.tags = "rl,predictor,tiny"
