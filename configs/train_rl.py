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

from typing import Any

from ml_collections import ConfigDict

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
            # What a crystal must be to be judged: "valid" (distances, volume), "covalent" (and no
            # atoms closer than 0.7 of their covalent radii), "" anything. Others get the floors.
            "require": "valid",
            "reference_dataset": "",  # known crystals, a named set; '' is the data of the prompts
            "timeout_s": 30.0,  # for a crystal
            "shuffle": False,  # give rewards to the wrong crystals: the control of an experiment
            "creativity": _component(floor="0"),
            "energy": _component(
                normalize_fn="norm",
                floor="-1",
                model="nequix",  # nequix, chgnet, mace, ase:<module>:<class>
                model_path="",  # weights of nequix; '' fetches the published ones once
                model_kwargs="",  # of the others, as JSON
                hull="",  # file of entries: known compounds and their energies
                hull_corrected="",  # true or false, its scale, where the file does not say
                quantity="e_above_hull",  # or "energy", minus the energy itself
                relax_steps=0,  # 0 judges crystals as they are
            ),
            "structure_diversity": _component(weight=0.1, normalize_fn="norm"),
            "composition_diversity": _component(normalize_fn="norm"),
            "predictor": _component(
                normalize_fn="norm",
                ckpt_path="",
                target_name="",  # '' is the only one
                target_value="",  # a number to come near to; '' is as much as possible
                clip_min="",  # bounds of the prediction
                clip_max="",
            ),
            # Atoms / A^3; a target of 0 is as many as possible.
            "atomic_density": _component(floor="0", target=0.0),
            "mass_density": _component(floor="0", target=0.0),  # g/cm3
            "volume": _component(target=0.0, per_atom=True),  # A^3
            "structural_validity": _component(floor="0", covalent=True),
            "composition_validity": _component(floor="0"),
            "allowed_elements": _component(floor="0", allowed="", required="", graded=False),
            "number_of_elements": _component(target=3),
            "space_group": _component(floor="0", targets="", symprec=0.1),
            "symmetry": _component(floor="0", symprec=0.1),
            # Yours: module:function, keyword arguments as JSON, structures in a call (0: all).
            "custom": _component(function="", kwargs="", batch_size=1),
        }
    )


def _component(
    *, weight: float = 1.0, normalize_fn: str = "", floor: str = "", **options: Any
) -> ConfigDict:
    """A reward: weight, normalisation, and what a crystal without a value gets.

    `floor` is in the reward's own unit; '' is the lowest that a crystal of the rollout got, less
    the range of what they got.
    """
    return ConfigDict({"weight": weight, "normalize_fn": normalize_fn, "floor": floor, **options})
