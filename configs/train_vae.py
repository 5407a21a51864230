"""Train the VAE: from crystals to one latent vector per atom, and back.

    python -m chemeleon2_jax.train --config=configs/train_vae.py:mp_20/vae_dng
    python -m chemeleon2_jax.train --config=configs/train_vae.py:mp_20/vae_csp
    python -m chemeleon2_jax.train --config=configs/train_vae.py:tiny/vae_dng

The base values are the published sizes of Chemeleon2: 51.1 million parameters.
"""

from ml_collections import ConfigDict

from chemeleon2_jax.models.encoders.registry import TransformerSizes
from configs import common


def get_config(experiment: str = "") -> ConfigDict:
    """Return the base config with the changes of an experiment."""
    config = common.base("train_vae")
    config.data = common.data("mp-20")
    config.packing = common.packing()
    config.trainer = common.trainer(max_epochs=5000)
    config.callbacks = common.callbacks(patience=10)
    config.logger = common.logger()
    config.vae_module = _vae_module()
    return common.with_experiment(config, experiment)


def _vae_module() -> ConfigDict:
    transformer = {"d_model": 512, "nhead": 8, "dim_feedforward": 2048, "num_layers": 8}
    return ConfigDict(
        {
            "vae_ckpt_path": "",  # initial weights: a run, a checkpoint folder, a .ckpt, a key
            "latent_dim": 8,
            # Or "cspnet", which reads num_freqs and layer_norm, but no heads and feedforward.
            "encoder": {**TransformerSizes().to_block(), **transformer},
            "decoder": dict(transformer),
            "atom_type_predict": True,  # false: atom types are given (structure prediction)
            "loss_weights": {
                "atom_types": 1.0,
                "lengths": 1.0,
                "angles": 10.0,
                "frac_coords": 10.0,
                "kl": 1e-5,
                "fa": 0.0,  # alignment with foundation_features
            },
            "kl_warmup_steps": 0,  # the KL weight rises linearly from 0 in so many steps
            "coords_loss": {
                # "fraction": of the cell; "spacing": displacements over (volume / atoms) ** (1/3)
                "unit": "fraction",
                "periodic_from": 0,  # first step that compares modulo the cell; 0 for never
                "periodic_over": 0,  # steps of the transition
                "shift_weight": 1.0,  # of a crystal's displacement as a whole; 0: it is free
            },
            "latent_noise": 0.0,  # on the decoder's input, over the spread of each channel
            "foundation_features": "",  # .npz: material id -> (atoms, 256)
            "augmentation": common.augmentation(),
            "noise": {
                "ratio": 0.0,  # share of atoms masked, and share moved
                "corruption_scale": 0.1,  # angstrom
            },
            "structure_matcher": {"ltol": 0.3, "stol": 0.5, "angle_tol": 10.0},
            "match_rate": {
                "num_samples": 256,  # validation crystals to match; 0 for off
                "timeout_s": 3.0,  # per pair
            },
            "tolerance": {
                "num_samples": 0,  # validation crystals to decode with noise; 0 for off
                "posterior_scale": 1.0,  # share of the posterior's spread in their latents
            },
            "optimizer": common.optimizer(lr=1e-4),
            "scheduler": common.scheduler(),
        }
    )
