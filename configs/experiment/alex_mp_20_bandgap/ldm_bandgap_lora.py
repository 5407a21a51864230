r"""Latent diffusion conditioned on the band gap (eV, DFT), by adapters of published weights.

    python -m chemeleon2_jax.train \
        --config=configs/train_ldm.py:alex_mp_20_bandgap/ldm_bandgap_lora

As `ldm_bandgap`, but only adapters and condition embeddings are trained, without dropout before the
adapters.
"""

from ml_collections import ConfigDict

from configs.experiment.alex_mp_20_bandgap import ldm_bandgap

TASK = "train_ldm"


def update(config: ConfigDict) -> None:
    """Change the base config."""
    ldm_bandgap.update(config)
    config.ldm_module.lora_configs.r = 16
    config.ldm_module.lora_configs.lora_alpha = 32.0
    config.logger.wandb.name = "ldm_bandgap_lora"
    config.logger.wandb.tags = "ldm,dng,condition,finetune,dft_band_gap,lora"
