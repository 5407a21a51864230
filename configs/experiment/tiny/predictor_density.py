r"""A predictor of the density (g/cm3) of the embedded crystals, a minute on a CPU.

    python -m chemeleon2_jax.train --config=configs/train_predictor.py:tiny/predictor_density \
        --config.predictor_module.vae_ckpt_path=logs/train_vae/runs/<run of tiny/vae_dng>
"""

from ml_collections import ConfigDict

TASK = "train_predictor"


def update(config: ConfigDict) -> None:
    """Change the base config."""
    config.data.name = "prototypes"
    config.data.target_condition = "density"
    config.packing.max_shapes = 3
    config.trainer.max_epochs = 0
    config.trainer.max_steps = 3000
    config.trainer.check_val_every_n_epoch = 20
    config.callbacks.early_stopping.patience = 0
    config.predictor_module.scheduler.name = "cosine"
    config.logger.wandb.name = "tiny_predictor_density"
    config.logger.wandb.tags = "predictor,density,tiny"
