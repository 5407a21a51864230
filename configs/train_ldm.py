r"""Train the latent diffusion transformer on the latents of a trained VAE.

    python -m chemeleon2_jax.train --config=configs/train_ldm.py:mp_20/ldm_null
    python -m chemeleon2_jax.train --config=configs/train_ldm.py:mp_20/ldm_composition
    python -m chemeleon2_jax.train --config=configs/train_ldm.py:tiny/ldm_null \
        --config.ldm_module.vae_ckpt_path=logs/train_vae/runs/<run>

The base values are the published sizes of Chemeleon2: DiT-B, 129.5 million parameters.
"""

from ml_collections import ConfigDict

from chemeleon2_jax.models.condition_kinds import config_options
from configs import common


def get_config(experiment: str = "") -> ConfigDict:
    """Return the base config with the changes of an experiment."""
    config = common.base("train_ldm")
    config.data = common.data("mp-20")
    config.packing = common.packing()
    config.trainer = common.trainer(max_epochs=5000)
    config.callbacks = common.callbacks(patience=200)
    config.logger = common.logger()
    config.ldm_module = _ldm_module()
    return common.with_experiment(config, experiment)


def _ldm_module() -> ConfigDict:
    return ConfigDict(
        {
            "vae_ckpt_path": "",  # VAE: a run, a checkpoint folder, a .ckpt, a published key
            "ldm_ckpt_path": "",  # initial weights, with their own VAE
            "denoiser": {
                "size": "B",  # S, B, L, XL, or "custom" for the four numbers below
                "hidden_size": 768,
                "depth": 12,
                "num_heads": 12,
                "mlp_ratio": 4.0,
                # The estimate of x_0 of the step before as an input (Chen et al. 2022). RL refuses
                # such a model: its steps depend on more than the state.
                "self_conditioning": False,
            },
            "diffusion": {
                "num_steps": 1000,
                # "linear", "squaredcos_cap_v2", or "straight_line", the one of rectified flow
                "schedule": "linear",
                "target": "eps",  # "eps", "x_0", "v", or "flow", the velocity of a straight line
                "times": "uniform",  # or "logit_normal", which draws more from the middle
                # Weights of the loss by noise level: "uniform", or "min_snr" (Hang et al. 2023).
                "weighting": "uniform",
                # Share of the posterior's standard deviation in the latents to learn: 1 samples
                # it, 0 takes its mean.
                "posterior_scale": 1.0,
                # "global" divides latents by one number, as Chemeleon2; "channel" takes mean and
                # standard deviation of each channel.
                "latent_standardisation": "global",
                "learn_sigma": True,
                "variance_layout": "per_token",  # or "interleaved", Chemeleon2's
            },
            "condition_module": {
                # Conditions: "name:kind", comma-separated; '' for none. A float or categorical is a
                # column of the data; composition and chemical_system are computed from the
                # crystals.
                "condition_type": "",
                "drop_prob": 0.2,  # share of crystals trained without conditions, for guidance
                # "together", or "each": the same share of each condition, too, for models that are
                # asked for some of their conditions.
                "drop": "together",
                **config_options(),  # num_classes of categorical: values are 0 to num_classes - 1
                "stats": "",  # "name:mean:std" of floats; '' computes them from the training set
            },
            "lora_configs": {
                "r": 0,  # rank of the adapters; 0 trains all weights
                "lora_alpha": 32.0,
                "target_modules": "attn.out_proj,mlp.fc1,mlp.fc2",
            },
            "ema": {"decay": 0.9999},  # 0 for off
            # Off: Chemeleon2 learns latents of cells in standard orientation.
            "augmentation": {"rotate": False, "translate": False, "per_crystal": True},
            # Distillation of the flow model at ldm_ckpt_path to a few steps: latents are those that
            # it makes of the noise in so many steps of this sampler, not those of the data. 0 is
            # off.
            "reflow": {"steps": 0, "sampler": "unipc"},
            # Where nothing is augmented, the VAE encodes the data once, not at every step. It takes
            # 8 bytes an atom and latent channel in the memory of every host.
            "cache_posteriors": True,
            "sampling": {
                "sampler": "ddim",  # chemeleon2_jax.sample --help lists them
                "steps": 50,
                "eta": 1.0,
                "num_samples": 0,  # crystals sampled and checked at a validation; 0 for off
            },
            "optimizer": common.optimizer(lr=1e-4),
            "scheduler": common.scheduler(),
        }
    )
