r"""Fine-tune a small flow-matching model towards a density, minutes on a CPU.

    python -m chemeleon2_jax.train --config=configs/train_rl.py:fast/rl_density \
        --config.rl_module.ldm_ckpt_path=logs/train_ldm/runs/<run of fast/ldm_flow>

As tiny/rl_density, with the stochastic form of the flow: Euler's method with eta = 1 draws noise at
each step and keeps the marginals, so that steps have a probability.
"""

from ml_collections import ConfigDict

from configs.experiment.tiny import rl_density

TASK = "train_rl"


def update(config: ConfigDict) -> None:
    """Change the base config."""
    rl_density.update(config)
    config.data.name = "structure-types"
    config.rl_module.sampling_configs.sampler = "euler"
    config.logger.wandb.name = "fast_rl_density"
    config.logger.wandb.tags = "rl,density,flow,fast"
