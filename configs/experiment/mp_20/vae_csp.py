"""VAE for crystal structure prediction on MP-20: atom types are an input.

    python -m chemeleon2_jax.train --config=configs/train_vae.py:mp_20/vae_csp

The model predicts cell and positions for given atom types.
"""

from ml_collections import ConfigDict

TASK = "train_vae"


def update(config: ConfigDict) -> None:
    """Change the base config."""
    config.vae_module.atom_type_predict = False
    config.vae_module.loss_weights.atom_types = 0.0
    config.logger.wandb.name = "vae_csp"
    config.logger.wandb.tags = "vae,csp"
