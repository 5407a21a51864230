"""VAE for de novo generation on MP-20.

    python -m chemeleon2_jax.train --config=configs/train_vae.py:mp_20/vae_dng

Settings of the published model.
"""

from ml_collections import ConfigDict

TASK = "train_vae"


def update(config: ConfigDict) -> None:
    """Change the base config."""
    config.trainer.max_epochs = 10000
    config.logger.wandb.name = "vae_dng"
    config.logger.wandb.tags = "vae,dng"
