r"""Unconditional latent diffusion on MP-20.

    python -m chemeleon2_jax.train --config=configs/train_ldm.py:mp_20/ldm_null \
        --config.ldm_module.vae_ckpt_path=logs/train_vae/runs/<run of mp_20/vae_dng>
"""

from ml_collections import ConfigDict

TASK = "train_ldm"


def update(config: ConfigDict) -> None:
    """Change the base config."""
    config.ldm_module.vae_ckpt_path = "mp_20_vae"
    config.logger.wandb.name = "ldm_dng"
    config.logger.wandb.tags = "ldm,dng,null_condition"
