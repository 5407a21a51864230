"""How a run ended."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass

from absl import logging

from chemeleon2_jax.common import hosts
from chemeleon2_jax.training.cadence import Cadence
from chemeleon2_jax.training.checkpoint_writer import CheckpointWriter
from chemeleon2_jax.training.progress import Progress
from chemeleon2_jax.training.state import TrainState


@dataclass(frozen=True)
class FitResult:
    """How a run ended.

    Attributes:
        status: 'finished', 'early_stopped' or 'interrupted'.
        step: steps done.
        exit_code: of the command line: 0, or, for one process, 128 + the signal (SIGINT 130,
            SIGTERM 143).
        state: final state, on the devices.
        values: of the last validation; {} without one.
        best_step: step of the best checkpoint; None without a validation value.
    """

    status: str
    step: int
    exit_code: int
    state: TrainState
    values: Mapping[str, float]
    best_step: int | None


def result_of(
    state: TrainState,
    progress: Progress,
    *,
    cadence: Cadence,
    checkpoints: CheckpointWriter,
    received: signal.Signals | None = None,
) -> FitResult:
    """Return how the run ended, and log it; `received` is the signal that stopped it."""
    status, exit_code = "finished", 0
    if received is not None and not cadence.finished(progress):
        # Launchers of several hosts take any other code for a failure.
        status, exit_code = "interrupted", 0 if hosts.count() > 1 else 128 + received
        logging.warning(
            "%s: stopped%s at step %d; resume with --config.resume_from=%s",
            *(received.name, "" if checkpoints.last_step is None else " and saved"),
            *(progress.step, checkpoints.run_dir),
        )
    elif not cadence.reached_end(progress.step):
        status = "early_stopped"
        logging.info(
            "stopped early at step %d: no improvement in %d validations",
            *(progress.step, progress.early_stopping.num_bad),
        )
    return FitResult(
        status=status,
        step=progress.step,
        exit_code=exit_code,
        state=state,
        values=progress.values,
        best_step=checkpoints.best_step,
    )
