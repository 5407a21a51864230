r"""Fine-tune the published model of Alex-MP-20 for new, stable and diverse crystals (GRPO).

    python -m chemeleon2_jax.train --config=configs/train_rl.py:alex_mp_20/rl_dng \
        --config.rl_module.reward_fn.energy.hull=<file of entries>

Prompts come from Alex-MP-20; novelty and diversity are measured against MP-20.
"""

from ml_collections import ConfigDict

from configs.experiment.mp_20 import rl_dng

TASK = "train_rl"


def update(config: ConfigDict) -> None:
    """Change the base config."""
    rl_dng.update(config)
    config.data.name = "alex-mp-20"
    config.rl_module.ldm_ckpt_path = "alex_mp_20_ldm_base"
    config.rl_module.reward_fn.reference_dataset = "mp-20"
