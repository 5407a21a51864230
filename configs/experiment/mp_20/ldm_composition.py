r"""Latent diffusion on MP-20 conditioned on the composition.

    python -m chemeleon2_jax.train --config=configs/train_ldm.py:mp_20/ldm_composition

To sample: `python -m chemeleon2_jax.sample --model=<run> --condition=composition=Ba1Cr1F6`.
"""

from ml_collections import ConfigDict

TASK = "train_ldm"


def update(config: ConfigDict) -> None:
    """Change the base config."""
    config.ldm_module.vae_ckpt_path = "mp_20_vae"
    config.ldm_module.condition_module.condition_type = "composition:composition"
    config.logger.wandb.name = "ldm_composition"
    config.logger.wandb.tags = "ldm,dng,composition_condition"
