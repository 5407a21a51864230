r"""A small flow-matching model on the latents of fast/vae_dng, minutes on a CPU.

    python -m chemeleon2_jax.train --config=configs/train_ldm.py:fast/ldm_flow \
        --config.ldm_module.vae_ckpt_path=logs/train_vae/runs/<run of fast/vae_dng>

It learns the velocity of straight lines from noise to latents (rectified flow), which a few steps
follow: on perov-5 10 steps of `--sampler=unipc` give crystals as good as 50. fast/ldm_distill makes
them fewer; see docs/few_steps.md.
"""

from ml_collections import ConfigDict

from configs.experiment.tiny import ldm_null

TASK = "train_ldm"


def update(config: ConfigDict) -> None:
    """Change the base config."""
    ldm_null.update(config)
    config.data.name = "structure-types"
    config.trainer.max_steps = 2000
    diffusion = config.ldm_module.diffusion
    diffusion.schedule = "straight_line"
    diffusion.target = "flow"
    diffusion.learn_sigma = False
    diffusion.times = "logit_normal"
    diffusion.posterior_scale = 0.5
    config.ldm_module.ema.decay = 0.995
    config.ldm_module.scheduler.warmup_steps = 50
    config.ldm_module.sampling.sampler = "euler"
    config.ldm_module.sampling.eta = 0.0
    config.logger.wandb.name = "fast_ldm_flow"
    config.logger.wandb.tags = "ldm,dng,flow,fast"
