"""From a config to a stage that `training.loop.fit` can run. With the mains, the only library code
that sees a ConfigDict.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast

from ml_collections import ConfigDict

from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.common.suggest import suggest
from chemeleon2_jax.stages.start_data import check_resumed_data
from chemeleon2_jax.training.stage import Stage

# Task name -> its builder, (config, *, resume_dir) -> Stage, imported when it is asked for.
_BUILDERS = {
    "train_vae": "vae:build_vae",
    "train_ldm": "ldm:build_ldm",
    "train_rl": "rl.stage:build_rl",
    "train_predictor": "predictor:build_predictor",
}


def build(config: ConfigDict, *, resume_dir: Path | None = None) -> Stage:
    """Load the data and build the model, loss and validation of `config.task_name`.

    Args:
        config: of the run.
        resume_dir: run folder to resume from; the models that the stage starts from come from its
            checkpoint.

    Raises:
        ConfigError: an unknown task, or a value that the stage cannot use.
        DatasetError: no usable data, or other data than those of the run to resume.
        CheckpointError: a model that the stage starts from cannot be opened.
        RewardError: a reward that cannot be used.
    """
    task = config.task_name
    if task not in _BUILDERS:
        raise ConfigError(f"task_name is {task!r}: {suggest(task, _BUILDERS)}")
    module, _, builder = _BUILDERS[task].partition(":")
    build_stage = getattr(importlib.import_module(f"{__name__}.{module}"), builder)
    stage = cast(Stage, build_stage(config, resume_dir=resume_dir))
    check_resumed_data(stage.meta, resume_dir, same_contents=config.data.same_contents)
    return stage
