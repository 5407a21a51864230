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
            "ldm_ckpt_path": "mp_20_ldm_base",  # what is fine-tuned; brings its VAE
            "vae_ckpt_path": "",  # of a .ckpt of an LDM that does not hold its VAE
            "rl_configs": {
                "clip_ratio": 1e-3,
                "kl_weight": 1.0,
                # What kl_weight keeps the model near to: "rollout", the model that drew the
                # crystals, or "initial", the one that the run started from.
                "kl_reference": "rollout",
                "entropy_weight": 1e-5,
                "num_group_samples": 1,  # crystals of a prompt; 1 is plain policy gradient
                "group_reward_norm": False,  # advantages within each group, or the whole rollout
                "num_inner_batch": 2,  # updates in a rollout, each with its part of the crystals
            },
            "conditions": "",  # "name=value", comma-separated, asked of every crystal
            "reward_fn": _reward_fn(),
            "sampling_configs": {
                "sampler": "ddim",  # or "ddpm"
                "sampling_steps": 50,
                "eta": 1.0,
                "cfg_scale": 2.0,  # guidance, for models with conditions
                "chunk_size": 0,  # crystals that a program works on at once; 0 is a mini-batch
            },
            "validation": {
                "num_samples": 256,  # crystals, always of the same prompts and noise
                "num_drawn": 8,  # of the best and worst of a rollout, in TensorBoard; 0 is off
                "draw_every_n_steps": 20,
            },
            "ema": {"decay": 0.0},  # 0 is off
            "optimizer": common.optimizer(lr=1e-5),
            "scheduler": common.scheduler(),
        }
    )


def _reward_fn() -> ConfigDict:
    """What a crystal is worth. `components` names the rewards that count."""
    return ConfigDict(
        {
            "components": "creativity,energy,structure_diversity,composition_diversity",
            "normalize_fn": "std",  # of the weighted sum: "", norm, std, subtract_mean
            "eps": 1e-4,
            # Which crystals are judged: "valid" (distances, volume), "covalent" (and no atoms
            # closer than 0.7 of their covalent radii), "" all. Others get the floors.
            "require": "valid",
            "reference_dataset": "",  # known crystals, a named set; '' is the data of the prompts
            "timeout_s": 30.0,  # for a crystal
            "shuffle": False,  # give rewards to the wrong crystals: the control of an experiment
            # A block for each reward: weight, normalize_fn, floor (the value of a crystal that has
            # none; '' is below all others) and its own options, which the README lists and its
            # function in chemeleon2_jax/rewards explains.
            **config_blocks(),
        }
    )
