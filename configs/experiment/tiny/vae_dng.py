r"""A small VAE for de novo generation, minutes on a CPU.

    python -m chemeleon2_jax.train --config=configs/train_vae.py:tiny/vae_dng
    python -m chemeleon2_jax.train --config=configs/train_vae.py:tiny/vae_dng \
        --config.data.data_dir=<folder with train.csv, val.csv and test.csv>

Two minutes on two cores. On the embedded crystals 80 % of 128 validation crystals then match at
tolerances of 0.3, 0.5 and 10 degrees, and 30 % at StructureMatcher's defaults.
"""

from ml_collections import ConfigDict

TASK = "train_vae"


def update(config: ConfigDict) -> None:
    """Change the base config."""
    config.data.name = "prototypes"
    config.packing.max_shapes = 3
    config.trainer.max_epochs = 0
    # Small batches: here many updates are worth more than precise gradients.
    config.data.batch_size = 64
    config.trainer.max_steps = 1200
    config.trainer.check_val_every_n_epoch = 10
    config.trainer.save_every_n_steps = 300
    config.trainer.log_every_n_steps = 50
    config.trainer.gradient_clip_val = 1.0
    config.callbacks.early_stopping.patience = 0

    sizes = {"d_model": 128, "nhead": 4, "dim_feedforward": 512, "num_layers": 3}
    config.vae_module.encoder.update(sizes)
    config.vae_module.decoder.update(sizes)
    config.vae_module.match_rate.num_samples = 128
    config.vae_module.optimizer.lr = 1e-3
    config.vae_module.scheduler.name = "cosine"
    config.logger.wandb.name = "tiny_vae_dng"
    config.logger.wandb.tags = "vae,dng,tiny"
