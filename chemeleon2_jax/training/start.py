"""The state that a run starts from: of step 0, or of a checkpoint."""

from dataclasses import replace

from absl import logging
from jax.sharding import Mesh

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.training.checkpoint_reader import Checkpoint
from chemeleon2_jax.training.checkpoint_writer import CheckpointWriter
from chemeleon2_jax.training.config import FitConfig
from chemeleon2_jax.training.progress import Progress
from chemeleon2_jax.training.stage import Stage
from chemeleon2_jax.training.state import TrainState, abstract_state, init_state, restore_state
from chemeleon2_jax.training.step import Updater


def checkpoint_to_resume_from(checkpoints: CheckpointWriter, *, resume: bool) -> Checkpoint | None:
    """Return the last complete checkpoint of a run folder; None without one.

    Raises:
        CheckpointError: there is one and `resume` is False.
    """
    checkpoint = checkpoints.last()
    if checkpoint and not resume:
        raise CheckpointError(
            f"{checkpoints.directory} already holds checkpoints: resume with "
            f"--config.resume_from={checkpoints.run_dir} or train in another folder"
        )
    if resume and not checkpoint:
        logging.info("%s holds no whole checkpoint: starting at step 0", checkpoints.directory)
    return checkpoint


def initial_state(
    stage: Stage,
    config: FitConfig,
    *,
    updater: Updater,
    mesh: Mesh,
    checkpoint: Checkpoint | None,
) -> tuple[TrainState, Progress]:
    """Return state and progress of step 0 or of a checkpoint.

    Raises:
        CheckpointError: the checkpoint is broken, or of another model or optimiser.
    """
    init, tx, ema = stage.init_params, updater.tx, config.ema_decay > 0
    if checkpoint is None:
        state = init_state(init, tx, seed=config.seed, ema=ema, mesh=mesh)
        progress = Progress(validated_step=-1 if stage.validate_first else 0)
    else:
        state = restore_state(checkpoint, abstract_state(init, tx, ema=ema), mesh=mesh)
        progress = checkpoint.progress
        logging.info("resumed at step %d from %s", progress.step, checkpoint.path)
    if progress.validation_state is None:
        # Before the first validation, and in checkpoints that hold the state elsewhere: every save
        # from now on keeps it.
        progress = replace(progress, validation_state=dict(stage.validation_state))
    return state, replace(progress, monitor=stage.monitor, mode=stage.mode)
