"""The training loop, the same for every stage."""

import json
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh
from tqdm import tqdm

from chemeleon2_jax.common.errors import CheckpointError, NonFiniteError, SettingsError
from chemeleon2_jax.rows.batch import Batch
from chemeleon2_jax.training import patience as monitors
from chemeleon2_jax.training.checkpoint_reader import Checkpoint
from chemeleon2_jax.training.checkpoint_writer import CheckpointStore
from chemeleon2_jax.training.config import FitConfig
from chemeleon2_jax.training.interrupts import Interrupts, ValidationInterrupted
from chemeleon2_jax.training.parallel import make_mesh, replicate
from chemeleon2_jax.training.prefetch import Prefetcher
from chemeleon2_jax.training.stage import Stage, StepFn
from chemeleon2_jax.training.state import (
    TrainState,
    abstract_state,
    init_state,
    restore_state,
    train_item,
)
from chemeleon2_jax.training.step import Updater, all_finite, make_train_step
from chemeleon2_jax.training.step_metrics import StepMetrics
from chemeleon2_jax.training.writer import Writers, open_writers


@dataclass(frozen=True)
class FitResult:
    """How a run ended.

    Attributes:
        status: 'finished', 'early_stopped' or 'interrupted'.
        step: steps done.
        exit_code: for the command line: 0, or 128 + the signal (SIGINT 130, SIGTERM 143).
        state: on the devices.
        values: of the last validation; {} if there was none.
        best_step: step of the best checkpoint; None without a validation value.
    """

    status: str
    step: int
    exit_code: int
    state: TrainState
    values: dict[str, float]
    best_step: int | None


def fit(
    stage: Stage,
    config: FitConfig,
    *,
    run_dir: Path,
    resume: bool = False,
    config_text: str = "",
    on_start: Callable[[], None] | None = None,
) -> FitResult:
    """Train a stage in a run folder: events and checkpoints go there.

    Args:
        stage: what is trained.
        config: how.
        run_dir: the run folder; made if it is not there.
        resume: go on from the folder's last complete checkpoint, exactly as if the run had never
            stopped; without one, start at step 0.
        config_text: the resolved configuration, as JSON, for TensorBoard and W&B.
        on_start: called once the settings are checked and the state is that of step 0 or of the
            checkpoint, before anything is trained.

    Raises:
        CheckpointError: a checkpoint cannot be written, or the one to resume from does not fit; or
            there are checkpoints and `resume` is False.
        NonFiniteError: the loss, gradient or parameters became NaN or infinite.
        SettingsError: the configuration does not fit the stage.
        ValueError: the configuration cannot be used.
    """
    if stage.validate is not None and stage.value_names:
        names = monitors.monitored_names(config, default=stage.monitor)
        monitors.check_monitored(names, stage.value_names)
    total_steps = config.total_steps(stage.batches.steps_per_epoch)
    updater = Updater.from_config(
        config, total_steps=total_steps and total_steps * stage.updates_per_step
    )
    mesh = make_mesh(config.num_devices)
    with CheckpointStore(
        run_dir, monitor=stage.monitor, mode=stage.mode, keep_best=config.keep_best
    ) as store:
        checkpoint = store.last()
        if checkpoint and not resume:
            raise CheckpointError(
                f"{store.directory} already holds checkpoints: go on with "
                f"--config.resume_from={store.run_dir}, or train in another folder"
            )
        if resume and not checkpoint:
            logging.info("%s holds no whole checkpoint: starting at step 0", store.directory)
        run = _Run(stage, config, updater=updater, mesh=mesh, store=store)
        run.start(checkpoint)
        if on_start is not None:
            on_start()
        if run.finished():
            logging.info("the run is finished at step %d: nothing is left to train", run.step)
            return run.result(None)
        first_step = run.step + 1 if checkpoint else 0
        opened = open_writers(
            store.run_dir,
            wandb=config.wandb,
            first_step=first_step,
            settings=json.loads(config_text or "{}"),
        )
        with opened as writers, Interrupts() as interrupts:
            if config_text and not checkpoint:
                writers.text("config", f"```json\n{config_text}\n```")
            run.train(interrupts, writers)
            return run.result(interrupts.received)


class _Run:
    """One run: its state, and what is done when."""

    def __init__(
        self,
        stage: Stage,
        config: FitConfig,
        *,
        updater: Updater,
        mesh: Mesh,
        store: CheckpointStore,
    ) -> None:
        self.stage, self.config, self.updater, self.mesh = stage, config, updater, mesh
        self.store, self.writers = store, Writers()
        self.started = time.perf_counter()
        self.steps_per_epoch = stage.batches.steps_per_epoch
        self.total = config.total_steps(self.steps_per_epoch)
        self.step = 0
        self.validated_step = -1 if stage.validate_first else 0
        self.values: dict[str, float] = {}
        self.stopping = monitors.early_stopping(config.early_stopping, mode=stage.mode)
        self.plateau = monitors.plateau(config.scheduler, mode=stage.mode)
        self.measured = StepMetrics()
        self.frozen = replicate(stage.frozen, mesh)
        self.validation_state = stage.validation_state
        self.train_step = _make_step(stage, updater, mesh)
        self.compiled = False
        self.state: TrainState

    def start(self, checkpoint: Checkpoint | None) -> None:
        """Set the state to that of step 0, or of a checkpoint."""
        tx, ema = self.updater.tx, self.config.ema_decay > 0
        init = self.stage.init_params
        if checkpoint is None:
            self.state = init_state(init, tx, seed=self.config.seed, ema=ema, mesh=self.mesh)
            return
        target = abstract_state(init, tx, ema=ema)
        self.state = restore_state(checkpoint, target, mesh=self.mesh)
        progress = checkpoint.progress
        self.step, self.validated_step = checkpoint.step, progress["validated_step"]
        self.values = progress["values"]
        self.validation_state = progress.get("validation_state", self.validation_state)
        self.stopping = self.stopping.from_json(progress["early_stopping"])
        self.plateau = self.plateau.from_json(progress["plateau"])
        logging.info("resumed at step %d from %s", self.step, checkpoint.path)

    def train(self, interrupts: Interrupts, writers: Writers) -> None:
        """Train to the end, or until a signal; the last thing done is to save."""
        self.writers = writers
        if self._validation_due():  # the first one, or the run was stopped in the middle of it
            values = self._validate(interrupts)
            if values is not None:
                self._save(values)
        prefetcher = Prefetcher(
            self.stage.batches, self.mesh, first_step=self.step, end_step=self.total
        )
        with prefetcher as batches, self._progress_bar() as bar:
            while not self.finished() and interrupts.received is None:
                self._train_one(next(batches))
                bar.update()
                if self.step % self.config.log_every_n_steps == 0 or self.step == self.total:
                    self._log(bar)
                stop = interrupts.stop_after(self.step)
                values = None
                if self._validation_due() and not stop:
                    values = self._validate(interrupts)
                if stop or interrupts.received or values is not None or self._save_due():
                    self._save(values)

    def _progress_bar(self) -> Any:
        return tqdm(
            desc=self.stage.name,
            total=self.total,
            initial=self.step,
            unit="step",
            disable=None if jax.process_index() == 0 else True,  # None: only on a terminal
            dynamic_ncols=True,
        )

    def finished(self) -> bool:
        """Return whether nothing is left to do."""
        patience = self.config.early_stopping.patience
        if patience > 0 and self.stopping.num_bad >= patience:
            return True
        reached_end = self.total is not None and self.step >= self.total
        return reached_end and not self._validation_due()

    def _validation_due(self) -> bool:
        if self.stage.validate is None or self.step == self.validated_step:
            return False
        if self.validated_step < 0:  # `validate_first`
            return True
        every = self.config.check_val_every_n_steps
        every = every or self.config.check_val_every_n_epoch * self.steps_per_epoch
        return self.step == self.total or (every > 0 and self.step % every == 0)

    def _save_due(self) -> bool:
        every = self.config.save_every_n_steps
        return self.step == self.total or (every > 0 and self.step % every == 0)

    def _train_one(self, batch: Batch) -> None:
        start = time.perf_counter()
        self.state, metrics, pictures = self.train_step(self.state, self.frozen, batch.arrays)
        self.step += 1
        self.measured.add(self.step, metrics, batch)
        for name, pixels in pictures.items():
            self.writers.image(name, pixels, step=self.step)
        if not self.compiled:
            jax.block_until_ready(metrics)
            now = time.perf_counter()
            logging.info(
                "step %d is done %.1f s after the start of training, %.1f s of it for this step "
                "with its compilation",
                *(self.step, now - self.started, now - start),
            )
            self.compiled = True
            self.measured.restart_clock()

    def _fetch(self) -> None:
        """Bring the metrics to the host; nothing that is not finite goes further."""
        try:
            self.measured.fetch()
        except NonFiniteError as error:
            raise self._non_finite(error.step, error.names) from None

    def _non_finite(self, step: int, names: list[str]) -> NonFiniteError:
        return NonFiniteError(
            step,
            names,
            advice=f"; {self.store.describe_last()}. Lower the learning rate or set "
            "gradient_clip_val, and go on with "
            f"--config.resume_from={self.store.run_dir}",
        )

    def _log(self, bar: Any) -> None:
        self._fetch()
        values = self.measured.read()
        self.writers.scalars(
            {f"train/{name}": value for name, value in values.items()}
            | {"train/epoch": self.step / self.steps_per_epoch},
            step=self.step,
        )
        bar.set_postfix(loss=f"{values['loss']:.4g}", refresh=False)
        logging.info("step %d/%s %s", self.step, self.total or "-", _format(values))

    def _validate(self, interrupts: Interrupts) -> dict[str, float] | None:
        """Return the validation values; None when a signal cut it short."""
        assert self.stage.validate is not None
        self._fetch()
        start = time.perf_counter()
        state = self.state
        params = state.params if state.ema_params is None else state.ema_params
        try:
            with interrupts.during_validation():
                validation = self.stage.validate(params, self.validation_state)
        except ValidationInterrupted:
            return None
        values = {name: float(value) for name, value in validation.values.items()}
        self.values, self.validated_step = values, self.step
        self.validation_state = validation.state
        for name, pixels in validation.pictures.items():
            self.writers.image(name, pixels, step=self.step)
        seconds = time.perf_counter() - start
        self.measured.pause(seconds)
        self.writers.scalars(values, step=self.step)
        logging.info("step %d validation (%.1f s) %s", self.step, seconds, _format(values))
        self._watch(values)
        return values

    def _watch(self, values: Mapping[str, float]) -> None:
        """Show a validation to early stopping and to the plateau scheduler."""
        config = self.config
        self._check_monitored(values)
        if config.early_stopping.patience:
            name = config.early_stopping.monitor or self.stage.monitor
            self.stopping = self.stopping.update(values[name])
        if config.scheduler.name == "plateau":
            name = config.scheduler.monitor or self.stage.monitor
            before = float(self.state.lr_scale)
            self.plateau, scale = monitors.reduce_on_plateau(
                self.plateau.update(values[name]),
                before,
                config=config.scheduler,
                learning_rate=config.optimizer.learning_rate,
            )
            if scale != before:
                lr_scale = replicate(jnp.float32(scale), self.mesh)
                self.state = replace(self.state, lr_scale=lr_scale)
                logging.info("%s is on a plateau: learning rate times %.3g", name, scale)

    def _check_monitored(self, values: Mapping[str, float]) -> None:
        names = monitors.monitored_names(self.config, default=self.stage.monitor)
        try:
            monitors.check_monitored(names, values)
        except SettingsError as error:
            self._save(None)  # only the judgement is missing
            raise SettingsError(
                f"{error}; {self.store.describe_last()}: go on with another name and "
                f"--config.resume_from={self.store.run_dir}"
            ) from None

    def _save(self, values: Mapping[str, float] | None) -> None:
        self._fetch()
        start = time.perf_counter()
        if not bool(all_finite((self.state.params, self.state.ema_params))):
            raise self._non_finite(self.step, ["params"])
        items = self.stage.items(self.state.params, self.state.ema_params)
        self.store.save(
            self.step,
            items={**items, "train": train_item(self.state)},
            meta=self.stage.meta,
            progress={
                "epoch": self.step // self.steps_per_epoch,
                "validated_step": self.validated_step,
                "values": self.values,
                "validation_state": self.validation_state,
                "early_stopping": self.stopping.to_json(),
                "plateau": self.plateau.to_json(),
            },
            metrics=values,
        )
        self.measured.pause(time.perf_counter() - start)

    def result(self, received: signal.Signals | None) -> FitResult:
        """Return how the run ended, given the signal that came, if any."""
        status, exit_code = "finished", 0
        if not self.finished() and received is not None:
            status, exit_code = "interrupted", 128 + received
            logging.warning(
                "%s: stopped%s at step %d; go on with --config.resume_from=%s",
                *(received.name, "" if self.store.last_step is None else " and saved"),
                *(self.step, self.store.run_dir),
            )
        elif self.total is None or self.step < self.total:
            status = "early_stopped"
            logging.info(
                "stopped early at step %d: no improvement in %d validations",
                *(self.step, self.stopping.num_bad),
            )
        return FitResult(
            status=status,
            step=self.step,
            exit_code=exit_code,
            state=self.state,
            values=self.values,
            best_step=self.store.best_step,
        )


def _make_step(stage: Stage, updater: Updater, mesh: Mesh) -> StepFn:
    if stage.make_step is not None:
        return stage.make_step(updater, mesh)
    assert stage.loss_fn is not None
    train_step = make_train_step(stage.loss_fn, updater, mesh=mesh)
    return lambda state, frozen, batch: (*train_step(state, frozen, batch), {})


def _format(values: Mapping[str, float]) -> str:
    return " ".join(f"{name}={value:.5g}" for name, value in values.items())
