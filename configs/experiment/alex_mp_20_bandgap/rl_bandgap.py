r"""Fine-tune the published model of Alex-MP-20 towards a predicted band gap of 3 eV.

    python -m chemeleon2_jax.train --config=configs/train_rl.py:alex_mp_20_bandgap/rl_bandgap \
        --config.rl_module.reward_fn.predictor.ckpt_path=logs/train_predictor/runs/<run>

The predictor is that of `alex_mp_20_bandgap/predictor_dft_band_gap`.
"""

from ml_collections import ConfigDict

from configs.experiment.mp_20 import rl_bandgap

TASK = "train_rl"


def update(config: ConfigDict) -> None:
    """Change the base config."""
    rl_bandgap.update(config)
    config.data.name = "alex_mp_20_bandgap"
    config.data.inherit = False  # others lack the band gap
    config.data.target_condition = "dft_band_gap"
    config.rl_module.ldm_ckpt_path = "alex_mp_20_ldm_rl"
    config.rl_module.rl_configs.clip_ratio = 1e-4
    config.rl_module.reward_fn.reference_dataset = "alex-mp-20"
    config.callbacks.early_stopping.patience = 10
