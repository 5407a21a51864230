r"""Fine-tune the published model of MP-20 towards a predicted band gap of 3 eV.

    python -m chemeleon2_jax.train --config=configs/train_rl.py:mp_20/rl_bandgap \
        --config.rl_module.reward_fn.predictor.ckpt_path=logs/train_predictor/runs/<run>

The predictor predicts `dft_band_gap`, as the one of `alex_mp_20_bandgap/predictor_dft_band_gap`.
"""

from ml_collections import ConfigDict

from configs.experiment.mp_20 import rl_dng

TASK = "train_rl"


def update(config: ConfigDict) -> None:
    """Change the base config."""
    rl_dng.groups_of_64(config)
    config.rl_module.ldm_ckpt_path = "mp_20_ldm_rl"
    reward_band_gap(config)
    config.logger.wandb.name = "rl_bandgap"
    config.logger.wandb.tags = "rl,dft_band_gap"


def reward_band_gap(config: ConfigDict) -> None:
    """Reward predicted gaps near 3 eV, clipped at 0, and diverse compositions."""
    rewards = config.rl_module.reward_fn
    rewards.components = "predictor,composition_diversity"
    rewards.predictor.target_name = "dft_band_gap"
    rewards.predictor.target_value = "3.0"
    rewards.predictor.clip_min = "0.0"
    rewards.composition_diversity.weight = 0.5
