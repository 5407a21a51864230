r"""Latent diffusion conditioned on the band gap (eV, DFT), from the published weights.

    python -m chemeleon2_jax.train \
        --config=configs/train_ldm.py:alex_mp_20_bandgap/ldm_bandgap

All weights are trained.
"""

from ml_collections import ConfigDict

TASK = "train_ldm"


def update(config: ConfigDict) -> None:
    """Change the base config."""
    config.data.name = "alex_mp_20_bandgap"
    config.data.inherit = False  # others lack the band gap
    config.data.batch_size = 128
    config.trainer.max_epochs = 1000
    config.ldm_module.ldm_ckpt_path = "alex_mp_20_ldm_rl"
    config.ldm_module.diffusion.variance_layout = "interleaved"  # as the published weights
    config.ldm_module.condition_module.condition_type = "dft_band_gap:float"
    config.ldm_module.condition_module.stats = "dft_band_gap:0.797:1.408"
    config.logger.wandb.name = "ldm_bandgap"
    config.logger.wandb.tags = "ldm,dng,condition,finetune,dft_band_gap"
