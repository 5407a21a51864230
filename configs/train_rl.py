r"""Fine-tune a latent diffusion model towards rewards (GRPO, or plain policy gradient).

    python -m chemeleon2_jax.train --config=configs/train_rl.py:mp_20/rl_dng
    python -m chemeleon2_jax.train --config=configs/train_rl.py:tiny/rl_density \
        --config.rl_module.ldm_ckpt_path=logs/train_ldm/runs/<run>
    python -m chemeleon2_jax.train --config=configs/train_rl.py:rl_custom_reward \
        --config.rl_module.ldm_ckpt_path=logs/train_ldm/runs/<run> \
        --config.rl_module.reward_fn.custom.function=my_module:reward

A step is a rollout: `data.batch_size` prompts, `num_group_samples` crystals of each, their rewards,
and `num_inner_batch` updates.
"""

from ml_collections import ConfigDict

from chemeleon2_jax.rewards.registry import config_blocks
from configs import common


def get_config(experiment: str = "") -> ConfigDict:
    """Return the base config with the changes of an experiment."""
    config = common.base("train_rl")
    # Prompts (sizes, compositions, conditions) are those of its training crystals; '' draws sizes
    # from the model's own table.
    config.data = common.data("mp-20", batch_size=320)
    config.packing = common.packing()
    config.trainer = common.trainer(max_epochs=0)
    config.trainer.max_steps = 1000
    config.trainer.check_val_every_n_epoch = 0
    config.trainer.check_val_every_n_steps = 20
    config.trainer.save_every_n_steps = 20
    config.trainer.log_every_n_steps = 1
    config.trainer.gradient_clip_val = 1.0
    config.callbacks = common.callbacks(patience=0)
    for callback in (config.callbacks.early_stopping, config.callbacks.model_checkpoint):
        callback.monitor = "val/reward"
        callback.mode = "max"
    config.logger = common.logger()
    config.rl_module = _rl_module()
    return common.with_experiment(config, experiment)


def _rl_module() -> ConfigDict:
    return ConfigDict(
        {
            "ldm_ckpt_path": "mp_20_ldm_base",  # model to fine-tune, with its VAE
            "vae_ckpt_path": "",  # of a .ckpt of an LDM that does not hold its VAE
            "rl_configs": {
                "clip_ratio": 1e-3,
                "kl_weight": 1.0,
                # Reference of the KL divergence: "rollout", the model that drew the crystals, or
                # "initial", the model at the start of the run.
                "kl_reference": "rollout",
                "entropy_weight": 1e-5,
                "num_group_samples": 1,  # crystals per prompt; 1 is plain policy gradient
                "group_reward_norm": False,  # advantages within each group, or in the whole rollout
                "num_inner_batch": 2,  # updates per rollout, each with its share of the crystals
            },
            "conditions": "",  # "name=value", comma-separated, for every crystal
            "reward_fn": _reward_fn(),
            "sampling_configs": {
                "sampler": "ddim",  # chemeleon2_jax.sample --help lists them
                "sampling_steps": 50,
                "eta": 1.0,
                "cfg_scale": 2.0,  # guidance, for models with conditions
                "chunk_size": 0,  # crystals per call of the sampler; 0 for a mini-batch
            },
            "validation": {
                "num_samples": 256,  # crystals, of the same prompts and noise every time
                "num_drawn": 8,  # best and worst crystals to draw in TensorBoard; 0 for off
                "draw_every_n_steps": 20,
            },
            "ema": {"decay": 0.0},  # 0 for off
            "optimizer": common.optimizer(lr=1e-5),
            "scheduler": common.scheduler(),
        }
    )


def _reward_fn() -> ConfigDict:
    """Return the rewards' block; `components` names the rewards in use."""
    return ConfigDict(
        {
            "components": "creativity,energy,structure_diversity,composition_diversity",
            "normalize_fn": "std",  # of the weighted sum: "", norm, std, subtract_mean
            "eps": 1e-4,
            # Check before the rewards: "valid" (distances, volume), "covalent" (and no atoms
            # closer than 0.7 of their covalent radii), "" none. Crystals that fail get the floors.
            "require": "valid",
            "reference_dataset": "",  # set of known crystals; '' for the data of the prompts
            "timeout_s": 30.0,  # per crystal
            # A control experiment: permute the rewards over the crystals, with group_reward_norm
            # over those of each prompt.
            "shuffle": False,
            # A block for each reward: weight, normalize_fn, floor (the value of a crystal without
            # reward; '' is below all others) and its own options, listed in the README and
            # explained at its function in chemeleon2_jax/rewards.
            **config_blocks(),
        }
    )
