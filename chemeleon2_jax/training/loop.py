"""The training loop, the same for every stage."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh

from chemeleon2_jax.common.errors import NonFiniteError
from chemeleon2_jax.training.cadence import Cadence
from chemeleon2_jax.training.checkpoint_writer import CheckpointWriter
from chemeleon2_jax.training.config import FitConfig
from chemeleon2_jax.training.interrupts import Interrupts, ValidationInterrupted
from chemeleon2_jax.training.parallel import make_mesh, replicate
from chemeleon2_jax.training.patience import check_monitored, watch_validation
from chemeleon2_jax.training.prefetch import prefetch
from chemeleon2_jax.training.progress import Progress, best_of
from chemeleon2_jax.training.report import Report
from chemeleon2_jax.training.result import FitResult, result_of
from chemeleon2_jax.training.stage import PyTree, Stage, StepFn
from chemeleon2_jax.training.start import checkpoint_to_resume_from, initial_state
from chemeleon2_jax.training.state import TrainState, train_item
from chemeleon2_jax.training.step import Updater, all_finite, make_train_step
from chemeleon2_jax.training.step_metrics import StepMetrics
from chemeleon2_jax.training.writer import open_writers


def fit(
    stage: Stage,
    config: FitConfig,
    *,
    run_dir: Path,
    resume: bool = False,
    config_text: str = "",
    on_start: Callable[[], None] | None = None,
) -> FitResult:
    """Train a stage; write events and checkpoints into a run folder.

    Args:
        stage: model and data.
        config: settings of the training.
        run_dir: the run folder; made if it is missing.
        resume: continue from the folder's last complete checkpoint, exactly as if the run had
            never stopped; without one, start at step 0.
        config_text: the resolved configuration as JSON, for TensorBoard and W&B.
        on_start: called before the first step, once the settings are checked and the state is
            initialised or restored.

    Raises:
        CheckpointError: a checkpoint cannot be written, or the one to resume from does not fit; or
            there are checkpoints and `resume` is False.
        NonFiniteError: the loss, gradient or parameters became NaN or infinite.
        SettingsError: the settings do not fit the stage.
        ValueError: a setting is out of range.
    """
    if stage.validate is not None:
        check_monitored(config, stage)
    cadence = Cadence.from_config(
        config,
        steps_per_epoch=stage.batches.steps_per_epoch,
        validates=stage.validate is not None,
    )
    num_updates = cadence.total_steps and cadence.total_steps * stage.updates_per_step
    updater = Updater.from_config(config, total_steps=num_updates)
    mesh = make_mesh(config.num_devices)
    with CheckpointWriter(
        run_dir, monitor=stage.monitor, mode=stage.mode, keep_best=config.keep_best
    ) as checkpoints:
        checkpoint = checkpoint_to_resume_from(checkpoints, resume=resume)
        state, progress = initial_state(
            stage, config, updater=updater, mesh=mesh, checkpoint=checkpoint
        )
        if on_start is not None:
            on_start()
        if cadence.finished(progress):
            logging.info("the run is finished at step %d: nothing is left to train", progress.step)
            return result_of(state, progress, cadence=cadence, checkpoints=checkpoints)
        opened = open_writers(
            checkpoints.run_dir,
            wandb=config.wandb,
            first_step=0 if checkpoint is None else progress.step + 1,
            config_text=config_text,
        )
        with opened as writers, Interrupts() as interrupts:
            run = _Run(
                stage=stage,
                config=config,
                cadence=cadence,
                mesh=mesh,
                train_step=_make_step(stage, updater, mesh),
                frozen=replicate(stage.frozen, mesh),
                checkpoints=checkpoints,
                report=Report(
                    *(stage, writers), total_steps=cadence.total_steps, precision=config.precision
                ),
                interrupts=interrupts,
            )
            state, progress = run.train(state, progress)
            return result_of(
                *(state, progress),
                cadence=cadence,
                checkpoints=checkpoints,
                received=interrupts.received,
            )


def _make_step(stage: Stage, updater: Updater, mesh: Mesh) -> StepFn:
    if stage.make_step is not None:
        return stage.make_step(updater, mesh)
    assert stage.loss_fn is not None
    train_step = make_train_step(stage.loss_fn, updater, mesh=mesh)
    return lambda state, frozen, batch: (*train_step(state, frozen, batch), {})


@dataclass(frozen=True)
class _Run:
    """All that stays the same from step to step."""

    stage: Stage
    config: FitConfig
    cadence: Cadence
    mesh: Mesh
    train_step: StepFn
    frozen: PyTree
    checkpoints: CheckpointWriter
    report: Report
    interrupts: Interrupts
    metrics: StepMetrics = field(default_factory=StepMetrics)

    def train(self, state: TrainState, progress: Progress) -> tuple[TrainState, Progress]:
        """Train to the end or until a signal, and save.

        Raises:
            NonFiniteError: with advice.
        """
        try:
            if self.cadence.validation_due(progress):  # the first, or one that was interrupted
                state, progress = self._validate(state, progress)
                if progress.is_validated:
                    self._save(state, progress)
            return self._train(state, progress)
        except NonFiniteError as error:
            raise NonFiniteError(
                error.step,
                error.names,
                advice=f"; {self.checkpoints.describe_last()}. Lower the learning rate or set "
                "gradient_clip_val, and resume with "
                f"--config.resume_from={self.checkpoints.run_dir}",
            ) from None

    def _train(self, state: TrainState, progress: Progress) -> tuple[TrainState, Progress]:
        cadence, first_step = self.cadence, progress.step + 1
        stop = self.interrupts.received is not None
        prefetched = prefetch(
            self.stage.batches, self.mesh, first_step=progress.step, end_step=cadence.total_steps
        )
        with closing(prefetched) as batches, self.report.progress_bar(progress.step):
            while not stop and not cadence.finished(progress):
                batch, start = next(batches), time.perf_counter()
                if progress.step + 1 == first_step:
                    self.report.start(self.mesh, num_crystals=batch.num_crystals)
                state, metrics, pictures = self.train_step(state, self.frozen, batch.arrays)
                progress = replace(progress, step=progress.step + 1, score=None)
                self.metrics.add(progress.step, metrics, batch)
                self.report.step(progress.step, pictures)
                if progress.step == first_step:
                    jax.block_until_ready(metrics)
                    self.report.first_step(progress.step, time.perf_counter() - start)
                    self.metrics.restart_clock()
                if cadence.log_due(progress.step):
                    self.report.log(progress.step, self.metrics.read())
                stop = self.interrupts.stop_after(progress.step)
                if cadence.validation_due(progress) and not stop:
                    state, progress = self._validate(state, progress)
                stop = stop or self.interrupts.received is not None
                if stop or progress.is_validated or cadence.save_due(progress.step):
                    self._save(state, progress)
        return state, progress

    def _validate(self, state: TrainState, progress: Progress) -> tuple[TrainState, Progress]:
        """Validate and watch the values; a signal interrupts it and leaves all unchanged."""
        assert self.stage.validate is not None
        self.metrics.fetch()
        start = time.perf_counter()
        params = state.params if state.ema_params is None else state.ema_params
        try:
            with self.interrupts.during_validation():
                validation = self.stage.validate(params, progress.validation_state or {})
        except ValidationInterrupted:
            return state, progress
        progress = progress.after_validation(validation.values, state=validation.state)
        seconds = time.perf_counter() - start
        best = best_of(self.checkpoints.best, progress)
        self.report.validation(progress, validation.pictures, best=best, seconds=seconds)
        self.metrics.pause(time.perf_counter() - start)
        before = float(state.lr_scale)
        progress, scale = watch_validation(progress, before, config=self.config)
        if scale != before:
            state = replace(state, lr_scale=replicate(jnp.float32(scale), self.mesh))
            name = self.config.scheduler.monitor or self.stage.monitor
            logging.info("%s is on a plateau: learning rate times %.3g", name, scale)
        return state, progress

    def _save(self, state: TrainState, progress: Progress) -> None:
        self.metrics.fetch()
        start = time.perf_counter()
        if not bool(all_finite((state.params, state.ema_params))):
            raise NonFiniteError(progress.step, ["params"])
        items = self.stage.items(state.params, state.ema_params)
        self.checkpoints.save(
            progress, items={**items, "train": train_item(state)}, meta=self.stage.meta
        )
        self.metrics.pause(time.perf_counter() - start)
