r"""Train a predictor of properties on the latents of a trained VAE.

    python -m chemeleon2_jax.train --config=configs/train_predictor.py:tiny/predictor_density \
        --config.predictor_module.vae_ckpt_path=logs/train_vae/runs/<run>
    python -m chemeleon2_jax.train \
        --config=configs/train_predictor.py:alex_mp_20_bandgap/predictor_dft_band_gap

The targets are the columns named in `data.target_condition`.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(experiment: str = "") -> ConfigDict:
    """Return the base config with the changes of an experiment."""
    config = common.base("train_predictor")
    config.data = common.data("mp-20")
    config.packing = common.packing()
    config.trainer = common.trainer(max_epochs=1000)
    config.callbacks = common.callbacks(patience=50)
    config.logger = common.logger()
    config.predictor_module = _predictor_module()
    return common.with_experiment(config, experiment)


def _predictor_module() -> ConfigDict:
    return ConfigDict(
        {
            "vae_ckpt_path": "",  # frozen VAE, or an LDM with its VAE
            # "name:mean:std", comma-separated, in the target's unit; the statistics of other
            # targets are computed from the training set.
            "target_conditions": "",
            "reduce": "mean",  # over the atoms of a crystal; or "sum"
            "use_encoder_features": True,  # besides the latents
            "optimizer": common.optimizer(lr=1e-3),
            "scheduler": common.scheduler(),
        }
    )
