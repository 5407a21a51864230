r"""Predictor of the band gap (eV, DFT) on Alex-MP-20.

    python -m chemeleon2_jax.train \
        --config=configs/train_predictor.py:alex_mp_20_bandgap/predictor_dft_band_gap
"""

from ml_collections import ConfigDict

TASK = "train_predictor"


def update(config: ConfigDict) -> None:
    """Change the base config."""
    config.data.name = "alex_mp_20_bandgap"
    config.data.inherit = False  # others lack the band gap
    config.data.target_condition = "dft_band_gap"
    config.predictor_module.vae_ckpt_path = "alex_mp_20_vae"
    config.predictor_module.target_conditions = "dft_band_gap:0.797:1.408"
    config.logger.wandb.name = "predictor_dft_band_gap"
    config.logger.wandb.tags = "vae,predictor,dft_band_gap"
