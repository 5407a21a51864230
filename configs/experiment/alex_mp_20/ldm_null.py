r"""Unconditional latent diffusion on Alex-MP-20.

    python -m chemeleon2_jax.train --config=configs/train_ldm.py:alex_mp_20/ldm_null \
        --config.ldm_module.vae_ckpt_path=logs/train_vae/runs/<run of alex_mp_20/vae_dng>
"""

from ml_collections import ConfigDict

TASK = "train_ldm"


def update(config: ConfigDict) -> None:
    """Change the base config."""
    config.data.name = "alex-mp-20"
    config.ldm_module.vae_ckpt_path = "alex_mp_20_vae"
    config.logger.wandb.name = "ldm_dng"
    config.logger.wandb.tags = "ldm,dng,null_condition"
