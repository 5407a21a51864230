"""VAE for de novo generation on Alex-MP-20.

    python -m chemeleon2_jax.train --config=configs/train_vae.py:alex_mp_20/vae_dng

Settings of the published model.
"""

from ml_collections import ConfigDict

TASK = "train_vae"


def update(config: ConfigDict) -> None:
    """Change the base config."""
    config.data.name = "alex-mp-20"
    config.logger.wandb.name = "vae_dng"
    config.logger.wandb.tags = "vae,dng"
