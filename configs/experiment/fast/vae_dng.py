r"""A small VAE whose latents a diffusion model learns easily, minutes on a CPU.

    python -m chemeleon2_jax.train --config=configs/train_vae.py:fast/vae_dng
    python -m chemeleon2_jax.train --config=configs/train_vae.py:fast/vae_dng \
        --config.data.data_dir=<folder with train.csv, val.csv and test.csv>

Two differences to tiny/vae_dng make the decoder tolerate the errors of a diffusion model. A KL
weight of 1e-2 leaves 5 to 12 nats of information per atom, not 45. Crystals keep their orientation
and origin: neither the decoder nor the diffusion model needs to know them all.
"""

from ml_collections import ConfigDict

from configs.experiment.tiny import vae_dng

TASK = "train_vae"


def update(config: ConfigDict) -> None:
    """Change the base config."""
    vae_dng.update(config)
    config.data.name = "structure-types"
    config.trainer.max_steps = 2000
    config.trainer.check_val_every_n_epoch = 20
    config.vae_module.loss_weights.kl = 1e-2
    config.vae_module.tolerance.num_samples = 32
    config.vae_module.tolerance.posterior_scale = 0.5  # as in fast/ldm_flow
    config.vae_module.augmentation.rotate = False
    config.vae_module.augmentation.translate = False
    config.logger.wandb.name = "fast_vae_dng"
    config.logger.wandb.tags = "vae,dng,fast"
