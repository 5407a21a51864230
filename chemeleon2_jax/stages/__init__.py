"""From a config to a stage that `training.loop.fit` can run. The only library code that sees a
ConfigDict.
"""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.training.stage import Stage


def build(config: ConfigDict, *, resume_dir: Path | None = None) -> Stage:
    """Load the data and build model, loss and validation of `config.task_name`.

    Args:
        config: of the run.
        resume_dir: the run that is gone on with; what it is built on comes from its checkpoints.

    Raises:
        ConfigError: a value that the stage cannot use.
        DatasetError: no usable data.
        CheckpointError: a model that the stage starts from cannot be opened.
        RewardError: a reward that cannot be used.
    """
    # Here, so that asking for one stage does not import the others.
    if config.task_name == "train_vae":
        from chemeleon2_jax.stages.vae import build_vae

        return build_vae(config)
    if config.task_name == "train_ldm":
        from chemeleon2_jax.stages.ldm import build_ldm

        return build_ldm(config, resume_dir=resume_dir)
    if config.task_name == "train_predictor":
        from chemeleon2_jax.stages.predictor import build_predictor

        return build_predictor(config, resume_dir=resume_dir)
    if config.task_name == "train_rl":
        from chemeleon2_jax.stages.rl.stage import build_rl

        return build_rl(config, resume_dir=resume_dir)
    raise ConfigError(
        f"task_name is {config.task_name!r}; it is train_vae, train_ldm, train_predictor or "
        "train_rl"
    )
