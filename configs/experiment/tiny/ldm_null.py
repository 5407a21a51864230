r"""A small unconditional latent diffusion model, minutes on a CPU.

    python -m chemeleon2_jax.train --config=configs/train_ldm.py:tiny/ldm_null \
        --config.ldm_module.vae_ckpt_path=logs/train_vae/runs/<run of tiny/vae_dng>

A minute and a half on two cores. On the embedded crystals the validation loss is then 0.196; 89 %
of 64 sampled crystals were valid, but only 12 % had all pairs of atoms at bonding distances or
farther: a demonstration of the pipeline, not of the method.
"""

from ml_collections import ConfigDict

TASK = "train_ldm"


def update(config: ConfigDict) -> None:
    """Change the base config."""
    config.data.name = "prototypes"
    config.data.batch_size = 64
    config.packing.max_shapes = 3
    config.trainer.max_epochs = 0
    config.trainer.max_steps = 1200
    config.trainer.check_val_every_n_epoch = 20
    config.trainer.save_every_n_steps = 400
    config.trainer.log_every_n_steps = 50
    config.trainer.gradient_clip_val = 1.0
    config.callbacks.early_stopping.patience = 0

    config.ldm_module.denoiser.size = "custom"
    config.ldm_module.denoiser.hidden_size = 128
    config.ldm_module.denoiser.depth = 4
    config.ldm_module.denoiser.num_heads = 4
    config.ldm_module.optimizer.lr = 2e-3
    config.ldm_module.scheduler.name = "cosine"
    config.logger.wandb.name = "tiny_ldm_null"
    config.logger.wandb.tags = "ldm,dng,null_condition,tiny"
