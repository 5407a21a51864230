r"""As fast/vae_dng, for structure prediction: the decoder is given the atom types.

python -m chemeleon2_jax.train --config=configs/train_vae.py:fast/vae_csp
"""

from ml_collections import ConfigDict

from configs.experiment.fast import vae_dng

TASK = "train_vae"


def update(config: ConfigDict) -> None:
    """Change the base config."""
    vae_dng.update(config)
    config.vae_module.atom_type_predict = False
    config.vae_module.loss_weights.atom_types = 0.0
    config.logger.wandb.name = "fast_vae_csp"
    config.logger.wandb.tags = "vae,csp,fast"
