"""A small VAE for crystal structure prediction: atom types are an input.

python -m chemeleon2_jax.train --config=configs/train_vae.py:tiny/vae_csp
"""

from ml_collections import ConfigDict

from configs.experiment.tiny import vae_dng

TASK = "train_vae"


def update(config: ConfigDict) -> None:
    """Change the base config."""
    vae_dng.update(config)
    config.vae_module.atom_type_predict = False
    config.vae_module.loss_weights.atom_types = 0.0
    config.logger.wandb.name = "tiny_vae_csp"
    config.logger.wandb.tags = "vae,csp,tiny"
